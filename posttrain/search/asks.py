"""What a search asks for while it runs.

A search is a generator. It yields what it needs of the policy or the value model and is sent the answer, so the same
lines run in lockstep over a file of problems (`run_searches`) and as one of many tasks of a server. It holds no
network, thread or clock of its own, and its random streams hang on its problem and its tree alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.sampling import Sample, SamplingParams
from posttrain.search.tree import Node, SearchTree


@dataclass(frozen=True, slots=True)
class Expand:
    """Continue each prefix n times. Answered by list[list[Sample]], in the order of the prefixes."""

    prefixes: tuple[tuple[int, ...], ...]
    params: SamplingParams
    n: int
    streams: tuple[int, ...]  # of each prefix, as in SamplingEngine.sample


@dataclass(frozen=True, slots=True)
class Score:
    """V of each sequence at its last token. Answered by list[float]."""

    sequences: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Round:
    """A round is over: something to show. Answered by None."""

    tree: SearchTree  # as it is now; it goes on growing
    dropped: tuple[tuple[int, ...], ...]  # prompt and completion of what was pruned: no ask will extend them


Search = Generator[Expand | Score | Round, Any, SearchTree]
Asking = Generator[Expand | Score | Round, Any, list[Node]]  # a part of a search, which ends with nodes


def expand(tree: SearchTree, nodes: Sequence[Node], params: SamplingParams, n: int, streams: Sequence[int]) -> Asking:
    """The children of `nodes` from n samples of each, in order."""
    prefixes = tuple(tree.prompt + tree.completion(node) for node in nodes)
    grown: list[list[Sample]] = yield Expand(prefixes, params, n, tuple(streams))
    return [child for parent, samples in zip(nodes, grown, strict=True) for child in tree.add(parent, samples)]


def read_values(tree: SearchTree, nodes: Sequence[Node]) -> Asking:
    """V of each node, set on it."""
    values: list[float] = yield Score(tuple(tree.scored_prefix(node) for node in nodes))
    tree.n_value_calls += len(nodes)
    for node, value in zip(nodes, values, strict=True):
        node.value = value
    return list(nodes)


def branch_stream(stream: int, *branch: int) -> int:
    """The random stream of one branch of a search whose own stream is `stream`: 64 bits of a hash."""
    digest = hashlib.sha256(struct.pack(f"<{1 + len(branch)}Q", stream, *branch)).digest()
    return int.from_bytes(digest[:8], "little")
