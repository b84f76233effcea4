"""A two-layer Llama over eleven words that has seen the form of an answer, its value model, and problems for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.models.value import value_model_from_policy

WORDS = ("<pad>", "<eos>", "\n", "####", "0", "1", "2", "3", "a", "+1", "+2")
STARTS = ("0 +1", "1 +2", "2 +1 +1", "3 +2", "0 +2 +2", "1 +1 +2 +1")  # of different lengths: batches are padded


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word, the first two <pad> and <eos>; words are separated by one space, a line break is a word."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(" "), behavior="removed")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def write_policy(folder: Path, *, seed: int = 0) -> Path:
    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    _show_answers(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _show_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A few steps on random guesses, so that most samples can be read and those to one problem differ."""
    guesses = [f"{start} \n a {n} \n #### {n} <eos>" for start in STARTS for n in range(4)]
    rows = [torch.tensor([tokenizer(guess)["input_ids"]]) for guess in guesses]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        for row in rows:
            model(input_ids=row, labels=row).loss.div(len(rows)).backward()
        optimizer.step()


def write_value_model(folder: Path, policy: Path, *, seed: int = 1) -> Path:
    """The policy's trunk under a random head, so that different prefixes have different values."""
    model = value_model_from_policy(policy, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def write_problems(path: Path, starts: tuple[str, ...] = STARTS) -> Path:
    """Problem rows whose answer is the sum's remainder after division by 4."""
    rows = [
        {
            "task_id": f"sum/{i}",
            "prompt": f"{start} \n",
            "answer": str(sum(map(int, start.split())) % 4),
            "grader": "final_number",
        }
        for i, start in enumerate(starts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@torch.no_grad()
def value_of(value_model, ids: list[int]) -> float:
    """V of one unpadded prefix: the head on the trunk's last state."""
    hidden = value_model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(hidden @ value_model.score.weight[0])
