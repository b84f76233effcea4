"""Replayed answers of a policy, and answers that it imagines from prefixes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.value import values_at_every_position
from posttrain.rewards.grade import grade
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.schema import EncodedTrajectory, Grade, Problem, TrajectoryRow


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of a prompt and its answer. The value is learned in the states from which the policy went on."""

    problem: Problem
    input_ids: tuple[int, ...]
    prompt_end: int
    start: int  # index of the first token that the policy chose here; what stands before is prompt, or was replayed


def replayed_answer(row: TrajectoryRow, problem: Problem) -> Answer:
    """A sampled row; raises ValueError unless its answer is one span of token ids up to the end."""
    if row.input_ids is None or len(row.action_spans) != 1 or row.action_spans[0][1] != len(row.input_ids):
        raise ValueError(
            f"{row.where}: needed sampled token ids with one answer at their end, as `collect` writes them"
        )
    start = row.action_spans[0][0]
    return Answer(problem, row.input_ids, start, start)


def imagined_answers(
    engine: TransformersEngine, replayed: Sequence[Answer], *, n_each: int, max_new_tokens: int, seed: int
) -> list[Answer]:
    """n_each continuations of every answer by the policy, each from a random place before the answer's last token."""
    rng = random.Random(seed)
    origins = [answer for answer in replayed for _ in range(n_each)]
    cuts = [rng.randrange(answer.start, len(answer.input_ids) - 1) for answer in origins]
    prefixes = [answer.input_ids[:cut] for answer, cut in zip(origins, cuts, strict=True)]
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=1.0, seed=seed)
    samples = engine.sample(prefixes, params, n=1)
    return [
        Answer(answer.problem, (*prefix, *sample.token_ids), answer.prompt_end, cut)
        for answer, prefix, cut, [sample] in zip(origins, prefixes, cuts, samples, strict=True)
    ]


def verified_rewards(answers: Sequence[Answer], tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """1 for a right final answer, else 0."""
    written = [list(answer.input_ids[answer.prompt_end :]) for answer in answers]
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
    grades = [grade(answer.problem, text) for answer, text in zip(answers, texts, strict=True)]
    return [float(of_answer is Grade.CORRECT) for of_answer in grades]


@torch.no_grad()
def predicted_rewards(answers: Sequence[Answer], reward_model: PreTrainedModel, *, pad_id: int) -> list[float]:
    """What a model trained on the last states of graded answers says in those of these ones, cut to [0, 1]."""
    rewards: list[float] = []
    for part in torch.arange(len(answers)).split(256):
        ids = [answers[i].input_ids for i in part.tolist()]
        length = max(map(len, ids))
        padded = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in ids])
        n_tokens = torch.tensor([len(row) for row in ids])
        values = values_at_every_position(reward_model, padded, torch.arange(length) < n_tokens[:, None])
        last_state = values.gather(1, n_tokens[:, None] - 2).squeeze(1)  # the state before the last token
        rewards += last_state.clamp(0, 1).tolist()
    return rewards


def encoded(answers: Sequence[Answer], rewards: Sequence[float]) -> list[EncodedTrajectory]:
    """Rows whose states are those from which the policy went on, with the reward on the last token."""
    return [
        _encode(row_id, answer, range(answer.start, len(answer.input_ids)), reward)
        for row_id, (answer, reward) in enumerate(zip(answers, rewards, strict=True))
    ]


def encoded_ends(answers: Sequence[Answer], rewards: Sequence[float]) -> list[EncodedTrajectory]:
    """Rows whose only state is the last one: what a reward model is trained on."""
    return [
        _encode(row_id, answer, range(len(answer.input_ids) - 1, len(answer.input_ids)), reward)
        for row_id, (answer, reward) in enumerate(zip(answers, rewards, strict=True))
    ]


def _encode(row_id: int, answer: Answer, actions: range, reward: float) -> EncodedTrajectory:
    n_tokens = len(answer.input_ids)
    is_action = tuple(index in actions for index in range(n_tokens))
    by_token = (*(0.0,) * (n_tokens - 1), reward)
    return EncodedTrajectory(row_id, answer.input_ids, is_action, is_action, by_token)
