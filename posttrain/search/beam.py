"""Step-level beam search guided by the value model (OREO, arXiv 2412.16145 v2, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.sampling import SamplingEngine, SamplingParams, prompt_streams
from posttrain.search.asks import Round, Search, branch_stream
from posttrain.search.budget import Budget
from posttrain.search.drive import run_searches
from posttrain.search.ranking import Ranking
from posttrain.search.scorer import ValueScorer
from posttrain.search.tree import Node, NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class BeamParams:
    width: int  # partial solutions kept; the paper's B
    expansions: int  # continuations sampled from each; the paper uses B again
    max_steps: int  # the paper allows 20
    sampling: SamplingParams  # of one step: its `stop` strings are the step delimiters
    ranking: Ranking = field(default_factory=Ranking)
    budget: Budget = field(default_factory=Budget)
    answers_take_width: bool = False  # an answer leaves its place empty, and the search ends with the last place

    def __post_init__(self) -> None:
        if min(self.width, self.expansions, self.max_steps) < 1:
            raise ValueError(
                f"width {self.width}, expansions {self.expansions}, max_steps {self.max_steps}: each needs 1 or more"
            )
        require_steps(self.sampling, self.expansions)


def require_steps(sampling: SamplingParams, expansions: int) -> None:
    """Raises ValueError for sampling that does not end at steps, or whose expansions are all the same."""
    if not sampling.stop:
        raise ValueError("a step-level search needs step delimiters: set sampling.stop, e.g. ('\\n',)")
    if sampling.temperature == 0 and expansions > 1:
        raise ValueError("greedy expansions of one prefix are all the same: set sampling.temperature above 0")


def beam(prompt: Sequence[int], params: BeamParams, *, stream: int = 0) -> Search:
    """The search below one prompt.

    Each round samples `expansions` steps from every open node, reads V of each candidate at its last token, moves
    those that ended to the answer pool and keeps the `width` open candidates of highest score.
    """
    tree = SearchTree(tuple(prompt))
    purse = params.budget.start()
    kept, width = [tree.root], params.width
    for _ in range(params.max_steps):
        streams = [branch_stream(stream, node.index) for node in kept]
        candidates = yield from purse.expand(tree, kept, params.sampling, params.expansions, streams)
        if not candidates:
            break
        ranked = yield from params.ranking.rank(tree, candidates)
        if params.answers_take_width:
            width = params.width - sum(node.state is NodeState.ANSWER for node in tree.nodes)
        kept, dropped = keep_best(ranked, width)
        yield Round(tree, tuple(tree.prompt + tree.completion(node) for node in dropped))
        if not kept:
            break
    for node in kept:
        node.state = NodeState.CUT
    return tree


def keep_best(ranked: Sequence[Node], width: int) -> tuple[list[Node], list[Node]]:
    """The first `width` open nodes, and those that fall out, which are marked as pruned."""
    open_nodes = [node for node in ranked if node.state is NodeState.OPEN]
    kept, dropped = open_nodes[: max(width, 0)], open_nodes[max(width, 0) :]
    for node in dropped:
        node.state = NodeState.PRUNED
    return kept, dropped


def beam_search(
    engine: SamplingEngine,
    scorer: ValueScorer,
    prompts: Sequence[Sequence[int]],
    params: BeamParams,
    *,
    streams: Sequence[int] | None = None,
) -> list[SearchTree]:
    """One tree per prompt, all grown together so that the engine's batch stays full; `streams` as in
    SamplingEngine.sample. `SearchTree.best` is the answer; a tree without one is a wrong answer, not an error.
    """
    streams = prompt_streams(prompts, streams)
    return run_searches(
        engine,
        scorer,
        [beam(prompt, params, stream=stream) for prompt, stream in zip(prompts, streams, strict=True)],
    )
