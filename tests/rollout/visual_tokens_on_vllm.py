"""Run by test_visual_vllm in a process of its own: greedy visual tokens of one policy from both engines, as JSON.

Usage: python -m tests.rollout.visual_tokens_on_vllm OUTPUT_JSON POLICY_FOLDER N_TOKENS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from posttrain.models.policy import load_policy
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.sampling import SamplingParams
from posttrain.vision.visual_text import prompt_text

PROMPTS = ("a red ring", "three green crosses", "a red square left of a blue ring", "")


def main(output: str, folder: str, n_tokens: str) -> None:
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer(prompt_text(text)).input_ids for text in PROMPTS]
    params = SamplingParams(max_new_tokens=int(n_tokens), temperature=0.0, seed=0)
    policy = load_policy(folder, dtype=torch.float32)
    engines = {
        "transformers": TransformersEngine(policy, tokenizer, batch_size=4, device="cpu"),
        "vllm": VllmEngine(folder, dtype="float32", max_model_len=policy.config.max_position_embeddings),
    }
    found = {
        name: [sample.token_ids for (sample,) in engine.sample(prompts, params, 1)] for name, engine in engines.items()
    }
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
