"""Small agents without a penalty, and their states as lists."""

import torch

from posttrain.losses.term import Term
from posttrain.studies.beer.agents import AgentConfig

COMMON = AgentConfig(hidden_sizes=(16, 16), learning_rate=1e-2, discount=0.9, tau=0.1)


def no_penalty(values, online) -> tuple[Term, ...]:
    return ()


def flat(state: object) -> list[object]:
    """All leaves of a state, tensors as lists, in order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for entry in state for leaf in flat(entry)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]
