"""Four times more requests than the server can answer: what holds however fast the machine is.

The times are measured by benchmarks/server_load.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace

import httpx
import psutil
import pytest

from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import served

ROWS = 4
N_CLIENTS = 4 * ROWS + 8  # each asks again at once: the queue is always full


@pytest.mark.slow
def test_overload_is_turned_away_and_nothing_grows(config: ServeConfig) -> None:
    small = replace(config, max_rows=ROWS, batch_rows=ROWS, max_queue=8)
    with served(small) as server:
        statuses, queue, grown_mib = asyncio.run(overload(server.url, n_answers=200))
        assert set(statuses) == {200, 429}
        assert statuses[429] > statuses[200] / 4
        assert max(queue) == 8
        # 150 answers that each left half a MiB behind would show.
        assert grown_mib < 64
        assert server.service.admission.n_free == ROWS
        assert server.service.admission.n_waiting == server.service.admission.n_admitted == 0
        assert server.backend.stats().n_running == server.backend.stats().n_waiting == 0


async def overload(url: str, *, n_answers: int) -> tuple[Counter[int], list[float], float]:
    """Statuses, depths of the queue, and by how much the process has grown from the 50th answer to the last."""
    statuses: Counter[int] = Counter()
    queue: list[float] = []
    process, rss = psutil.Process(), 0

    async def client(http: httpx.AsyncClient, place: int) -> None:
        nonlocal rss
        search = {"beam_width": 2, "expansions": 2, "max_steps": 3, "value_weight": 0.5} if place % 4 == 0 else None
        while statuses[200] < n_answers:
            body = {"model": "tiny-policy", "messages": [{"role": "user", "content": "1+"}], "max_tokens": 16}
            reply = await http.post("/v1/chat/completions", json=body | {"search": search})
            statuses[reply.status_code] += 1
            if reply.status_code == 429:
                assert int(reply.headers["Retry-After"]) >= 1
                await asyncio.sleep(0.02)
            if statuses[200] == 50:
                rss = process.memory_info().rss
            metrics = (await http.get("/metrics")).text
            queue.append(float(re.findall(r"^posttrain_queue_depth (\S+)", metrics, re.MULTILINE)[0]))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(http, place) for place in range(N_CLIENTS)))
    return statuses, queue, (process.memory_info().rss - rss) / 2**20
