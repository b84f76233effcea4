"""Small networks of several seeds as one: weights have the seed as their first axis, a product is one `bmm`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from posttrain.control.worlds.streams import Streams

ABSOLUTE_DECAY = 1e-6  # each update takes this share of every weight, whatever the learning rate
_CUT = 2.0  # initial weights are normal, cut at so many deviations


class StackedMLP(nn.Module):
    """One multilayer perceptron with elu per seed; no seed's weights touch another's."""

    def __init__(self, streams: Streams, sizes: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(_initial_weight(streams, n_in, n_out) for n_in, n_out in pairs)
        self.biases = nn.ParameterList(torch.zeros(len(streams), 1, n_out) for _, n_out in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """[S, B, sizes[-1]] for x [S, B, sizes[0]]."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = nn.functional.elu(x)
        return x


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """The paper's Adam: β (0.9, 0.99), ε 1e-5, and a decay that the learning rate does not scale.

    AdamW multiplies its decay by the learning rate, so it is divided by it here.
    """
    decay = ABSOLUTE_DECAY / learning_rate
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), eps=1e-5, weight_decay=decay, fused=True)


def _initial_weight(streams: Streams, n_in: int, n_out: int) -> Tensor:
    """[S, n_in, n_out] cut normal of deviation 1/sqrt(n_in) before the cut."""
    low = 0.5 * (1 + math.erf(-_CUT / math.sqrt(2)))
    p = low + (1 - 2 * low) * streams.uniform(n_in, n_out)
    return math.sqrt(2 / n_in) * torch.erfinv(2 * p - 1)
