"""Token-level beam search: what is added up along a path is the scorer's choice, everything else is here.

* **Width.** Each round ranks all continuations of a prompt's open paths by their score. Open ones among them fill the
  beam of `width`; the width does not shrink when answers leave.
* **EOS.** A path that takes EOS is an answer if it is among the `width` best of its round, and is dropped if not. Its
  score includes the EOS: ending is an action like any other.
* **End.** A search is over when it has `width` answers and no open path scores higher than the worst of the best
  `width` of them. Sums of log π never rise, so no open path could have led to a better answer. Log-ratios may rise:
  there it is a choice. At the optimum an open path's score is what going on from it is worth, and that is then no more
  than the answers in hand.
* **Length.** A path that reaches the token budget, or the end of the networks' positions, is cut. It is no answer and
  gets no EOS; SearchTree.best takes a cut path only when a prompt has no answer.
* **No length normalisation.** A sum divided by its length is not what the identities are about, and ranks differently.
* **Ties** go to the path that ranked higher before, then to the smaller token id.

With log π as the score these are the rules of transformers' `generate` with `num_beams=width`, `do_sample=False`,
`length_penalty=0.0` and `early_stopping=False`, but for cut paths: there they compete with the answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from posttrain.search.tree import Node, NodeState, SearchTree


class NextTokenScorer(Protocol):
    """What a token-level search adds up along a path. It remembers the rows that it has read."""

    n_positions: int  # most tokens of a row, prompt included

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[R, V] the score of each next token, one row per prompt; earlier rows are forgotten."""
        ...

    def extend(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """[R, V] the same for other rows: the i-th is row rows[i] of the last call with token_ids[i] after it."""
        ...


@dataclass(frozen=True, slots=True)
class TokenBeamParams:
    width: int  # open paths kept, and answers in hand before a search may end
    max_new_tokens: int
    batch_size: int  # rows read at once; changes speed and memory only

    def __post_init__(self) -> None:
        if min(self.width, self.max_new_tokens) < 1:
            raise ValueError(f"width {self.width}, max_new_tokens {self.max_new_tokens}: each needs 1 or more")
        if self.batch_size < self.width:
            raise ValueError(f"batch_size is {self.batch_size}, needs room for one prompt's {self.width} paths")


@dataclass(frozen=True, slots=True)
class _Path:
    """An open path."""

    node: Node
    parent_row: int  # of the scores that its last token was chosen from


@dataclass(slots=True)
class _Search:
    """One prompt's search under way."""

    tree: SearchTree
    n_new: int  # tokens that its paths may still take
    beam: list[_Path]  # best first
    answer_scores: list[float] = field(default_factory=list)  # of the `width` best answers, best first


@dataclass(frozen=True, slots=True)
class _Continuation:
    score: float  # of the path with this token
    place: int  # of the path in the beam
    token_id: int


def token_beam_search(
    scorer: NextTokenScorer, prompts: Sequence[Sequence[int]], eos_ids: Collection[int], params: TokenBeamParams
) -> list[SearchTree]:
    """One tree per prompt, a node per token, whose score is that of the path down to it.

    Raises ValueError for an empty prompt and for one that leaves no position free.
    """
    searches = [_begin(i, prompt, scorer.n_positions, params) for i, prompt in enumerate(prompts)]
    by_length = sorted(searches, key=lambda search: len(search.tree.prompt))  # little padding within a batch
    n_prompts = params.batch_size // params.width
    for start in range(0, len(by_length), n_prompts):
        _search_batch(scorer, by_length[start : start + n_prompts], frozenset(eos_ids), params.width)
    return [search.tree for search in searches]


def _begin(index: int, prompt: Sequence[int], n_positions: int, params: TokenBeamParams) -> _Search:
    if len(prompt) >= n_positions:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens, the model {n_positions} positions: nothing can be added. "
            "Shorten the prompt or raise max_position_embeddings"
        )
    tree = SearchTree(tuple(prompt))
    return _Search(tree, min(params.max_new_tokens, n_positions - len(prompt)), [_Path(tree.nodes[0], 0)])


def _search_batch(scorer: NextTokenScorer, searches: list[_Search], eos_ids: frozenset[int], width: int) -> None:
    n_ranked = width * (1 + len(eos_ids))  # each path ends in one of len(eos_ids) ways: at least `width` others remain
    scores = scorer.start([search.tree.prompt for search in searches])
    while True:
        first_row = 0
        for search, ranked in zip(searches, _best_continuations(searches, scores, n_ranked), strict=True):
            n_rows = len(search.beam)
            _advance(search, ranked, eos_ids, width, first_row)
            first_row += n_rows
        searches = [search for search in searches if search.beam]
        if not searches:
            return
        paths = [path for search in searches for path in search.beam]
        rows = torch.tensor([path.parent_row for path in paths])
        scores = scorer.extend(rows, torch.tensor([path.node.token_ids[0] for path in paths]))


def _advance(
    search: _Search, ranked: Sequence[_Continuation], eos_ids: frozenset[int], width: int, first_row: int
) -> None:
    """Take one token: answers leave, the best open paths stay, and the search may end."""
    grown: list[_Path] = []
    for rank, best in enumerate(ranked):
        parent = search.beam[best.place]
        if best.token_id in eos_ids and rank < width:
            search.tree.grow(parent.node, (best.token_id,), NodeState.ANSWER, score=best.score)
            search.answer_scores.append(best.score)
        elif best.token_id not in eos_ids and len(grown) < width:
            node = search.tree.grow(parent.node, (best.token_id,), NodeState.OPEN, score=best.score)
            grown.append(_Path(node, first_row + best.place))
    search.answer_scores = sorted(search.answer_scores, reverse=True)[:width]
    search.n_new -= 1
    is_over = len(search.answer_scores) == width and all(p.node.score <= search.answer_scores[-1] for p in grown)
    if is_over or search.n_new == 0:
        for path in grown:
            path.node.state = NodeState.PRUNED if is_over else NodeState.CUT
        grown = []
    search.beam = grown


def _best_continuations(searches: Sequence[_Search], scores: Tensor, n: int) -> list[list[_Continuation]]:
    """The n best continuations of each search, best first; fewer where fewer are possible.

    scores: [R, V] of the next tokens of all open paths, search by search.
    """
    if scores.isnan().any():
        raise ValueError("a score is NaN: are the weights of the networks finite in this dtype?")
    n_paths = torch.tensor([len(search.beam) for search in searches])
    owner = torch.arange(len(searches)).repeat_interleave(n_paths)
    place = torch.arange(len(owner)) - (n_paths.cumsum(0) - n_paths)[owner]
    so_far = [path.node.score for search in searches for path in search.beam]
    n_tokens = scores.shape[1]
    total = scores.new_full((len(searches), int(n_paths.max()), n_tokens), -torch.inf)
    total[owner.to(scores.device), place.to(scores.device)] = scores + scores.new_tensor(so_far)[:, None]
    best, index = _top(total.flatten(1), n)
    return [
        [_Continuation(s, i // n_tokens, i % n_tokens) for s, i in zip(*ranked, strict=True) if s > -torch.inf]
        for ranked in zip(best.tolist(), index.tolist(), strict=True)
    ]


def _top(score: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of each row of [N, C] and their places; of equal ones the first, where torch.topk takes any."""
    n = min(n, score.shape[1])
    least = score.topk(n).values[:, -1:]
    above, equal = score > least, score == least
    n_left = n - above.sum(-1, keepdim=True)
    is_taken = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= n_left))
    index = is_taken.nonzero()[:, 1].view(len(score), n)  # rising, so that a stable sort keeps the first in front
    ranked = score.gather(1, index).sort(dim=-1, descending=True, stable=True)
    return ranked.values, index.gather(1, ranked.indices)
