"""Unread tokens of many rows as few forward passes: what goes on from one stored prefix is read side by side.

A row of a pass is a stored path and, after it, the unread tokens that go on from it in any number of ways. Under a
mask by which a token sees its own prefix alone they are read as if each way stood in a row of its own, but once where
ways are still the same, and without padding one way to the length of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from posttrain.models.token_trie import ROOT

MOST_SIDE_BY_SIDE = 512  # tokens: each of them is compared with all, so that a wide group costs more than it saves
MOST_PADDING = 4  # times: groups that are shorter than the longest by more are read in a pass of their own


@dataclass(frozen=True, slots=True)
class Chain:
    """Tokens of a row that are to be read one after another."""

    path: list[int]  # slots of the tokens before them
    slots: list[int]
    token_ids: list[int]


@dataclass(slots=True)
class Group:
    """Chains that go on from the end of one stored path, or from one another."""

    past: list[int]  # slots of the stored path
    chains: list[Chain] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)  # slot -> which of the group's unread tokens it is

    def add(self, chain: Chain) -> None:
        self.chains.append(chain)
        for slot in chain.slots:
            self.place[slot] = len(self.place)


@dataclass(frozen=True, slots=True)
class PassInputs:
    """G groups, n stored and N unread tokens in the longest; ROOT, token 0 at position 0, pads the others."""

    past: NDArray[np.int64]  # [G, n] slots
    slots: NDArray[np.int64]  # [G, N]
    token_ids: NDArray[np.int64]  # [G, N]
    position: NDArray[np.int64]  # [G, N]
    is_visible: NDArray[np.bool_]  # [G, N, n + N] to each unread token: its prefix and itself


def forward_passes(chains: Sequence[Chain]) -> Iterator[list[Group]]:
    """The groups of each pass, in an order in which all is read before what goes on from it."""
    while chains:
        unread = {slot for chain in chains for slot in chain.slots}
        latest: dict[int, Group] = {}  # end of a stored path -> its group that still takes chains
        group_of: dict[int, Group] = {}  # slot -> the group in which it is read
        groups, waiting = [], []
        for chain in chains:
            end = chain.path[-1] if chain.path else ROOT
            group = group_of.get(end) if end in unread else latest.get(end)
            if group is not None and len(group.place) + len(chain.slots) > MOST_SIDE_BY_SIDE:
                group = None
            if group is None and end in unread:
                waiting.append(chain)
                continue
            if group is None:
                group = latest[end] = Group(chain.path)
                groups.append(group)
            group.add(chain)
            group_of.update(dict.fromkeys(chain.slots, group))
        yield from _of_like_size(groups)
        chains = waiting


def pass_inputs(groups: Sequence[Group]) -> PassInputs:
    """What a trunk is given to read `groups` in one pass."""
    n_past, n_new = (max(map(len, lists)) for lists in zip(*((g.past, g.place) for g in groups), strict=True))
    past = np.full((len(groups), n_past), ROOT)
    slots, token_ids, position = (np.zeros((len(groups), n_new), np.int64) for _ in range(3))
    is_visible = np.zeros((len(groups), n_new, n_past + n_new), bool)
    is_visible[:, range(n_new), range(n_past, n_past + n_new)] = True  # padding sees itself: no softmax over nothing
    for g, group in enumerate(groups):
        past[g, : len(group.past)] = group.past
        is_visible[g, : len(group.place), : len(group.past)] = True
        for chain in group.chains:
            own = [group.place[slot] for slot in chain.path[len(group.past) :] + chain.slots]
            new = own[-len(chain.slots) :]
            slots[g, new], token_ids[g, new] = chain.slots, chain.token_ids
            position[g, new] = np.arange(len(chain.path), len(chain.path) + len(new))
            is_prefix = np.tri(len(new), len(own), len(own) - len(new), dtype=bool)
            is_visible[g][np.ix_(new, n_past + np.array(own))] = is_prefix
    return PassInputs(past, slots, token_ids, position, is_visible)


def _of_like_size(groups: Sequence[Group]) -> Iterator[list[Group]]:
    longest_first = sorted(groups, key=lambda group: len(group.place), reverse=True)
    while longest_first:
        longest = len(longest_first[0].place)
        n = sum(len(group.place) * MOST_PADDING >= longest for group in longest_first)
        yield longest_first[:n]
        longest_first = longest_first[n:]
