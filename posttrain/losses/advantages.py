"""Advantages of sampled answers within the group of answers to one prompt, before they are put into batches.

All take one number per answer [N] and `group` [N] int64, the prompt of each; groups may differ in size and order.
Apply them to whole groups: a group that is cut by a micro-batch has another mean. A group in which all answers earned
the same has advantages of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

# torch.unique carries no types.
_unique = cast(Callable[..., tuple[Tensor, Tensor, Tensor]], torch.unique)  # pyright: ignore[reportUnknownMemberType]


def group_mean_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """R − mean of the group, the answer itself included (GRPO's baseline, arXiv 2402.03300).

    Including itself shrinks the expected policy gradient by (G − 1)/G for groups of size G.
    """
    index, n_members = _members(reward, group)
    above = _above_lowest(reward, index, n_members)
    return above - (_group_sum(above, index, n_members) / n_members)[index]


def leave_one_out_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """R − mean of the other answers of the group (RLOO, arXiv 2402.14740): the policy gradient stays unbiased.

    Raises ValueError for a group of one, which has no others.
    """
    index, n_members = _members(reward, group)
    if (n_members < 2).any():
        alone = ", ".join(str(int(member)) for member in group[n_members[index] < 2])
        raise ValueError(
            f"group {alone}: holds one answer, leave-one-out needs 2: were answers dropped after sampling?"
        )
    above = _above_lowest(reward, index, n_members)
    others = (_group_sum(above, index, n_members)[index] - above) / (n_members[index] - 1)
    return above - others


def scale_by_group_std(advantage: Tensor, group: Tensor) -> Tensor:
    """Divide by the group's population standard deviation; a group whose advantages are all equal gets 0.

    Weighs prompts by how unevenly they are solved: the expected gradient is no longer that of the mean reward.
    """
    index, n_members = _members(advantage, group)
    above = _above_lowest(advantage, index, n_members)
    centred = above - (_group_sum(above, index, n_members) / n_members)[index]
    std = (_group_sum(centred.square(), index, n_members) / n_members).sqrt()[index]
    return torch.where(std > 0, advantage / torch.where(std > 0, std, 1.0), 0.0)


def _members(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """[N] place of each answer's group in 0 .. n_groups - 1, and the sizes of the groups."""
    if x.shape != group.shape or x.ndim != 1:
        raise ValueError(f"got {tuple(x.shape)} numbers for {tuple(group.shape)} groups; needed one [N] of each")
    _, index, n_members = _unique(group, return_inverse=True, return_counts=True)
    return index, n_members


def _above_lowest(x: Tensor, index: Tensor, n_members: Tensor) -> Tensor:
    # Subtracting the lowest first is exact among equals, so rounding cannot make an advantage of a shared reward.
    lowest = torch.zeros(len(n_members), dtype=x.dtype, device=x.device)
    return x - lowest.scatter_reduce(0, index, x, "amin", include_self=False)[index]


def _group_sum(x: Tensor, index: Tensor, n_members: Tensor) -> Tensor:
    return torch.zeros(len(n_members), dtype=x.dtype, device=x.device).index_add(0, index, x)
