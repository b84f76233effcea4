"""Run by test_zero3_export in a process of its own: what vLLM says about trained networks, as JSON.

Usage: python -m tests.training.zero3_export_vllm OUTPUT_JSON POLICY VALUE_MODEL [VALUE_MODEL ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.sampling import SamplingParams
from posttrain.search.vllm_scorer import VllmScorer
from tests.training.zero3_export_run import PROBES

N_NEW_TOKENS = 12


def main(output: str, policy: str, *value_models: str) -> None:
    answers = greedy_answers(policy)
    values = {path: values_of_prefixes(path) for path in value_models}
    Path(output).write_text(json.dumps({"answers": answers, "values": values}))


def greedy_answers(policy: str) -> list[dict[str, list[float]]]:
    """A greedy answer to each probe's prompt with its log-probabilities, through the engine of `posttrain collect`."""
    prompts = [probe.input_ids[: probe.is_action.index(True)] for probe in PROBES]
    engine = VllmEngine(policy, dtype="float32", max_model_len=64)
    params = SamplingParams(max_new_tokens=N_NEW_TOKENS, temperature=0.0, seed=0)
    samples = [found[0] for found in engine.sample(prompts, params, 1)]
    return [
        {"prompt": list(prompt), "token_ids": list(sample.token_ids), "logp": list(sample.logp)}
        for prompt, sample in zip(prompts, samples, strict=True)
    ]


def values_of_prefixes(path: str) -> list[list[float]]:
    """V of every prefix of every probe but the whole row, through the scorer of searches on vLLM."""
    scorer = VllmScorer(path, dtype="float32", max_model_len=64, memory_share=0.3)
    values = iter(scorer.score([probe.input_ids[:end] for probe in PROBES for end in range(1, len(probe.input_ids))]))
    return [[next(values) for _ in probe.input_ids[1:]] for probe in PROBES]


if __name__ == "__main__":
    main(*sys.argv[1:])
