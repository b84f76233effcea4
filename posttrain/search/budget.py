"""What one search may spend, and what of it is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from posttrain.sampling import SamplingParams
from posttrain.search.asks import Asking, expand
from posttrain.search.tree import Node, NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one search; None is none. Tokens and value calls are never exceeded, time by one round at most."""

    tokens: int | None = None  # sampled, pruned branches included
    value_calls: int | None = None  # prefixes scored
    milliseconds: int | None = None  # from the search's first ask

    def __post_init__(self) -> None:
        for name in ("tokens", "value_calls", "milliseconds"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"budget of {name} is {bound}, needs at least 1, or none")

    def start(self) -> Purse:
        """Begin to spend; time runs from now."""
        ends_at = None if self.milliseconds is None else time.monotonic() + self.milliseconds / 1000
        return Purse(self, ends_at)


@dataclass(frozen=True, slots=True)
class Purse:
    budget: Budget
    ends_at: float | None  # time.monotonic seconds

    def expand(
        self, tree: SearchTree, nodes: Sequence[Node], params: SamplingParams, n: int, streams: Sequence[int]
    ) -> Asking:
        """`asks.expand` with its tokens cut down to what is left; no nodes when nothing is, which the tree says."""
        n_tokens = self._affordable_tokens(tree, params.max_new_tokens, len(nodes) * n)
        if n_tokens < 1:
            tree.is_over_budget = True
            return []
        grown = yield from expand(tree, nodes, replace(params, max_new_tokens=n_tokens), n, streams)
        if n_tokens < params.max_new_tokens and any(node.state is NodeState.CUT for node in grown):
            tree.is_over_budget = True
        return grown

    def _affordable_tokens(self, tree: SearchTree, n_tokens: int, n_samples: int) -> int:
        """Tokens that each of n_samples more may take; 0: none."""
        budget = self.budget
        if self.ends_at is not None and time.monotonic() >= self.ends_at:
            return 0
        if budget.value_calls is not None and tree.n_value_calls + n_samples > budget.value_calls:
            return 0
        if budget.tokens is None:
            return n_tokens
        return min(n_tokens, (budget.tokens - tree.n_generated_tokens) // n_samples)
