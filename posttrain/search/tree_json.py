"""A search tree as JSON, for files and for people."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.search.tree import SearchTree


def tree_to_json(tree: SearchTree, text_of: Callable[[tuple[int, ...]], str]) -> dict[str, object]:
    """The tree with the text of every node; `answer` is the index of the chosen one, null where there is none."""
    best = tree.best()
    return {
        "answer": None if best is None else best.index,
        "n_generated_tokens": tree.n_generated_tokens,
        "n_value_calls": tree.n_value_calls,
        "is_over_budget": tree.is_over_budget,
        "nodes": [
            {
                "index": node.index,
                "parent": node.parent,
                "state": node.state.value,
                "text": text_of(node.token_ids),
                "token_ids": list(node.token_ids),
                "logp": node.logp,
                "value": node.value,
                "score": node.score,
                "n_merged": node.n_merged,
            }
            for node in tree.nodes
        ],
    }
