"""Which token of an answer earned what: the advantage that a policy implies, beside that of a value model.

    implicit    β (log π − log π_ref)      arXiv 2404.12358 v2, Eq. 10; sums to h, which is R − V(s_0) at the optimum
    explicit    r + V(s') − V(s)           V = 0 after the end; sums to R − V(s_0) whatever V is

s' is the next state in which the policy chooses. Both are in reward units and agree at the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.collate import StateLevel, collate
from posttrain.data.steps import decode_exactly
from posttrain.losses import at_next_state, implicit_advantage, implicit_return
from posttrain.models.actor_critic import path_scores, require_same_vocabulary
from posttrain.models.value import values_at_every_position
from posttrain.schema import EncodedTrajectory, TokenBatch

CHUNK_SIZE = 1024  # positions whose logits exist at a time
SCALE_QUANTILE = 0.95  # of the sizes on a page: a few large credits do not leave all others without colour


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """One action token; V is that of the state before it."""

    index: int  # among the tokens of the row
    logp: float  # log π, nats
    ref_logp: float  # log π_ref, nats
    implicit: float  # reward units
    value: float | None  # V(s); None without a value model
    explicit: float | None  # reward units; None without a value model, or where the reward is not known


@dataclass(frozen=True, slots=True)
class AnswerCredits:
    """One answer, its tokens and the credit of each that the policy chose."""

    where: str  # "train.jsonl:317", with ", chosen" or ", rejected" for one side of a pair
    tokens: tuple[str, ...]  # the text of each token, prompt included
    credits: tuple[TokenCredit, ...]  # in the order of the tokens
    beta: float
    implicit_return: float  # h = β Σ log π/π_ref, reward units
    reward: float | None  # R, summed over the row; None where the row carries none

    def lowest(self) -> TokenCredit:
        """The action token with the lowest implicit advantage."""
        return min(self.credits, key=lambda credit: credit.implicit)

    def explicit_return(self) -> float | None:
        """Σ (r + V(s') − V(s)), which is R − V(s_0); None where a term is not known."""
        steps = [credit.explicit for credit in self.credits]
        return None if None in steps else math.fsum(step for step in steps if step is not None)


@dataclass(frozen=True, slots=True)
class Networks:
    """Who judges an answer."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    value_model: PreTrainedModel | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One number of each token as a colour: neutral at `middle`, the full colours `reach` above and below it."""

    title: str
    number: Callable[[TokenCredit], float | None]
    middle: float
    reach: float

    def position(self, credit: TokenCredit) -> float | None:
        """Where the token lies between −1, low, and 1, high; None where the number is not known."""
        number = self.number(credit)
        if number is None:
            return None
        x = (number - self.middle) / self.reach if self.reach > 0 else 0.0  # no reach: all numbers are the middle
        return min(max(x, -1.0), 1.0)


@torch.no_grad()
def answer_credits(
    encoded: EncodedTrajectory,
    networks: Networks,
    tokenizer: PreTrainedTokenizerBase,
    *,
    beta: float,
    where: str,
    is_rewarded: bool,
) -> AnswerCredits:
    """Score one encoded answer; without `is_rewarded` its last reward is unknown, and so is the last explicit step.

    Raises ValueError when the vocabularies of the networks differ.
    """
    device = networks.policy.device
    batch = TokenBatch(
        **{name: x.to(device) for name, x in collate([encoded], pad_id=0, states=StateLevel.TOKEN).items()}
    )
    scores = path_scores(networks.policy, networks.reference, batch, chunk_size=CHUNK_SIZE)
    implicit = implicit_advantage(scores.logp, scores.ref_logp, batch.is_action, beta=beta)
    n_actions = int(batch.is_action.sum())
    values, steps = _values_and_steps(networks, batch) or ([None] * n_actions, [None] * n_actions)
    if not is_rewarded:
        steps[-1] = None
    columns = (scores.logp, scores.ref_logp, implicit)
    credits = zip(
        [index for index, is_action in enumerate(encoded.is_action) if is_action],
        *(column[batch.is_action].tolist() for column in columns),
        values,
        steps,
        strict=True,
    )
    return AnswerCredits(
        where=where,
        tokens=tuple(decode_exactly(tokenizer, (token,)) for token in encoded.input_ids),
        credits=tuple(TokenCredit(*numbers) for numbers in credits),
        beta=beta,
        implicit_return=implicit_return(scores, beta=beta).item(),
        reward=sum(encoded.reward) if is_rewarded else None,
    )


def panels_of(answers: Sequence[AnswerCredits]) -> tuple[Panel, ...]:
    """The colourings that these answers have numbers for, on scales that all of them share.

    An advantage reaches its full colour at the quantile SCALE_QUANTILE of its sizes; V at 0 and 1.
    """
    credits = [credit for answer in answers for credit in answer.credits]
    implicit = Panel("implicit advantage", lambda c: c.implicit, 0.0, _reach([c.implicit for c in credits]))
    if all(credit.value is None for credit in credits):
        return (implicit,)
    steps = [c.explicit for c in credits if c.explicit is not None]
    explicit = Panel("explicit advantage", lambda c: c.explicit, 0.0, _reach(steps))
    return implicit, explicit, Panel("V before the token", lambda c: c.value, 0.5, 0.5)


def _values_and_steps(networks: Networks, batch: TokenBatch) -> tuple[list[float], list[float | None]] | None:
    """V and r + V(s') − V(s) of each action; None without a value model."""
    if networks.value_model is None:
        return None
    require_same_vocabulary(networks.policy, networks.value_model, "value model", "both read the same token ids")
    value = values_at_every_position(networks.value_model, batch.input_ids, batch.is_token)[:, :-1]
    step: Tensor = batch.reward + at_next_state(value, batch.is_action) - value
    return value[batch.is_action].tolist(), step[batch.is_action].tolist()


def _reach(numbers: Sequence[float]) -> float:
    """The nearest-rank quantile of the sizes; 0 where there is none."""
    sizes = sorted(map(abs, numbers))
    return sizes[math.ceil(SCALE_QUANTILE * len(sizes)) - 1] if sizes else 0.0
