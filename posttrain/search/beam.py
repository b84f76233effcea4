"""Step-level beam search guided by the value model (OREO, arXiv 2412.16145 v2, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from posttrain.sampling import SamplingEngine, SamplingParams
from posttrain.search.scorer import ValueScorer
from posttrain.search.tree import Node, NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class BeamParams:
    width: int  # partial solutions kept; the paper's B
    expansions: int  # continuations sampled from each; the paper uses B again
    max_steps: int  # the paper allows 20
    sampling: SamplingParams  # of one step: its `stop` strings are the step delimiters

    def __post_init__(self) -> None:
        if min(self.width, self.expansions, self.max_steps) < 1:
            raise ValueError(
                f"width {self.width}, expansions {self.expansions}, max_steps {self.max_steps}: each needs 1 or more"
            )
        if not self.sampling.stop:
            raise ValueError("a step-level search needs step delimiters: set sampling.stop, e.g. ('\\n',)")
        if self.sampling.temperature == 0 and self.expansions > 1:
            raise ValueError("greedy expansions of one prefix are all the same: set sampling.temperature above 0")


def beam_search(
    engine: SamplingEngine, scorer: ValueScorer, prompts: Sequence[Sequence[int]], params: BeamParams
) -> list[SearchTree]:
    """One tree per prompt, all grown together so that the engine's batch stays full.

    Each round samples `expansions` steps from every open node, reads V of each candidate at its last token, moves
    those that ended to the answer pool and keeps the `width` open candidates of highest V. The width does not shrink
    when answers leave. `SearchTree.best` is the answer; a tree without one is a wrong answer, not an error.
    """
    trees = [SearchTree(tuple(prompt)) for prompt in prompts]
    beams: list[list[Node]] = [[tree.nodes[0]] for tree in trees]
    for step in range(params.max_steps):
        if not any(beams):
            break
        candidates = _expand(engine, trees, beams, params, step)
        _set_values(scorer, trees, candidates)
        beams = [_keep_best(nodes, params.width) for nodes in candidates]
    for beam in beams:
        for node in beam:
            node.state = NodeState.CUT
    return trees


def _expand(
    engine: SamplingEngine, trees: list[SearchTree], beams: list[list[Node]], params: BeamParams, step: int
) -> list[list[Node]]:
    """The children of every beam, one list per tree."""
    prefixes = [tree.prompt + tree.completion(node) for tree, beam in zip(trees, beams, strict=True) for node in beam]
    # Every round draws from streams of its own; the same seed again would repeat the random numbers of the last round.
    sampling = replace(params.sampling, seed=params.sampling.seed * params.max_steps + step)
    grown = iter(engine.sample(prefixes, sampling, params.expansions))
    return [
        [child for parent in beam for child in tree.add(parent, next(grown))]
        for tree, beam in zip(trees, beams, strict=True)
    ]


def _set_values(scorer: ValueScorer, trees: list[SearchTree], candidates: list[list[Node]]) -> None:
    pairs = [(tree, node) for tree, nodes in zip(trees, candidates, strict=True) for node in nodes]
    values = scorer.score([tree.scored_prefix(node) for tree, node in pairs])
    for (_, node), value in zip(pairs, values, strict=True):
        node.value = value


def _keep_best(candidates: list[Node], width: int) -> list[Node]:
    open_nodes = sorted((n for n in candidates if n.state is NodeState.OPEN), key=lambda n: n.value, reverse=True)
    for node in open_nodes[width:]:
        node.state = NodeState.PRUNED
    return open_nodes[:width]
