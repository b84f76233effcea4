"""Run by test_vllm_backend in a process of its own: what the server's two engines answer to many tasks, as JSON.

Usage: python -m tests.serve.vllm_backend_run OUTPUT_JSON POLICY VALUE_MODEL
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model, values_at_every_position
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.sampling import SamplingParams, TopTokens
from posttrain.search.scorer import ReencodingScorer
from posttrain.serve.vllm_backend import VllmBackend, VllmNetwork
from tests.vllm_networks import N_POSITIONS

PROMPTS = [[5 + i, 9, 12 + i, 20] for i in range(6)]
SAMPLED = SamplingParams(max_new_tokens=24, temperature=1.0, seed=3, stop=("4", "ab"))
STEP = SamplingParams(max_new_tokens=10, temperature=1.0, seed=8)
LONG = SamplingParams(max_new_tokens=200, temperature=1.0, seed=1)
N_SEARCHES = 10
N_TOP = 4
N_ROUNDS = 6


def by_vllm_engine(policy: str) -> list[list[dict[str, Any]]]:
    engine = VllmEngine(policy, dtype="float32", max_model_len=N_POSITIONS)
    samples = engine.sample(PROMPTS, SAMPLED, 2, streams=range(40, 40 + len(PROMPTS)))
    return [[asdict(sample) for sample in row] for row in samples]


async def sampled(backend: VllmBackend) -> dict[str, Any]:
    """The same samples by the backend, all prompts at once, with every token as it arrived."""
    arrived: list[list[tuple[int, int, float, TopTokens]]] = [[] for _ in PROMPTS]

    def one(i: int) -> Coroutine[Any, Any, Any]:
        return backend.sample(
            PROMPTS[i], SAMPLED, n=2, stream=40 + i, on_token=lambda *token: arrived[i].append(token)
        )

    rows = await asyncio.gather(*map(one, range(len(PROMPTS))))
    told: list[TopTokens] = []
    cold = replace(SAMPLED, temperature=0.5, top_p=0.5)
    (whole,) = await backend.sample(PROMPTS[0], cold, n=1, stream=0, n_top=N_TOP)
    await backend.sample(PROMPTS[0], cold, n=1, stream=0, n_top=N_TOP, on_token=lambda *token: told.append(token[3]))
    return {
        "samples": [[asdict(sample) for sample in row] for row in rows],
        "arrived": arrived,
        "with_top": asdict(whole),
        "told": told,
    }


async def search(backend: VllmBackend, number: int) -> tuple[list[int], int]:
    """N_ROUNDS times the best by value of three continuations, as a beam of width 1; and the value tokens read."""
    ids, n_read = [5 + number, 9, 30], 0
    for step in range(N_ROUNDS):
        samples = await backend.sample(ids, replace(STEP, seed=step), n=3, stream=number)
        candidates = [ids + list(sample.token_ids) for sample in samples]
        scored = await backend.score(candidates)
        n_read += scored.n_tokens_read
        ids = candidates[scored.values.index(max(scored.values))]
    return ids, n_read


async def searches(backend: VllmBackend) -> dict[str, Any]:
    n_steps = [backend.policy_counts.n_steps]
    alone, n_read_alone = await search(backend, 0)
    n_steps.append(backend.policy_counts.n_steps)
    together = await asyncio.gather(*(search(backend, number) for number in range(N_SEARCHES)))
    n_steps.append(backend.policy_counts.n_steps)
    stats = backend.stats()
    return {
        "alone": alone,
        "together": [ids for ids, _ in together],
        "n_steps_alone": n_steps[1] - n_steps[0],
        "n_steps_together": n_steps[2] - n_steps[1],
        "n_value_tokens_of_searches": n_read_alone + sum(n_read for _, n_read in together),
        "n_value_tokens_read": stats.n_value_tokens_read,
        "n_value_tokens_cached": stats.n_value_tokens_cached,
    }


async def cancelled(backend: VllmBackend) -> dict[str, Any]:
    """Requests cancelled at their first token, and others at every stage of their way in."""
    whole = await backend.sample(PROMPTS[0], LONG, n=8, stream=0)
    first_token = asyncio.Event()
    tasks = [
        asyncio.create_task(backend.sample(PROMPTS[0], LONG, n=8, stream=0, on_token=lambda *token: first_token.set()))
    ]
    await first_token.wait()
    n_running = backend.stats().n_running
    for n_turns in range(12):  # of the event loop, before it is cancelled
        tasks.append(asyncio.create_task(backend.sample(PROMPTS[1], LONG, n=8, stream=n_turns)))
        for _ in range(n_turns):
            await asyncio.sleep(0)
        tasks[-1].cancel()
    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    n_steps = backend.policy_counts.n_steps
    await backend.sample(PROMPTS[2], replace(STEP, max_new_tokens=5), n=1, stream=0)
    return {
        "whole_lengths": [len(sample.token_ids) for sample in whole],
        "n_running_before": n_running,
        "n_cancelled": sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes),
        "n_running_after": backend.stats().n_running,
        "n_steps_of_next": backend.policy_counts.n_steps - n_steps,
    }


async def refused(backend: VllmBackend) -> dict[str, str]:
    calls = {
        "empty_prompt": backend.sample([], STEP, n=1, stream=0),
        "full_prompt": backend.sample([5] * N_POSITIONS, STEP, n=1, stream=0),
        "empty_sequence": backend.score([[]]),
    }
    found = {}
    for name, call in calls.items():
        try:
            await call
        except ValueError as error:
            found[name] = str(error)
    return found


async def values(backend: VllmBackend, path: str) -> dict[str, Any]:
    model = load_value_model(path, dtype=torch.float32)
    ids = [3 + (i * 7) % 30 for i in range(90)]
    sequences = [ids[:n] for n in (1, 40, 89, 90)]
    with torch.no_grad():
        expected = values_at_every_position(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    everywhere = await backend.score_all(ids)
    return {
        "score": (await backend.score(sequences)).values,
        "score_expected": ReencodingScorer(model, batch_size=4).score(sequences),
        "score_all": everywhere.values,
        "n_read_by_score_all": everywhere.n_tokens_read,
        "score_all_expected": expected[0].tolist(),
    }


def likeliest(policy: str, prompt: list[int], token_ids: list[int]) -> list[list[tuple[int, float]]]:
    """The N_TOP likeliest tokens at the place of each token, by transformers."""
    model = load_policy(policy, dtype=torch.float32)
    with torch.no_grad():
        logp = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    top = logp.topk(N_TOP)
    return [list(zip(*at, strict=True)) for at in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


async def run(backend: VllmBackend, value: str) -> dict[str, Any]:
    results = {
        "names": [backend.policy_name, backend.value_name],
        "sampled": await sampled(backend),
        "searches": await searches(backend),
        "cancelled": await cancelled(backend),
        "refused": await refused(backend),
        "values": await values(backend, value),
    }
    in_flight = asyncio.create_task(backend.sample(PROMPTS[0], LONG, n=8, stream=0))
    await asyncio.sleep(0)
    is_alive = [backend.is_alive]
    await backend.close()
    await asyncio.wait([in_flight])
    is_alive.append(backend.is_alive)
    return {**results, "is_cancelled_by_close": in_flight.cancelled(), "is_alive": is_alive}


def main(output: str, policy: str, value: str) -> None:
    expected = by_vllm_engine(policy)
    gc.collect()
    backend = VllmBackend(
        VllmNetwork(policy, memory_share=0.3),
        VllmNetwork(value, memory_share=0.3),
        dtype="float32",
        max_model_len=N_POSITIONS,
    )
    results = asyncio.run(run(backend, value))
    results["likeliest"] = likeliest(policy, PROMPTS[0], results["sampled"]["with_top"]["token_ids"])
    Path(output).write_text(json.dumps({**results, "by_vllm_engine": expected}))


if __name__ == "__main__":
    main(*sys.argv[1:])
