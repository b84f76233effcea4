"""`posttrain serve`: loads the networks, listens, and ends without losing an answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import uvicorn

from posttrain.models.loading import device_named
from posttrain.serve.access import read_keys, require_strong
from posttrain.serve.app import create_app
from posttrain.serve.backend import Backend
from posttrain.serve.serve_config import ServeConfig, limits_of, require_key_beyond_loopback
from posttrain.serve.service import LOG, Service
from posttrain.serve.transformers_backend import load_transformers_backend
from posttrain.serve.value_units import units_of
from posttrain.serve.vllm_backend import VllmBackend, VllmNetwork

KEY_VARIABLE = "POSTTRAIN_API_KEY"
CLOSING_S = 2  # for connections to close once their answers are sent


def serve(config: ServeConfig) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    LOG.setLevel(logging.INFO)
    keys = keys_of(config)
    require_key_beyond_loopback(config.host, n_keys=len(keys))
    asyncio.run(_serve(config, keys))


def keys_of(config: ServeConfig) -> list[str]:
    """From the file and from the environment."""
    keys = read_keys(config.api_key_file) if config.api_key_file is not None else []
    from_environment = os.environ.get(KEY_VARIABLE)
    if from_environment:
        require_strong([from_environment], where=KEY_VARIABLE)
        keys.append(from_environment)
    return keys


async def _serve(config: ServeConfig, keys: list[str]) -> None:
    units = units_of(config.value_model)
    backend = load_backend(config)
    try:
        service = Service.over(backend, limits_of(config), logs_prompts=config.log_prompts, units=units)
        server = DrainingServer(
            uvicorn.Config(
                create_app(service, keys=keys),
                host=config.host,
                port=config.port,
                access_log=False,  # ours has routes and keys' names, and no query
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=CLOSING_S,
            ),
            service,
        )
        await server.serve()
    finally:
        await backend.close()


def load_backend(config: ServeConfig) -> Backend:
    """The networks behind the interface of the server."""
    if config.backend == "vllm":
        value = None if config.value_model is None else VllmNetwork(config.value_model, config.memory_share)
        policy = VllmNetwork(config.model, config.memory_share)
        return VllmBackend(policy, value, dtype=config.dtype, max_model_len=config.max_model_len)
    return load_transformers_backend(
        config.model,
        config.value_model,
        dtype=getattr(torch, config.dtype),
        device=device_named(config.device),
        max_rows=config.batch_rows,
        n_cached_tokens=config.cached_tokens,
    )


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: refuses new work, finishes what was accepted, then stops; a second signal stops at once.

    uvicorn itself would close its port first, so that a router sees refused connections in place of a 503, and raise
    the signal again at the end, so that the exit code of a clean end is not 0.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for socket in server.sockets:
                LOG.info("listening on http://%s:%d", *socket.getsockname()[:2])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _end(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        LOG.info("shutting down: %d requests to finish", self._service.admission.n_admitted)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._service.limits.drain_s):
                await self._service.admission.drained()
        except TimeoutError:
            LOG.warning("%d requests were not done in time", self._service.admission.n_admitted)
        self.should_exit = True
