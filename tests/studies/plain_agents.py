"""Small agents with and without a penalty, and their states as lists."""

import torch

from posttrain.losses.term import Term
from posttrain.studies.beer.agents import AgentConfig
from posttrain.studies.beer.penalties import Passes, Penalty, PenaltyName, make_penalty, random_heads

COMMON = AgentConfig(hidden_sizes=(16, 16), learning_rate=1e-2, discount=0.9, tau=0.1)


def no_penalty(values, passes: Passes) -> tuple[Term, ...]:
    return ()


def plain_penalty(name: PenaltyName, *, coef: float, width: int = 16) -> Penalty:
    """At the discount 0.9, on features [N, width]."""
    return make_penalty(name, coef=coef, discount=0.9, heads=random_heads(3, width, seed=0), scale=1.0)


def flat(state: object) -> list[object]:
    """All leaves of a state, tensors as lists, in order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for entry in state for leaf in flat(entry)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]
