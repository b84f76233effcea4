"""Run by test_vllm_engine in a process of its own: one model folder through both engines, the results as JSON.

Usage: python -m tests.rollout.vllm_against_transformers OUTPUT_JSON MODEL_FOLDER DTYPE
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.sampling import SamplingEngine, SamplingParams

PROMPTS = ["1+2=", "ab12", "9*9-", "3", "#### 12", "abcabc", "0000", "5-5+5"]
CROWD = [f"{i:03d}" + "+" * 100 for i in range(60)]  # 6,000 tokens and more: vLLM prefills them in several batches
CASES = {
    "greedy": (SamplingParams(max_new_tokens=24, temperature=0.0, seed=0), 1),
    "stop": (SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, stop=("4", "\n", "ab")), 4),
    "sampled": (SamplingParams(max_new_tokens=24, temperature=0.7, seed=3, top_p=0.9, top_k=20), 2),
    "sampled_again": (SamplingParams(max_new_tokens=24, temperature=0.7, seed=3, top_p=0.9, top_k=20), 2),
}


def run_cases(engine: SamplingEngine, prompts: list[list[int]]) -> dict[str, object]:
    return {
        name: [[asdict(sample) for sample in samples] for samples in engine.sample(prompts, params, n)]
        for name, (params, n) in CASES.items()
    }


def dense_log_pi(model, prompt: list[int], token_ids: list[int]) -> list[list[float]]:
    """log π of the whole vocabulary before each of `token_ids`, float32 arithmetic."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1].tolist()


def main(output: str, folder: str, dtype: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    local = TransformersEngine(model, tokenizer, batch_size=8, device="cpu")
    results = {"prompts": prompts, "transformers": run_cases(local, prompts)}
    served = VllmEngine(folder, dtype=dtype, max_model_len=128)
    results["vllm"] = run_cases(served, prompts)
    results["vllm_one_by_one"] = [
        asdict(served.sample([prompt], CASES["sampled"][0], 1, streams=[i])[0][0]) for i, prompt in enumerate(prompts)
    ]
    crowd = [tokenizer(text).input_ids for text in CROWD]
    sampled = served.sample(crowd, CASES["sampled"][0], 1)
    results["vllm_crowd"] = [sample.token_ids for (sample,) in sampled]
    results["vllm_crowd_by_tens"] = [
        sample.token_ids
        for start in range(0, len(crowd), 10)
        for (sample,) in served.sample(
            crowd[start : start + 10], CASES["sampled"][0], 1, streams=range(start, start + 10)
        )
    ]
    results["dense"] = {
        case: [
            [dense_log_pi(model, prompt, sample["token_ids"]) for sample in samples]
            for prompt, samples in zip(prompts, found, strict=True)
        ]
        for case, found in results["vllm"].items()
    }
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
