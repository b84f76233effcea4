"""A random two-layer Llama over characters, with and without a chat template, and a policy that says a plan."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason

SPECIAL = ("<pad>", "<bos>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def character_tokenizer(*, chat: bool) -> PreTrainedTokenizerFast:
    """One token per character; the EOS is <|im_end|> with a chat template, and never sampled as text without one."""
    pieces = (*SPECIAL, *string.ascii_letters, *string.digits, *"\n .,:>-=!'/(){}?;<|_")
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|?[a-z_]+\|?>|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False, **names
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def random_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def write_random_policy(folder: Path, *, chat: bool) -> Path:
    tokenizer = character_tokenizer(chat=chat)
    random_policy(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class RecordingEngine:
    """Another engine's answers, kept beside what was asked."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.asked: list[tuple[list[int], Sample]] = []

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int, *, streams=None):
        found = self.engine.sample(prompts, params, n, streams=streams)
        self.asked += [(list(prompt), samples[0]) for prompt, samples in zip(prompts, found, strict=True)]
        return found


class PlanEngine:
    """A policy that says given replies one after another, to every prompt; the last one over and over."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, replies: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.replies = list(replies)

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int, *, streams=None):
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        ids = tuple(self.tokenizer(reply, add_special_tokens=False)["input_ids"])
        reason = FinishReason.STOP if len(ids) <= params.max_new_tokens else FinishReason.LENGTH
        ids = ids[: params.max_new_tokens]
        return [[Sample(ids, (-0.5,) * len(ids), reason, None)] * n for _ in prompts]
