"""Best-of-n: whole answers sampled independently, the value model picks one."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.sampling import SamplingEngine, SamplingParams
from posttrain.search.scorer import ValueScorer
from posttrain.search.tree import SearchTree


def best_of_n(
    engine: SamplingEngine, scorer: ValueScorer, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int
) -> list[SearchTree]:
    """One tree of depth 1 per prompt with up to n distinct answers, each with V read before its EOS.

    `SearchTree.best` is the answer of highest value. Identical answers are one node with `n_merged` set.
    """
    if params.stop:
        raise ValueError(f"best-of-n samples whole answers, but sampling.stop is {params.stop}: use beam_search for steps")
    trees = [SearchTree(tuple(prompt)) for prompt in prompts]
    for tree, samples in zip(trees, engine.sample(prompts, params, n), strict=True):
        tree.add(tree.nodes[0], samples)
    answers = [(tree, node) for tree in trees for node in tree.nodes[1:]]
    values = scorer.score([tree.scored_prefix(node) for tree, node in answers])
    for (_, node), value in zip(answers, values, strict=True):
        node.value = value
    return trees
