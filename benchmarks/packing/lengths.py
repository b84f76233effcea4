"""Lengths of GSM8K's human solutions in tokens of SmolLM2-135M-Instruct, kept as numbers beside this file.

    python -m benchmarks.packing.lengths FOLDER_OF_SMOLLM2

writes them anew from `gsm8k/train.jsonl`; docs of `posttrain.models.smollm2` and data/gsm8k say how to get the two.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.data.solutions import read_solutions
from posttrain.pretrained import load_tokenizer

LENGTHS = Path(__file__).with_name("gsm8k_lengths.json")
SOURCE = "gsm8k/train.jsonl"
N_ROWS = 1024  # the first ones of the file
N_DRAWS = 201

Lengths = tuple[int, int]  # tokens of the prompt, tokens of the answer with its EOS


def read_lengths() -> list[Lengths]:
    return [(n_prompt, n_answer) for n_prompt, n_answer in json.loads(LENGTHS.read_text())["rows"]]


def draw(n_rows: int, *, seed: int) -> list[Lengths]:
    """The lengths of `n_rows` different solutions."""
    return random.Random(seed).sample(read_lengths(), n_rows)


def padding_factor(batch: Sequence[Lengths]) -> float:
    """Positions of the padded batch / its tokens: how many times the work of packing padding does."""
    lengths = [n_prompt + n_answer for n_prompt, n_answer in batch]
    return len(lengths) * max(lengths) / sum(lengths)


def typical_batch(n_rows: int) -> list[Lengths]:
    """Of N_DRAWS drawn batches the one with the median padding factor."""
    return sorted((draw(n_rows, seed=seed) for seed in range(N_DRAWS)), key=padding_factor)[N_DRAWS // 2]


def main(tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = [(str(row.prompt), str(row.completion)) for row in read_solutions(SOURCE, limit=N_ROWS)]
    rows = [[len(tokenizer(prompt).input_ids), len(tokenizer(answer).input_ids) + 1] for prompt, answer in texts]
    lines = ",\n".join(json.dumps(rows[i : i + 16])[1:-1] for i in range(0, len(rows), 16))
    LENGTHS.write_text(f'{{"source": "{SOURCE}", "tokenizer": "SmolLM2-135M-Instruct", "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(sys.argv[1])
