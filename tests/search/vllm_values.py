"""Run by test_vllm_scorer in a process of its own: V by vLLM and by transformers of the same value models, as JSON.

Usage: python -m tests.search.vllm_values OUTPUT_JSON POLICY VALUE_MODEL VALUE_MODEL_OF_ANOTHER_HEAD
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.scorer import ReencodingScorer, ValueScorer
from posttrain.search.tree import SearchTree
from posttrain.search.vllm_scorer import VllmScorer

MAX_MODEL_LEN = 256
STEP = SamplingParams(max_new_tokens=12, temperature=1.0, seed=5, stop=("1", "2", "3", "4", "5"))
BEAM = BeamParams(width=3, expansions=3, max_steps=8, sampling=STEP)


def random_prefixes(n_tokens_in_vocabulary: int) -> list[list[int]]:
    """40 sequences of 1 to 200 tokens without the special ones, half of them a continuation of the one before."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(20):
        length, longer = sorted(torch.randint(1, 201, (2,), generator=generator).tolist())
        ids = torch.randint(3, n_tokens_in_vocabulary, (longer,), generator=generator).tolist()
        found += [ids[:length], ids]
    return found


def reencoding(path: str, dtype: torch.dtype) -> ReencodingScorer:
    return ReencodingScorer(load_value_model(path, dtype=dtype), batch_size=8)


def served(path: str, dtype: str) -> VllmScorer:
    return VllmScorer(path, dtype=dtype, max_model_len=MAX_MODEL_LEN, memory_share=0.3)


def searched(policy: str, scorer: ValueScorer) -> list[SearchTree]:
    """Step beams of two prompts, long enough for whole blocks of them to be shared."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    engine = TransformersEngine(load_policy(policy, dtype=torch.float32), tokenizer, batch_size=16, device="cpu")
    prompts = [tokenizer("=".join("abcdefgh" * 4)).input_ids, tokenizer("+".join("hgfedcba" * 5)).input_ids]
    return beam_search(engine, scorer, prompts, BEAM)


def refusals(policy: str, scorer: VllmScorer) -> dict[str, str]:
    """The messages for what cannot be scored, by what it is."""
    calls = {
        "empty": lambda: scorer.score([[5], []]),
        "too_long": lambda: scorer.score([[5] * (MAX_MODEL_LEN + 1)]),
        "policy": lambda: served(policy, "float32"),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    return found


def main(output: str, policy: str, value: str, scaled_value: str) -> None:
    prefixes = random_prefixes(len(AutoTokenizer.from_pretrained(policy)))
    results: dict[str, Any] = {"lengths": [len(prefix) for prefix in prefixes]}
    for dtype in ("float32", "bfloat16"):
        scorer = served(value, dtype)
        results[dtype] = {
            "transformers": reencoding(value, getattr(torch, dtype)).score(prefixes),
            "vllm": scorer.score(prefixes),
            "vllm_again": scorer.score(prefixes),
            "n_tokens_read": scorer.n_tokens_read,
            "n_tokens_cached": scorer.n_tokens_cached,
        }
        if dtype == "float32":
            results["refusals"] = refusals(policy, scorer)
            scorer.n_tokens_read = scorer.n_tokens_cached = 0
            results["trees"] = [asdict(tree) for tree in searched(policy, scorer)]
            results["tree_tokens"] = {"read": scorer.n_tokens_read, "cached": scorer.n_tokens_cached}
            results["oracle_trees"] = [asdict(tree) for tree in searched(policy, reencoding(value, torch.float32))]
        del scorer
        gc.collect()
    results["scaled_head"] = served(scaled_value, "bfloat16").score(prefixes)
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
