"""Which rows of tokens are stored: a trie of single tokens, so that equal beginnings are stored once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROOT = 0  # the slot of the empty row, which stores nothing

_SHARE_EVICTED = (
    1 / 16
)  # finding what was used least recently sorts all slots, so it frees some for the next calls too


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class TokenTrie:
    """At most `max_tokens` tokens of stored rows, in slots 1 .. max_tokens.

    A slot stands for a token after everything before it: two rows share the slots of their common beginning and no
    others. A call of `begin` opens a turn. What is found or added in a turn stays until the next one; the rest makes
    room when room is needed, least recently used first, and a token never before those that follow it.
    """

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, needs at least 1")
        self.max_tokens = max_tokens
        self._child: dict[tuple[int, int], int] = {}  # (slot, next token) -> its slot
        self._free = list(range(max_tokens, ROOT, -1))
        n_slots = max_tokens + 1
        self._parent, self._token, self._last_used = (np.zeros(n_slots, np.int64) for _ in range(3))
        self._depth, self._n_children = (np.zeros(n_slots, np.int64) for _ in range(2))  # depth 0: free
        self._is_held = np.zeros(n_slots, bool)  # a row ends here that was not forgotten
        self._turn = 0

    @property
    def n_tokens(self) -> int:
        """Tokens stored now."""
        return self.max_tokens - len(self._free)

    def begin(self) -> None:
        """Open a turn: what only earlier ones used may make room from here on."""
        self._turn += 1

    def find(self, row: Sequence[int]) -> list[int]:
        """Slots of the longest beginning of `row` that is stored, and note its use."""
        path = self._path(row)
        self._last_used[path] = self._turn
        return path

    def add(self, path: Sequence[int], token_ids: Sequence[int]) -> list[int]:
        """New slots for tokens of which the first is not stored after `path`, a path found in this turn.

        Raises ValueError when what this turn uses leaves no room for them.
        """
        n = len(token_ids)
        if n == 0:
            return []
        self._make_room(n)
        slots = [self._free.pop() for _ in range(n)]
        parents = [path[-1] if path else ROOT, *slots[:-1]]
        self._child.update(zip(zip(parents, token_ids, strict=True), slots, strict=True))
        self._parent[slots], self._token[slots] = parents, token_ids
        self._depth[slots] = np.arange(len(path) + 1, len(path) + n + 1)
        self._n_children[parents] += 1
        self._last_used[slots] = self._turn
        return slots

    def hold(self, slot: int) -> None:
        """A row ends here: its tokens are wanted until it is forgotten or they make room."""
        self._is_held[slot] = True

    def forget(self, row: Sequence[int]) -> None:
        """Free the tokens of `row` that no other held row begins with; nothing if they are gone already."""
        path = self._path(row)
        if len(path) == len(row):
            self._is_held[path[-1:]] = False
            self.drop(path)

    def drop(self, path: Sequence[int]) -> None:
        """Free the end of a path up to the last slot that is held or has another way on."""
        for slot in reversed(path):
            if self._n_children[slot] or self._is_held[slot]:
                return
            self._release(slot)

    def _path(self, row: Sequence[int]) -> list[int]:
        path, slot = [], ROOT
        for token in row:
            slot = self._child.get((slot, token))
            if slot is None:
                break
            path.append(slot)
        return path

    def _make_room(self, n: int) -> None:
        n_missing = n - len(self._free)
        if n_missing <= 0:
            return
        old = np.flatnonzero((self._depth > 0) & (self._last_used < self._turn))
        if len(old) < n_missing:
            raise ValueError(
                f"{n} more tokens are to be stored beside {self.n_tokens - len(old)} that the same call uses, and "
                f"max_tokens is {self.max_tokens}: raise it"
            )
        # Whoever uses a token uses those before it, so none of them was last used earlier: this order is leaves first.
        order = np.lexsort((-self._depth[old], self._last_used[old]))
        for slot in old[order[: max(n_missing, int(len(old) * _SHARE_EVICTED))]].tolist():
            self._release(slot)

    def _release(self, slot: int) -> None:
        parent = int(self._parent[slot])
        del self._child[parent, int(self._token[slot])]
        self._n_children[parent] -= 1
        self._depth[slot], self._is_held[slot] = 0, False
        self._free.append(slot)
