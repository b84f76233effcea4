"""What the server is and how it does."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from posttrain import __version__
from posttrain.serve.errors import JsonReply
from posttrain.serve.metrics import CONTENT_TYPE
from posttrain.serve.replies import ModelList, Status, Versions, errors
from posttrain.serve.service import Service


def health_route(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", responses={200: {"model": Status}, 503: {"model": Status, "description": "restart it"}})
    async def health() -> Response:
        """The process answers and its networks run; asks for no key."""
        is_alive = service.backend.is_alive
        return _status("ok" if is_alive else "dead", is_well=is_alive)

    return routes


def status_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/ready",
        responses={
            200: {"model": Status},
            503: {"model": Status, "description": "shutting down, or dead"},
            **errors(401),
        },
    )
    async def ready() -> Response:
        """Work is taken: the models are loaded and the server is not shutting down."""
        if not service.backend.is_alive:
            return _status("dead", is_well=False)
        is_draining = service.admission.is_draining
        return _status("draining" if is_draining else "ready", is_well=not is_draining)

    @routes.get("/version", responses={200: {"model": Versions}, **errors(401)})
    async def version() -> Response:
        return JsonReply({"posttrain": __version__, "api": "v1"})

    @routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401)},
        response_class=Response,
    )
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @routes.get("/v1/models", responses={200: {"model": ModelList}, **errors(401, 429)})
    async def models() -> Response:
        backend = service.backend
        served = [(backend.policy_name, "policy"), (backend.value_name, "value")]
        cards = [
            {
                "id": name,
                "object": "model",
                "created": service.started_at,
                "owned_by": "posttrain",
                "role": role,
                "max_model_len": backend.n_positions,
                "has_chat_template": bool(backend.tokenizer.chat_template),
            }
            for name, role in served
            if name is not None
        ]
        return JsonReply({"object": "list", "data": cards})

    return routes


def _status(word: str, *, is_well: bool) -> Response:
    return JsonReply({"status": word}, status_code=200 if is_well else 503)
