"""Features, heads and rewards for tests of penalties on features, in float64."""

from dataclasses import replace

import torch
from torch import Tensor

from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge

GAMMA = 0.9
MODES = (beer_cosine, beer_hinge)


def draw(n: int = 64, d: int = 16, *, seed: int = 0, bias: float = 0.0, consistent: bool = False) -> FeatureValues:
    """Non-negative features as behind a ReLU; with `consistent` the reward that makes the residual 0."""
    generator = torch.Generator().manual_seed(seed)
    phi, next_phi = (torch.rand(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(d, generator=generator, dtype=torch.float64)
    carry = torch.full((n,), GAMMA, dtype=torch.float64)
    inflow = torch.randn(n, generator=generator, dtype=torch.float64)
    b = torch.tensor(bias, dtype=torch.float64)
    if consistent:
        inflow = phi @ weight + b - carry * (next_phi @ weight + b)
    return FeatureValues(phi, next_phi, weight, b, inflow, carry)


def firing(n: int = 64, *, seed: int = 0) -> FeatureValues:
    """Rewards so large that every row violates the bound."""
    v = draw(n, seed=seed)
    return replace(v, inflow=v.inflow.sign() * 20 * v.weight.norm())


def penalty(mode, v: FeatureValues) -> Tensor:
    return mode(v, coef=1.0, unit="segment")[0].value


def metric(v: FeatureValues, name: str) -> Tensor:
    return next(term.value for term in beer_hinge(v, coef=1.0, unit="segment") if term.name == f"beer/{name}")


def paper_bound(v: FeatureValues) -> tuple[Tensor, Tensor]:
    """cos and U of Remark 1, row by row in Python numbers."""
    rows = []
    for phi, next_phi, reward, gamma in zip(
        v.phi.tolist(), v.next_phi.tolist(), v.effective_inflow().tolist(), v.carry.tolist(), strict=True
    ):
        a, b = sum(x * x for x in phi), sum(x * x for x in next_phi)
        w2 = sum(x * x for x in v.weight.tolist())
        norms = (a * b) ** 0.5
        product = sum(x * y for x, y in zip(phi, next_phi, strict=True))
        rows.append((product / norms, (a + gamma**2 * b - reward**2 / w2) / (2 * gamma * norms)))
    cosine, upper = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return cosine, upper
