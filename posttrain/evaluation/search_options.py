"""How a search of an evaluation ranks, ends and what it may spend: the keys that `eval run` and `search` share."""

from __future__ import annotations

from dataclasses import dataclass, field

from posttrain.search.budget import Budget
from posttrain.search.ranking import Aggregate
from posttrain.search.spec import Algorithm, SearchSpec, StepSpec

_GROUP = {"group": "search"}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Read by best_of_n, majority, weighted_majority, beam and dvts; see SearchSpec."""

    step_delimiters: tuple[str, ...] = field(
        default=("\n",), metadata={**_GROUP, "help": "strings that end a step of beam and dvts"}
    )
    max_steps: int = field(default=20, metadata={**_GROUP, "help": "most steps of beam and dvts (the paper: 20)"})
    max_step_tokens: int | None = field(
        default=None, metadata={**_GROUP, "help": "most tokens of one step; default: as many as of an answer"}
    )
    value_weight: float = field(
        default=1.0, metadata={**_GROUP, "help": "w in w V + (1 - w) log pi, by which branches are ranked"}
    )
    length_penalty: float = field(
        default=0.0, metadata={**_GROUP, "help": "log pi is divided by the number of tokens to this power"}
    )
    aggregate: Aggregate = field(
        default=Aggregate.LAST, metadata={**_GROUP, "help": "which number the values of a path's steps make"}
    )
    answers_take_width: bool = field(
        default=False, metadata={**_GROUP, "help": "an answer leaves its place in the beam empty"}
    )
    budget_tokens: int | None = field(
        default=None, metadata={**_GROUP, "help": "most tokens sampled for one problem, pruned branches included"}
    )
    budget_value_calls: int | None = field(
        default=None, metadata={**_GROUP, "help": "most prefixes scored for one problem"}
    )
    budget_ms: int | None = field(default=None, metadata={**_GROUP, "help": "most milliseconds from a search's start"})
    trees: bool = field(default=False, metadata={**_GROUP, "help": "keep the whole tree of each search in its record"})

    def spec(self, algorithm: Algorithm, *, n: int = 1, beam_width: int = 1, expansions: int = 1) -> SearchSpec:
        """A search with these options. Raises SearchSpecError for a number out of range."""
        return SearchSpec(
            algorithm,
            n=n,
            beam_width=beam_width,
            expansions=expansions,
            step=StepSpec(self.step_delimiters, self.max_step_tokens),
            max_steps=self.max_steps,
            value_weight=self.value_weight,
            length_penalty=self.length_penalty,
            aggregate=self.aggregate,
            budget=Budget(self.budget_tokens, self.budget_value_calls, self.budget_ms),
            answers_take_width=self.answers_take_width,
        )
