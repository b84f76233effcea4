"""The application: routes, and around them what every request passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from posttrain import __version__
from posttrain.serve.access import Gate, Keys
from posttrain.serve.completion_routes import completion_routes
from posttrain.serve.edge import Observed, WholeBody
from posttrain.serve.errors import install_error_replies
from posttrain.serve.service import Service
from posttrain.serve.status_routes import health_route, status_routes
from posttrain.serve.value_routes import value_routes

PAGE = Path(__file__).parent / "page"


def create_app(service: Service, *, keys: Sequence[str]) -> FastAPI:
    """The server over a service. No keys: anyone who can reach it may ask, under a loopback name."""
    app = FastAPI(
        title="posttrain",
        version=__version__,
        summary="OpenAI's completions with value-guided search, and the values themselves.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        middleware=[
            Middleware(Observed, metrics=service.metrics),
            Middleware(Gate, keys=Keys(keys), requests_per_minute=service.limits.requests_per_minute),
            Middleware(WholeBody, max_bytes=service.limits.body_bytes),
        ],
    )
    install_error_replies(app)
    # For the OpenAPI document: the Gate has looked at the key before.
    key = [Security(HTTPBearer(auto_error=False, description="not asked for where the server has no keys"))]
    app.include_router(completion_routes(service), dependencies=key)
    app.include_router(value_routes(service), dependencies=key)
    app.include_router(status_routes(service), dependencies=key)
    app.include_router(health_route(service))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False))
    return app
