"""Whole answers as text, whoever writes them: an engine in this process, or a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.evaluation.remote import Completion, RemoteModel
from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import Message, Problem

SEED_STRIDE = 1_000_003  # between the seeds of two runs, so that their problems share none


class Completer(Protocol):
    def complete(
        self, problems: Sequence[Problem], streams: Sequence[int], params: SamplingParams, n: int
    ) -> list[list[Completion]]:
        """n answers to each problem's prompt; `streams` as in SamplingEngine.sample."""
        ...


@dataclass(frozen=True, slots=True)
class LocalCompleter:
    """An engine in this process, between its tokenizer's two directions."""

    engine: SamplingEngine
    tokenizer: PreTrainedTokenizerBase

    def complete(
        self, problems: Sequence[Problem], streams: Sequence[int], params: SamplingParams, n: int
    ) -> list[list[Completion]]:
        prompts = [tuple(encode_prompt(problem.prompt, self.tokenizer)) for problem in problems]
        drawn = self.engine.sample(prompts, params, n, streams=streams)
        return [[as_completion(sample, self.tokenizer) for sample in samples] for samples in drawn]


@dataclass(frozen=True, slots=True)
class RemoteCompleter:
    """A server; its prompts are texts, or with `is_chat` conversations as JSON."""

    model: RemoteModel
    is_chat: bool

    def complete(
        self, problems: Sequence[Problem], streams: Sequence[int], params: SamplingParams, n: int
    ) -> list[list[Completion]]:
        seeds = [(params.seed * SEED_STRIDE + stream) % 2**31 for stream in streams]
        prompts = [problem.prompt for problem in problems]
        if not self.is_chat:
            return self.model.complete(prompts, params, n, seeds=seeds)
        conversations = [[Message(**message) for message in json.loads(prompt)] for prompt in prompts]
        return self.model.chat(conversations, params, n, seeds=seeds)


def as_completion(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Completion:
    """A sample as text."""
    text = str(tokenizer.decode(list(sample.token_ids), skip_special_tokens=True))
    return Completion(text, sample.finish_reason, len(sample.token_ids))
