"""A server that is asked for four times what it can do.

    OMP_NUM_THREADS=1 python -m benchmarks.server_load.run --out benchmarks/server_load/results/cpu.json

writes the result and, beside it, a Markdown table of it. `posttrain serve` runs as its own process with room for ROWS
sequences; requests are plain chat completions of N_NEW tokens. First half of the room is kept busy (unloaded), then
all of it (capacity, whose answers per second are the yardstick), then requests come at random moments, at four times
that rate on average, whatever becomes of the earlier ones (overload). Nobody asks again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import setting, tabulate, write_result
from benchmarks.server_overhead.model import write_model

ROWS = 4
N_NEW = 96
FACTOR = 4
CASES = {"plain requests": {"width": 256, "n_layers": 4}}
UNLOADED, CAPACITY, OVERLOAD = "unloaded", "capacity", "overload"
HEADINGS = [
    "phase",
    "s",
    "asked",
    "200",
    "429",
    "other",
    "answers/s",
    "p50 s",
    "p99 s",
    "p99 / unloaded",
    "queue",
    "RSS MiB",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of the overload; the phases before it take half")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"setting": setting(["torch", "transformers", "fastapi", "uvicorn"]), "cases": []}
    result["server"] = {"max_rows": ROWS, "new_tokens": N_NEW, "overload": FACTOR}
    for name, size in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = write_model(Path(folder) / "model", **size)
            steps = measure(model, arguments.seconds)
        result["cases"].append({"case": {"name": name, **size}, "steps": steps})
    write_result(arguments.out, result, table(result), n_new=3 * len(CASES))


def measure(model: Path, seconds: float) -> dict[str, Any]:
    flags = ["--max_rows", ROWS, "--batch_rows", ROWS, "--requests_per_minute", 0, "--port", 0, "--device", "cpu"]
    command = [sys.executable, "-m", "posttrain", "serve", "--model", str(model), *map(str, flags)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, text=True)
        try:
            return asyncio.run(phases(address(server, log), server.pid, seconds))
        finally:
            server.terminate()
            server.wait()


def address(server: subprocess.Popen[str], log: Any) -> str:
    while server.poll() is None:
        log.seek(0)
        if found := re.search(r"listening on (http://\S+)", log.read()):
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server ended with {server.returncode}")


async def phases(url: str, pid: int, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await closed_loop(http, 1, 2.0)  # warms up
        steps = {
            UNLOADED: await watched(http, pid, lambda: closed_loop(http, ROWS // 2, seconds / 2)),
            CAPACITY: await watched(http, pid, lambda: closed_loop(http, ROWS, seconds / 2)),
        }
        rate = FACTOR * len(ok(steps[CAPACITY])) / steps[CAPACITY]["seconds"]
        steps[OVERLOAD] = await watched(http, pid, lambda: open_loop(http, rate, seconds))
    return steps


Replies = list[tuple[int, float]]  # status, seconds


async def watched(http: httpx.AsyncClient, pid: int, phase: Callable[[], Awaitable[Replies]]) -> dict[str, Any]:
    """The replies of a phase, and what the server held while it lasted."""
    rss_before, start = resident_mib(pid), time.perf_counter()
    running = asyncio.ensure_future(phase())
    queue: list[float] = []
    while not running.done():
        metrics = (await http.get("/metrics")).text
        queue.append(float(re.search(r"^posttrain_queue_depth (\S+)", metrics, re.MULTILINE)[1]))
        await asyncio.wait([running], timeout=0.5)
    return {
        "seconds": time.perf_counter() - start,
        "replies": [(status, round(spent, 4)) for status, spent in running.result()],
        "max_queue": max(queue),
        "rss_mib": [rss_before, resident_mib(pid)],
    }


async def closed_loop(http: httpx.AsyncClient, n_clients: int, seconds: float) -> Replies:
    end = time.perf_counter() + seconds
    replies: Replies = []

    async def client(place: int) -> None:
        while time.perf_counter() < end:
            replies.append(await ask(http, place + n_clients * len(replies)))

    await asyncio.gather(*map(client, range(n_clients)))
    return replies


async def open_loop(http: httpx.AsyncClient, rate: float, seconds: float) -> Replies:
    moments, chance = [0.0], random.Random(0)
    while moments[-1] < seconds:
        moments.append(moments[-1] + chance.expovariate(rate))
    start = time.perf_counter()

    async def at(moment: float, place: int) -> tuple[int, float]:
        await asyncio.sleep(start + moment - time.perf_counter())
        return await ask(http, place)

    return list(await asyncio.gather(*(at(moment, place) for place, moment in enumerate(moments[:-1]))))


async def ask(http: httpx.AsyncClient, seed: int) -> tuple[int, float]:
    body = {"model": "model", "messages": [{"role": "user", "content": f"{seed} apples?"}], "seed": seed}
    start = time.perf_counter()
    reply = await http.post("/v1/chat/completions", json=body | {"max_tokens": N_NEW})
    return reply.status_code, time.perf_counter() - start


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def ok(step: dict[str, Any]) -> list[float]:
    """Seconds of the answers, in order."""
    return sorted(seconds for status, seconds in step["replies"] if status == 200)


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(result: dict[str, Any]) -> str:
    def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
        step, answers = steps[name], ok(steps[name])
        statuses = [status for status, _ in step["replies"]]
        p99 = quantile(answers, 0.99)
        return [
            name,
            f"{step['seconds']:.0f}",
            str(len(statuses)),
            str(statuses.count(200)),
            str(statuses.count(429)),
            str(len(statuses) - statuses.count(200) - statuses.count(429)),
            f"{len(answers) / step['seconds']:.1f}",
            f"{quantile(answers, 0.5):.2f}",
            f"{p99:.2f}",
            f"{p99 / quantile(ok(steps[UNLOADED]), 0.99):.2f}",
            f"{step['max_queue']:.0f}",
            " to ".join(f"{mib:.0f}" for mib in step["rss_mib"]),
        ]

    return tabulate(result, HEADINGS, cells)


if __name__ == "__main__":
    main()
