"""The tree that every search grows: one node per step or token, scores on the nodes, answers at the leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from posttrain.sampling import Sample
from posttrain.schema import FinishReason


class NodeState(StrEnum):
    OPEN = "open"  # a partial solution that may still be expanded
    PRUNED = "pruned"  # fell out of the beam
    ANSWER = "answer"  # ended by EOS: in the answer pool
    CUT = "cut"  # ran out of tokens: an answer of last resort, taken only when no other ended


@dataclass(slots=True)
class Node:
    index: int
    parent: int | None  # None only for the root
    depth: int  # steps from the root
    token_ids: tuple[int, ...]  # this step's tokens, delimiter or EOS included; a token-level step is one token
    state: NodeState
    logp: float | None = None  # Σ log π of this step's tokens, nats; None: a search that does not sample
    value: float | None = None  # V at the end of SearchTree.scored_prefix, in reward units; None: not asked for
    score: float = 0.0  # what the search ranks by
    n_merged: int = 1  # how many identical samples this node stands for


@dataclass(slots=True)
class SearchTree:
    """What was searched below one prompt.

    The paper scores `prefix + step + delimiter` at its last real token. An answer is scored before its EOS: V after
    EOS is 0 by definition, and the state in which EOS is chosen is the last one that training sees. An agent's turn is
    no end: with `scores_end` V is read after it, in the afterstate that the environment answers.
    """

    prompt: tuple[int, ...]
    scores_end: bool = False
    nodes: list[Node] = field(default_factory=list)
    n_generated_tokens: int = 0
    n_value_calls: int = 0  # prefixes that a value model was asked for
    is_over_budget: bool = False  # the search would have gone on

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a search needs a prompt of at least one token")
        self.nodes.append(Node(0, None, 0, (), NodeState.OPEN))

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def path(self, node: Node) -> list[Node]:
        """The nodes from the first step to `node`; without the root."""
        steps: list[Node] = []
        while node.parent is not None:
            steps.append(node)
            node = self.nodes[node.parent]
        return steps[::-1]

    def completion(self, node: Node) -> tuple[int, ...]:
        """The tokens from the end of the prompt to the end of `node`."""
        return tuple(token for step in self.path(node) for token in step.token_ids)

    def add(self, parent: Node, samples: Sequence[Sample]) -> list[Node]:
        """Children of `parent`, identical samples merged; their values and scores are still to be set."""
        children: dict[tuple[int, ...], Node] = {}
        for sample in samples:
            if sample.token_ids in children:
                children[sample.token_ids].n_merged += 1
                self.n_generated_tokens += len(sample.token_ids)
            else:
                child = self.grow(parent, sample.token_ids, _state_after(sample), logp=sum(sample.logp))
                children[sample.token_ids] = child
        return list(children.values())

    def grow(
        self,
        parent: Node,
        token_ids: tuple[int, ...],
        state: NodeState,
        *,
        logp: float | None = None,
        score: float = 0.0,
    ) -> Node:
        """One new child of `parent`."""
        node = Node(len(self.nodes), parent.index, parent.depth + 1, token_ids, state, logp, score=score)
        self.nodes.append(node)
        self.n_generated_tokens += len(token_ids)
        return node

    def scored_prefix(self, node: Node) -> tuple[int, ...]:
        """The tokens whose last one is where V of `node` is read."""
        whole = self.prompt + self.completion(node)
        return whole[:-1] if node.state is NodeState.ANSWER and not self.scores_end else whole

    def best(self) -> Node | None:
        """The answer with the highest score; a cut one only when nothing ended; None when nothing left the beam."""
        for state in (NodeState.ANSWER, NodeState.CUT):
            pool = [node for node in self.nodes if node.state is state]
            if pool:
                return max(pool, key=lambda node: node.score)
        return None


def _state_after(sample: Sample) -> NodeState:
    if sample.finish_reason is FinishReason.LENGTH:
        return NodeState.CUT
    return NodeState.ANSWER if sample.stop_string is None else NodeState.OPEN
