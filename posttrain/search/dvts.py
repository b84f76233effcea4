"""Diverse verifier tree search: independent greedy sub-trees instead of one beam that one of them would fill.

After the search of that name by Beeching, Tunstall and Rush ("Scaling test-time compute with open models", 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from posttrain.search.asks import Round, Search, branch_stream
from posttrain.search.beam import BeamParams, keep_best
from posttrain.search.tree import Node, NodeState


def dvts(prompt: Sequence[int], params: BeamParams, *, stream: int = 0) -> Search:
    """`width` beams of width 1 side by side; all start at the root, each with random streams of its own.

    Each round samples `expansions` steps below the tip of every sub-tree, moves those that ended to the answer pool,
    and makes the best open one the sub-tree's new tip. A sub-tree ends when no open one is left or, with
    `answers_take_width`, with its first answer. Sub-trees that take the same step share its node, and part again where
    their samples do.
    """
    tree = params.plant(prompt)
    purse = params.budget.start()
    tips = dict.fromkeys(range(params.width), tree.root)  # sub-tree -> its open end
    for _ in range(params.max_steps):
        streams = [branch_stream(stream, node.index, sub_tree) for sub_tree, node in tips.items()]
        families = yield from purse.expand_each(tree, list(tips.values()), params.sampling, params.expansions, streams)
        if not families:
            break
        grown = {child.index: child for children in families for child in children}
        yield from params.ranking.rank(tree, list(grown.values()))
        tips = dict(_new_tips(dict(zip(tips, families, strict=True)), params.answers_take_width))
        kept = {node.index for node in tips.values()}
        _, dropped = keep_best([node for node in grown.values() if node.index not in kept], 0)
        yield Round(tree, tuple(tree.prompt + tree.completion(node) for node in dropped))
        if not tips:
            break
    for node in tips.values():
        node.state = NodeState.CUT
    return tree


def _new_tips(families: Mapping[int, Sequence[Node]], answers_take_width: bool) -> Iterator[tuple[int, Node]]:
    """Sub-tree and best open child, for those sub-trees that go on."""
    for sub_tree, children in families.items():
        has_answer = any(child.state is NodeState.ANSWER for child in children)
        open_children = [child for child in children if child.state is NodeState.OPEN]
        if open_children and not (has_answer and answers_take_width):
            yield sub_tree, max(open_children, key=lambda child: child.score)
