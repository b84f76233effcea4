"""The search trees of a chunk of problems, for every decoding that searches."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.evaluation.decoding import Chosen, Greedy, LikelihoodBeam, LogRatioBeam, Searched, Stepwise, ValueRerank
from posttrain.evaluation.networks import Answering, Chunk
from posttrain.rewards.grade import extracted_answer
from posttrain.sampling import SamplingParams
from posttrain.schema import Problem
from posttrain.search.drive import run_searches
from posttrain.search.spec import Algorithm, SearchSpec, start
from posttrain.search.token_beam import NextTokenScorer, TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer
from posttrain.search.tree import NodeState, SearchTree
from posttrain.search.value_rerank import ValueRerankScorer
from posttrain.search.vote import AnswerOf


def search_trees(a: Answering, chunk: Chunk, decoding: Greedy | Searched) -> list[SearchTree]:
    """The tree of each problem, in order. A problem's random streams hang on its place alone."""
    match decoding:
        case Greedy():
            return trees_of(a, chunk, a.config.spec(Algorithm.NONE), a.sampling(temperature=0.0))
        case Chosen(algorithm, n):
            return trees_of(a, chunk, a.config.spec(algorithm, n=n), a.sampling())
        case Stepwise(algorithm, width, expansions):
            spec = a.config.spec(algorithm, beam_width=width, expansions=expansions)
            return trees_of(a, chunk, spec, a.sampling())
        case LikelihoodBeam(width):
            return _token_beams(a, chunk, LikelihoodScorer(a.tokens.transformers_engine.model), width)
        case LogRatioBeam(width):
            assert a.log_ratio is not None  # checked when the config was read
            return _token_beams(a, chunk, a.log_ratio, width)
        case ValueRerank(width, top_k):
            trees = _token_beams(a, chunk, _value_rerank(a, top_k), width)
            for tree in trees:  # what stayed open was extended, and the values of its top_k children were read
                tree.n_value_calls = top_k * sum(node.state is NodeState.OPEN for node in tree.nodes)
            return trees


def trees_of(a: Answering, chunk: Chunk, spec: SearchSpec, sampling: SamplingParams) -> list[SearchTree]:
    """The trees of one search, all problems of the chunk in lockstep."""
    prompts = a.tokens.prompts(chunk.problems)
    searches = [
        start(spec, prompt, sampling, stream, _answer_of(a, problem))
        for problem, prompt, stream in zip(chunk.problems, prompts, chunk.streams, strict=True)
    ]
    return run_searches(a.tokens.engine, a.scorer, searches)


def readable(a: Answering, problem: Problem, text: str) -> str | None:
    """What the protocol's first grader takes for the answer."""
    return extracted_answer(a.protocol.regraded(problem), text)


def _answer_of(a: Answering, problem: Problem) -> AnswerOf:
    def read(completion: Sequence[int]) -> str | None:
        return readable(a, problem, a.protocol.answer_in(a.tokens.text(completion)))

    return read


def _value_rerank(a: Answering, top_k: int) -> ValueRerankScorer:
    assert a.value_model is not None  # checked when the config was read
    engine = a.tokens.transformers_engine
    return ValueRerankScorer(
        engine.model,
        a.value_model,
        engine.eos_ids,
        top_k=top_k,
        value_weight=a.config.value_weight,
        min_probability=a.config.min_probability,
    )


def _token_beams(a: Answering, chunk: Chunk, scorer: NextTokenScorer, width: int) -> list[SearchTree]:
    params = TokenBeamParams(width, a.max_new_tokens, max(width, a.config.batch_size))
    engine = a.tokens.transformers_engine
    return token_beam_search(scorer, a.tokens.prompts(chunk.problems), engine.eos_ids, params)
