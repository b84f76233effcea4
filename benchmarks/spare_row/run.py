"""How near the raw logit of a spare row of the output embedding, as stock vLLM returns it, is to a float32 value head.

    python -m benchmarks.spare_row.run --model FOLDER --out benchmarks/spare_row/results/smollm2.json

FOLDER is a small policy with tied embeddings. Needs vLLM; some minutes and a few GiB on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.spare_row.networks import (
    Variant,
    hidden_states,
    log_pi,
    write_policy,
)
from posttrain.models.vllm_args import import_vllm
from posttrain.rollout.vllm_engine import policy_engine_args, request_args
from posttrain.sampling import SamplingParams

PROMPTS = (
    "Tom has 3 boxes with 12 pencils each and gives away 7 pencils. How many are left?",
    "A train runs 60 km in the first hour and 45 km in the second. How far does it go?",
    "What is 17 times 6? Think step by step.",
    "Anna reads 20 pages a day. How long does she need for a book of 340 pages?",
    "Seven friends share 91 cherries. How many does each get?",
    "A farmer has 14 hens that lay 5 eggs a week each. How many eggs are that in 4 weeks?",
)
N_SAMPLES = 4
SAMPLING = SamplingParams(max_new_tokens=24, temperature=1.0, seed=0)
MAX_MODEL_LEN = 128
MEMORY_SHARE = 0.4
BAN = -100.0  # the lowest logit_bias that vLLM takes
VARIANTS = (
    Variant("float32", True, "model", "raw_logprobs"),
    Variant("float32", True, "model", "raw_logits"),
    Variant("float32", False, "model", "raw_logprobs"),
    Variant("bfloat16", True, "model", "raw_logprobs"),
    Variant("bfloat16", True, "model", "raw_logits"),
    Variant("bfloat16", False, "model", "raw_logprobs"),
    Variant("bfloat16", True, "float32", "raw_logprobs"),
)
Rows = list[dict[str, Any]]  # one per sample: prompt, token_ids, and what was read at each token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of a small policy with tied embeddings")
    parser.add_argument("--out", type=Path, required=True, help="the result, .json; its table goes beside it as .md")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # engines one after the other in this process
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in PROMPTS
    ]
    value_row = fitted_value_row(arguments.model, prompts)
    result: dict[str, Any] = {
        "model": Path(arguments.model).name,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, import_vllm())},
        "variants": {},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for variant in VARIANTS:
            rows = spare_row_values(arguments.model, Path(scratch) / variant.name, variant, prompts, value_row)
            result["variants"][variant.name] = judged(arguments.model, rows, variant, value_row)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(table(result))
            print(table(result).splitlines()[-1], flush=True)


def fitted_value_row(model: str, prompts: list[list[int]]) -> Tensor:
    """[H] a row whose product with the hidden state is about the part of the prompt that was read, in (0, 1].

    Ridge regression: like a trained head it lives off differences between large terms, as a random row does not.
    """
    hidden = torch.cat(hidden_states(model, prompts, dtype="float32"))
    part = torch.cat([torch.arange(1, len(ids) + 1).double() / len(ids) for ids in prompts])
    gram = hidden.T @ hidden
    penalty = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + penalty, hidden.T @ part)


def spare_row_values(source: str, folder: Path, variant: Variant, prompts: list[list[int]], value_row: Tensor) -> Rows:
    """Samples of the policy with its spare rows; at each token V before it, log π of it, and whether it was banned."""
    vllm = import_vllm()
    value_id = write_policy(source, folder, value_row, is_tied=variant.is_tied, dtype=variant.dtype)
    arguments = policy_engine_args(folder, dtype=variant.dtype, max_model_len=MAX_MODEL_LEN, memory_share=MEMORY_SHARE)
    arguments |= {"logprobs_mode": variant.logprobs_mode, "hf_overrides": {"head_dtype": variant.head_dtype}}
    arguments |= {"enforce_eager": True}  # compiling would take longer than the run
    llm = vllm.LLM(**arguments)
    spare = {
        "logprobs": 2,
        "logprob_token_ids": [value_id, value_id + 1],
        "logit_bias": {value_id: BAN, value_id + 1: BAN},
    }
    requests = [(i, j) for i in range(len(prompts)) for j in range(N_SAMPLES)]
    outputs = llm.generate(
        [{"prompt_token_ids": prompts[i]} for i, _ in requests],
        [vllm.SamplingParams(**(request_args(SAMPLING, i, j) | spare)) for i, j in requests],
        use_tqdm=False,
    )
    rows = []
    for (i, _), output in zip(requests, outputs, strict=True):
        token_ids = list(output.outputs[0].token_ids)
        at = [{token: entry.logprob for token, entry in found.items()} for found in output.outputs[0].logprobs]
        logp_value = torch.tensor([found[value_id] for found in at], dtype=torch.float64)
        logp_zero = torch.tensor([found[value_id + 1] for found in at], dtype=torch.float64)
        chosen = torch.tensor([found[token] for found, token in zip(at, token_ids, strict=True)], dtype=torch.float64)
        # The row of zeros has logit 0, so a difference of log-probabilities is the other's logit, and the two together
        # are what the softmax over the enlarged vocabulary took from the policy.
        taken = logp_value.exp() + logp_zero.exp()
        is_logprobs = variant.logprobs_mode == "raw_logprobs"
        rows.append(
            {
                "prompt": prompts[i],
                "token_ids": token_ids,
                "value": logp_value - logp_zero if is_logprobs else logp_value,
                "logp": chosen - torch.log1p(-taken) if is_logprobs else None,
                "n_banned": sum(token >= value_id for token in token_ids),
            }
        )
    del llm
    gc.collect()
    return rows


def judged(source: str, rows: Rows, variant: Variant, value_row: Tensor) -> dict[str, Any]:
    """Errors against transformers on the same tokens: a float32 trunk, and the variant's; a float64 head on both."""
    sequences = [row["prompt"] + row["token_ids"] for row in rows]
    found = [row["value"] for row in rows]
    hidden = {dtype: hidden_states(source, sequences, dtype=dtype) for dtype in {"float32", variant.dtype}}
    exact, same_trunk = (
        [(h @ value_row)[len(row["prompt"]) - 1 : -1] for h, row in zip(hidden[dtype], rows, strict=True)]
        for dtype in ("float32", variant.dtype)
    )
    judgement = {
        "n_values": sum(map(len, found)),
        "std_of_value": torch.cat(exact).std().item(),
        "error_max": (torch.cat(found) - torch.cat(exact)).abs().max().item(),
        "error_rms": rms(torch.cat(found) - torch.cat(exact)),
        "error_rms_of_transformers": rms(torch.cat(same_trunk) - torch.cat(exact)),
        "flipped": flipped(found, exact),
        "flipped_by_transformers": flipped(same_trunk, exact),
        "n_banned": sum(row["n_banned"] for row in rows),
    }
    if variant.logprobs_mode == "raw_logprobs":
        expected = log_pi(source, sequences, hidden["float32"])
        errors = [row["logp"] - logp[len(row["prompt"]) - 1 :] for row, logp in zip(rows, expected, strict=True)]
        judgement["logp_error_max"] = torch.cat(errors).abs().max().item()
    return judgement


def flipped(found: list[Tensor], exact: list[Tensor]) -> float:
    """The part of pairs, two samples of one prompt after equally many tokens, that `found` orders otherwise."""
    n_pairs = n_flipped = 0
    for start in range(0, len(found), N_SAMPLES):
        for a, b in combinations(range(start, start + N_SAMPLES), 2):
            n = min(len(found[a]), len(found[b]))
            difference, truth = found[a][1:n] - found[b][1:n], exact[a][1:n] - exact[b][1:n]
            is_pair = truth != 0
            n_pairs += int(is_pair.sum())
            n_flipped += int((is_pair & (difference * truth <= 0)).sum())
    return n_flipped / n_pairs


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def table(result: dict[str, Any]) -> str:
    columns = {
        "error_rms": "error of V, rms",
        "error_max": "largest",
        "error_rms_of_transformers": "rms of transformers in that dtype, product exact",
        "flipped": "pairs ordered otherwise",
        "flipped_by_transformers": "by transformers",
        "logp_error_max": "error of log π, largest",
    }
    lines = [f"| variant | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, found in result["variants"].items():
        cells = [f"{found[key]:.2g}" if key in found else "-" for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
