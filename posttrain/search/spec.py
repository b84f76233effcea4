"""A search as a user writes it: one description for the command line and for the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from posttrain.sampling import SamplingParams
from posttrain.search.asks import Search
from posttrain.search.beam import BeamParams, beam
from posttrain.search.best_of_n import AnswersParams, best_of_n, sample_one
from posttrain.search.budget import Budget
from posttrain.search.dvts import dvts
from posttrain.search.ranking import Aggregate, Ranking
from posttrain.search.vote import AnswerOf, majority, weighted_majority


class Algorithm(StrEnum):
    NONE = "none"  # one answer, as sampled
    BEST_OF_N = "best_of_n"
    MAJORITY = "majority"
    WEIGHTED_MAJORITY = "weighted_majority"
    BEAM = "beam"
    DVTS = "dvts"


STEPWISE = (Algorithm.BEAM, Algorithm.DVTS)
VOTES = (Algorithm.MAJORITY, Algorithm.WEIGHTED_MAJORITY)


class SearchSpecError(ValueError):
    """A field of a search that cannot be; `field` is its name as a user writes it."""

    def __init__(self, field: str, came: object, needed: str) -> None:
        super().__init__(f"{field} is {came!r}, needs {needed}")
        self.field = field


@dataclass(frozen=True, slots=True)
class StepSpec:
    """Where a step of `beam` or `dvts` ends."""

    stop: tuple[str, ...] = ("\n",)
    max_tokens: int | None = None  # of one step; None: as many as the whole answer may have


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """What to search for, and how. Fields that an algorithm does not read change nothing.

    Raises SearchSpecError for a number out of range.
    """

    algorithm: Algorithm = Algorithm.NONE
    n: int = 4  # whole answers of best_of_n and of the votes
    beam_width: int = 4  # open branches of a beam, sub-trees of dvts
    expansions: int = 4  # steps sampled below each of them
    step: StepSpec = field(default_factory=StepSpec)
    max_steps: int = 20
    value_weight: float = 1.0  # see Ranking
    length_penalty: float = 0.0
    aggregate: Aggregate = Aggregate.LAST
    budget: Budget = field(default_factory=Budget)  # whose `milliseconds` a request writes `ms`
    answers_take_width: bool = False
    scores_end: bool = False  # V of an answer is read after its end: an agent's turn

    def __post_init__(self) -> None:
        if self.algorithm not in list(Algorithm):
            raise SearchSpecError("algorithm", str(self.algorithm), "one of " + ", ".join(Algorithm))
        for name in ("n", "beam_width", "expansions", "max_steps"):
            if getattr(self, name) < 1:
                raise SearchSpecError(name, getattr(self, name), "1 or more")
        if not self.step.stop or "" in self.step.stop:
            raise SearchSpecError("step.stop", self.step.stop, r"strings that end a step, such as '\n'")
        if self.step.max_tokens is not None and self.step.max_tokens < 1:
            raise SearchSpecError("step.max_tokens", self.step.max_tokens, "1 or more, or none")
        if not 0 <= self.value_weight <= 1:
            raise SearchSpecError("value_weight", self.value_weight, "a number from 0 (log π) to 1 (V)")
        if not 0 <= self.length_penalty <= 10:
            raise SearchSpecError("length_penalty", self.length_penalty, "a number from 0 to 10")

    @property
    def n_branches(self) -> int:
        """How many continuations are sampled at one time."""
        if self.algorithm in STEPWISE:
            return self.beam_width * self.expansions
        return 1 if self.algorithm is Algorithm.NONE else self.n

    @property
    def needs_values(self) -> bool:
        """Whether a value model is asked."""
        if self.algorithm is Algorithm.WEIGHTED_MAJORITY:
            return True
        return self.algorithm in (Algorithm.BEST_OF_N, *STEPWISE) and self.value_weight > 0

    def require_within(self, *, max_branches: int = 64, max_n: int = 16) -> None:
        """Raises SearchSpecError for a search that is larger than a server allows."""
        if self.algorithm in STEPWISE and self.n_branches > max_branches:
            came = f"{self.beam_width} x {self.expansions}"
            raise SearchSpecError("beam_width x expansions", came, f"{max_branches} or fewer")
        if self.algorithm not in STEPWISE and self.n_branches > max_n:
            raise SearchSpecError("n", self.n, f"{max_n} or fewer")


def start(
    spec: SearchSpec,
    prompt: Sequence[int],
    sampling: SamplingParams,
    stream: int,
    answer_of: AnswerOf | None = None,
) -> Search:
    """The search below one prompt; `sampling` is that of a whole answer, and no answer is longer than it says.

    `answer_of` reads what a completion answers, for the votes. Raises SearchSpecError where spec and sampling do not
    go together.
    """
    if sampling.temperature == 0 and spec.n_branches > 1:
        raise SearchSpecError("temperature", 0, f"more than 0: {spec.algorithm} compares different samples")
    if spec.algorithm in STEPWISE:
        if sampling.stop:
            raise SearchSpecError("stop", sampling.stop, f"none: the steps of {spec.algorithm} end at step.stop")
        params = _steps(spec, sampling)
        return (beam if spec.algorithm is Algorithm.BEAM else dvts)(prompt, params, stream=stream)
    if spec.needs_values and sampling.stop and not spec.scores_end:
        raise SearchSpecError("stop", sampling.stop, f"none: V of an answer is read before its EOS ({spec.algorithm})")
    answers = AnswersParams(
        1 if spec.algorithm is Algorithm.NONE else spec.n, sampling, _ranking(spec), spec.budget, spec.scores_end
    )
    match spec.algorithm:
        case Algorithm.BEST_OF_N:
            return best_of_n(prompt, answers, stream=stream)
        case Algorithm.MAJORITY:
            return majority(prompt, answers, _required(answer_of, spec), stream=stream)
        case Algorithm.WEIGHTED_MAJORITY:
            return weighted_majority(prompt, answers, _required(answer_of, spec), stream=stream)
        case _:
            return sample_one(prompt, answers, stream=stream)


def _steps(spec: SearchSpec, sampling: SamplingParams) -> BeamParams:
    of_answer = sampling.max_new_tokens
    return BeamParams(
        width=spec.beam_width,
        expansions=spec.expansions,
        max_steps=spec.max_steps,
        sampling=replace(
            sampling, stop=spec.step.stop, max_new_tokens=min(spec.step.max_tokens or of_answer, of_answer)
        ),
        ranking=_ranking(spec),
        budget=replace(spec.budget, answer_tokens=min(spec.budget.answer_tokens or of_answer, of_answer)),
        answers_take_width=spec.answers_take_width,
        scores_end=spec.scores_end,
    )


def _ranking(spec: SearchSpec) -> Ranking:
    return Ranking(spec.value_weight, spec.length_penalty, spec.aggregate)


def _required(answer_of: AnswerOf | None, spec: SearchSpec) -> AnswerOf:
    if answer_of is None:
        raise SearchSpecError("algorithm", spec.algorithm.value, "a way to read answers, which is not known here")
    return answer_of
