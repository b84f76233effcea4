"""How many directions a matrix of features uses."""

from __future__ import annotations

import torch
from torch import Tensor


def numerical_rank(features: Tensor, *, threshold: float) -> int:
    """Singular values of features / √N above `threshold`, features [N, D] of N samples.

    (Lyle et al. 2022, arXiv 2204.09560.) It depends on the scale of the features, `effective_rank` does not.
    """
    return int((_singular_values(features) > threshold).sum())


def effective_rank(features: Tensor, *, delta: float) -> int:
    """The smallest k whose k largest singular values sum to a share 1 − delta of all (srank, arXiv 2010.14498).

    0 for features that are all 0. With delta 0.01 directions of 1 % of the sum together do not count.
    """
    values = _singular_values(features)
    total = values.sum()
    if total == 0:
        return 0
    # The last partial sum may be a rounding short of the total.
    return min(int((values.cumsum(0) < (1 - delta) * total).sum()) + 1, len(values))


def _singular_values(features: Tensor) -> Tensor:
    """[min(N, D)] of features / √N, falling, in float64."""
    if features.dim() != 2 or len(features) == 0:
        raise ValueError(f"features are {tuple(features.shape)}, needed [N, D] with at least one sample")
    return torch.linalg.svdvals(features.detach().double() / len(features) ** 0.5)
