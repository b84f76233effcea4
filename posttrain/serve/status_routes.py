"""What the server is and how it does."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from posttrain import __version__
from posttrain.serve.errors import JsonReply
from posttrain.serve.metrics import CONTENT_TYPE
from posttrain.serve.replies import ModelList, Status, Versions, errors
from posttrain.serve.service import Service


def health_route() -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", responses={200: {"model": Status}})
    async def health() -> Response:
        """The process answers; asks for no key."""
        return JsonReply({"status": "ok"})

    return routes


def status_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/ready",
        responses={200: {"model": Status}, 503: {"model": Status, "description": "shutting down"}, **errors(401)},
    )
    async def ready() -> Response:
        """Work is taken: the models are loaded and the server is not shutting down."""
        is_draining = service.admission.is_draining
        return JsonReply({"status": "draining" if is_draining else "ready"}, status_code=503 if is_draining else 200)

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
