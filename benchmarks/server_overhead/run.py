"""What HTTP, JSON, checks and text cost: 32 requests at once through the server, and the same work on its engine.

    OMP_NUM_THREADS=1 python -m benchmarks.server_overhead.run --out benchmarks/server_overhead/results/cpu.json

writes the result and, beside it, a Markdown table of it. One process holds the engine and the server on it; the client
is another process (`--client URL`). The two ways take turns, so that both meet the machine as it is. Wall seconds are
from the first request to the last reply; CPU seconds are those of the process with the engine, which the client and
other work on the machine do not add to.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from benchmarks.measure import setting, tabulate, write_result
from benchmarks.server_overhead.model import write_model
from posttrain.sampling import SamplingParams
from posttrain.serve.app import create_app
from posttrain.serve.backend import Backend
from posttrain.serve.run import load_backend
from posttrain.serve.serve_config import ServeConfig, limits_of
from posttrain.serve.service import Service

MODULE = "benchmarks.server_overhead.run"
N_REQUESTS = 32
N_NEW = 64
QUESTION = "How many apples are left when 3 of 12 are eaten and 2 of 5 baskets of 7 are given away? "
CASES = {"small": {"width": 256, "n_layers": 4}, "larger": {"width": 512, "n_layers": 8}}
BARE, HTTP, STREAMED = STEPS = ("engine alone", "server", "server, streamed")
HEADINGS = ["model", "parameters", "32 requests by", "wall s", "/ engine alone", "CPU s", "/ engine alone"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/server_overhead/results/cpu.json"))
    parser.add_argument("--client", metavar="URL", help="send the requests when a line is read; print their seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.client:
        asyncio.run(client(arguments.client))
        return
    versions = ["torch", "transformers", "fastapi", "uvicorn"]
    result: dict[str, Any] = {"setting": setting(versions), "rounds": arguments.rounds, "cases": []}
    for name, size in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = write_model(Path(folder) / "model", **size)
            result["cases"].append({"case": {"name": name, **size}, **asyncio.run(measure(model, arguments.rounds))})
    write_result(arguments.out, result, table(result), n_new=len(STEPS) * len(CASES))


async def measure(model: Path, n_rounds: int) -> dict[str, Any]:
    config = ServeConfig(model=str(model), device="cpu", batch_rows=N_REQUESTS, requests_per_minute=0)
    backend = load_backend(config)
    service = Service.over(backend, limits_of(config), logs_prompts=False)
    server = uvicorn.Server(uvicorn.Config(create_app(service, keys=()), port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    command = [sys.executable, "-m", MODULE, "--client", f"http://127.0.0.1:{port}"]
    asking = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        return await take_turns(backend, asking, n_rounds)
    finally:
        asking.kill()
        await asking.wait()
        server.should_exit = True
        await serving
        await backend.close()


async def take_turns(backend: Backend, asking: asyncio.subprocess.Process, n_rounds: int) -> dict[str, Any]:
    wall: dict[str, list[float]] = {name: [] for name in STEPS}
    cpu: dict[str, list[float]] = {name: [] for name in STEPS}
    n_tokens: set[int] = set()
    for place in range(n_rounds + 1):
        for name in STEPS:
            before, cpu_before = backend.stats().n_generated_tokens, time.process_time()
            seconds = await (bare(backend) if name == BARE else through_http(asking, name))
            n_tokens.add(backend.stats().n_generated_tokens - before)
            if place > 0:  # the first round warms up
                wall[name].append(seconds)
                cpu[name].append(time.process_time() - cpu_before)
    if len(n_tokens) != 1:
        raise RuntimeError(f"the two ways sampled different numbers of tokens: {sorted(n_tokens)}")
    steps = {
        name: {
            "wall_s": wall[name],
            "cpu_s": cpu[name],
            "median_wall_s": statistics.median(wall[name]),
            "median_cpu_s": statistics.median(cpu[name]),
        }
        for name in STEPS
    }
    return {"n_tokens": n_tokens.pop(), "steps": steps}


async def bare(backend: Backend) -> float:
    """Token ids in, token ids out."""
    prompts = [backend.tokenizer(rendered(place))["input_ids"] for place in range(N_REQUESTS)]
    params = [SamplingParams(N_NEW, temperature=1.0, seed=place) for place in range(N_REQUESTS)]
    start = time.perf_counter()
    await asyncio.gather(
        *(backend.sample(prompt, each, n=1, stream=0) for prompt, each in zip(prompts, params, strict=True))
    )
    return time.perf_counter() - start


async def through_http(asking: asyncio.subprocess.Process, name: str) -> float:
    assert asking.stdin is not None and asking.stdout is not None
    asking.stdin.write(f"{name}\n".encode())
    return float(await asking.stdout.readline())


async def client(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=N_REQUESTS)) as http:
        while line := await asyncio.to_thread(sys.stdin.readline):
            bodies = [body(place) | {"stream": line.strip() == STREAMED} for place in range(N_REQUESTS)]
            start = time.perf_counter()
            replies = await asyncio.gather(*(http.post("/v1/chat/completions", json=each) for each in bodies))
            print(time.perf_counter() - start, flush=True)
            assert all(reply.status_code == 200 for reply in replies), replies


def body(place: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": question(place)}]
    return {"model": "model", "messages": messages, "max_tokens": N_NEW, "seed": place}


def question(place: int) -> str:
    return f"{place}. {QUESTION}"


def rendered(place: int) -> str:
    return f"user: {question(place)}\nassistant: "


def table(result: dict[str, Any]) -> str:
    def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
        own, alone = steps[name], steps[BARE]
        n_parameters = 4096 * case["width"] + case["n_layers"] * 13 * case["width"] ** 2
        return [
            case["name"],
            f"{n_parameters / 1e6:.0f} M",
            name,
            f"{own['median_wall_s']:.2f}",
            f"{own['median_wall_s'] / alone['median_wall_s']:.2f}",
            f"{own['median_cpu_s']:.2f}",
            f"{own['median_cpu_s'] / alone['median_cpu_s']:.2f}",
        ]

    return tabulate(result, HEADINGS, cells)


if __name__ == "__main__":
    main()
