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
    places: tuple[int, ...] = (0,)  # among the samples of its parent: identical ones are one node

    @property
    def n_merged(self) -> int:
        """How many identical samples this node stands for."""
        return len(self.places)


@dataclass(slots=True)
class SearchTree:
    """What was searched below one prompt.

    The paper scores `prefix + step + delimiter` at its last real token. An answer is scored before its EOS: V after
    EOS is 0 by definition, and the state in which EOS is chosen is the last one that training sees. An agent's turn is
    no end: with `scores_end` V is read after it, in the afterstate that the environment answers.
    """

    prompt: tuple[int, ...]
    scores_end: bool = False
    max_answer_tokens: int | None = None  # longer answers are cut there; None: no bound
    nodes: list[Node] = field(default_factory=list)
    n_generated_tokens: int = 0
    n_value_calls: int = 0  # prefixes that a value model was asked for
    is_over_budget: bool = False  # the search would have gone on
    elected: int | None = None  # the node that a vote chose; None: the best by score

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
        """The children of `parent` that these samples are, each once; values and scores are still to be set.

        Samples that are identical, to one another or to a child that was there, are one node.
        """
        children = {node.token_ids: node for node in self.nodes[parent.index + 1 :] if node.parent == parent.index}
        n_before = sum(child.n_merged for child in children.values())
        n_left = None if self.max_answer_tokens is None else self.max_answer_tokens - len(self.completion(parent))
        added: dict[int, Node] = {}
        for place, sample in enumerate(samples, start=n_before):
            token_ids = sample.token_ids[:n_left]
            child = children.get(token_ids)
            if child is None:
                child = self.grow(parent, token_ids, _state_after(sample, n_left), logp=sum(sample.logp[:n_left]))
                child.places = (place,)
                self.n_generated_tokens += len(sample.token_ids) - len(token_ids)
            else:
                child.places += (place,)
                self.n_generated_tokens += len(sample.token_ids)
            children[token_ids] = added[child.index] = child
        return list(added.values())

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
        """The answer that was elected, or that has the highest score; None when nothing left the beam.

        By score a cut answer is taken only when none ended.
        """
        if self.elected is not None:
            return self.nodes[self.elected]
        for state in (NodeState.ANSWER, NodeState.CUT):
            pool = [node for node in self.nodes if node.state is state]
            if pool:
                return max(pool, key=lambda node: node.score)
        return None


def _state_after(sample: Sample, n_left: int | None) -> NodeState:
    """Of a node for `sample`, below which n_left tokens were left."""
    n_tokens = len(sample.token_ids)
    if sample.finish_reason is FinishReason.LENGTH or (n_left is not None and n_tokens > n_left):
        return NodeState.CUT
    if sample.stop_string is None:
        return NodeState.ANSWER
    return NodeState.CUT if n_tokens == n_left else NodeState.OPEN
