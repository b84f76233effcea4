"""What decoding takes: the networks of an evaluation, loaded once, and problems that are answered together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.evaluation.completing import Completer
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.protocols import Protocol
from posttrain.rewards.pool import GradingPool
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingEngine, SamplingParams
from posttrain.schema import Problem
from posttrain.search.scorer import ValueScorer
from posttrain.search.token_beam import NextTokenScorer


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """What value models and searches take: an engine in this process and its tokenizer."""

    engine: SamplingEngine
    tokenizer: PreTrainedTokenizerBase

    def prompts(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        return [tuple(encode_prompt(problem.prompt, self.tokenizer)) for problem in problems]

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def transformers_engine(self) -> TransformersEngine:
        assert isinstance(self.engine, TransformersEngine)  # checked when the config was read
        return self.engine


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything that decoding takes, built once."""

    completer: Completer
    token_access: TokenAccess | None  # None behind a URL
    value_model: PreTrainedModel | None
    scorer: ValueScorer | None
    log_ratio: NextTokenScorer | None
    protocol: Protocol
    pool: GradingPool
    config: EvalConfig
    max_new_tokens: int

    @property
    def tokens(self) -> TokenAccess:
        assert self.token_access is not None  # a URL is refused for what takes tokens, when the config is read
        return self.token_access

    def sampling(self, *, temperature: float | None = None) -> SamplingParams:
        """How whole answers are drawn, at the config's temperature or at another."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.config.temperature if temperature is None else temperature,
            top_p=self.config.top_p if temperature is None else 1.0,
            top_k=self.config.top_k if temperature is None else 0,
            seed=self.config.seed,
            stop=self.protocol.stop,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Problems that are answered together, so that their batches, and the last bits of their numbers, are the same."""

    start: int  # place of the first among all problems; the place of a problem is its random stream
    problems: Sequence[Problem]

    @property
    def streams(self) -> range:
        return range(self.start, self.start + len(self.problems))
