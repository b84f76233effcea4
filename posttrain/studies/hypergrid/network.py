"""The network of the study: a one-hot cell in, numbers of its actions out."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from posttrain.control.gflownet.hypergrid import Hypergrid


def cell_network(grid: Hypergrid, n_outputs: int, *, width: int, generator: torch.Generator) -> nn.Sequential:
    """Two hidden layers of LeakyReLU, as the paper's. Weights are torch's uniform ones, drawn from `generator`."""
    sizes = (grid.n_dims * grid.side, width, width, n_outputs)
    layers = [nn.Linear(*size, device="meta").to_empty(device="cpu") for size in itertools.pairwise(sizes)]
    for layer in layers:
        bound = layer.in_features**-0.5
        for weights in (layer.weight, layer.bias):
            nn.init.uniform_(weights, -bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.LeakyReLU(), layers[1], nn.LeakyReLU(), layers[2])
