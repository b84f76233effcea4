"""A search tree as JSON: whole, or what changed since the last look."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.search.tree import Node, NodeState, SearchTree
from posttrain.serve.text_stream import certain_text, decode


class TreeView:
    """Texts and changes of one tree. The texts of the nodes from the root to an answer join to the answer's text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tree: SearchTree) -> None:
        self._tokenizer = tokenizer
        self._tree = tree
        self._shown: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, str] = {0: ""}  # from the end of the prompt to the end of the node

    def whole(self) -> list[dict[str, Any]]:
        """Every node with its tokens, for who goes on with them: text tokenised again may be other tokens."""
        return [{**self._node(node), "token_ids": list(node.token_ids)} for node in self._tree.nodes]

    def changes(self) -> list[dict[str, Any]]:
        """The nodes that are new or other than at the last call."""
        nodes = map(self._node, self._tree.nodes)
        changed = [shown for shown in nodes if self._shown.get(shown["index"]) != shown]
        self._shown |= {shown["index"]: shown for shown in changed}
        return changed

    def kept(self) -> list[Node]:
        """The open leaves: what the search goes on from."""
        parents = {node.parent for node in self._tree.nodes}
        return [
            node
            for node in self._tree.nodes
            if node.state is NodeState.OPEN and node.parent is not None and node.index not in parents
        ]

    def best(self) -> Node | None:
        """The best answer, or the best open leaf while there is none."""
        return self._tree.best() or max(self.kept(), key=lambda node: node.score, default=None)

    def text(self, node: Node) -> str:
        """From the end of the prompt to the end of `node`."""
        if node.index not in self._texts:
            ids = self._tree.completion(node)
            is_end = node.state in (NodeState.ANSWER, NodeState.CUT)
            self._texts[node.index] = (decode if is_end else certain_text)(self._tokenizer, ids)
        return self._texts[node.index]

    def own_text(self, node: Node) -> str:
        """What this node adds."""
        before = "" if node.parent is None else self.text(self._tree.nodes[node.parent])
        return self.text(node)[len(before) :]

    def _node(self, node: Node) -> dict[str, Any]:
        return {
            "index": node.index,
            "parent": node.parent,
            "depth": node.depth,
            "text": self.own_text(node),
            "value": node.value,
            "score": node.score,
            "logp": node.logp,
            "n_merged": node.n_merged,
            "state": node.state.value,
        }
