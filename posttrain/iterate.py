"""`posttrain iterate`: sample, learn from the samples, sample again (arXiv 2412.16145 v2, section 4.3).

Made of the library's own verbs; each stage is printed before it runs and can be run again by hand. A run that was
stopped goes on with its first unfinished stage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from posttrain.evaluation.records import append_records, read_records
from posttrain.evaluation.report import ReportConfig, report
from posttrain.provenance import hash_data, write_run_card
from posttrain.stages import Argument, Stage, Stages

SEED_STRIDE = 1_000_000  # between the samples of two iterations
FINISHED = "finished.jsonl"


class Reference(StrEnum):
    """What the policy of an iteration is held to."""

    KEEP = "keep"  # the model that the first iteration started from
    RESET = "reset"  # the policy that the iteration starts from


class Data(StrEnum):
    """What an iteration learns from."""

    POOL = "pool"  # the samples of all iterations so far
    REPLACE = "replace"  # those of its own start


class Value(StrEnum):
    """What an iteration's value model starts from."""

    CONTINUE = "continue"  # the value model of the iteration before
    FRESH = "fresh"  # a copy of the policy's trunk under a zero head


@dataclass(frozen=True)
class IterateConfig:
    """What to start from, how often to go round, and what each round keeps of the one before."""

    model: Path = field(metadata={"help": "Folder of the policy to start from."})
    problems: str = field(metadata={"help": "Training problems, as `posttrain collect` takes them."})
    test_problems: str = field(metadata={"help": "Held-out problems, as `posttrain eval run` takes them."})
    output: Path = field(metadata={"help": "Run folder; one that was stopped goes on."})
    iterations: int = field(default=3, metadata={"help": "Rounds of sampling and learning."})
    train: Literal["oreo", "sft"] = field(
        default="oreo", metadata={"help": "Verb that learns; sft with a min_reward is iterated rejection sampling."}
    )
    reference: Reference = field(
        default=Reference.RESET,
        metadata={"help": "Reference of oreo: reset to each round's start, or keep the first."},
    )
    data: Data = field(default=Data.REPLACE, metadata={"help": "Learn from the newest samples, or pool all of them."})
    value: Value = field(default=Value.CONTINUE, metadata={"help": "Go on with oreo's value model, or start afresh."})
    recipes: Path = field(default=Path("recipes"), metadata={"help": "Folder of the configs named below."})
    collect_recipe: str = field(default="quickstart/collect", metadata={"help": "Config of `posttrain collect`."})
    train_recipe: str = field(default="quickstart/oreo", metadata={"help": "Config of the verb that learns."})
    eval_recipe: str = field(default="quickstart/eval", metadata={"help": "Config of `posttrain eval run`."})
    seed: int = field(default=0, metadata={"help": "Of samples and of the order of data."})

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}, needs at least 1")


@dataclass(frozen=True, slots=True)
class Round:
    """Where one iteration starts and writes."""

    number: int
    folder: Path
    start: Path  # policy that samples and learns
    value: Path | None  # value model to go on with
    samples: tuple[Path, ...]  # files to learn from, this round's last


def iterate(config: IterateConfig) -> int:
    """Run all rounds and write the report; prints each command. Round 0 is the start, evaluated only."""
    if not config.recipes.is_dir():
        raise FileNotFoundError(f"no recipes at {config.recipes}: run from the repository's root, or set --recipes")
    config.output.mkdir(parents=True, exist_ok=True)
    stages = OnceStages(Stages(config.output / "logs", recipes=config.recipes, is_smoke=False), config.output)
    data = hash_data(config.problems, config.test_problems)
    write_run_card(config.output, {key: str(value) for key, value in asdict(config).items()}, data)
    _evaluate(config, stages, config.output / "round-0", "round_0", config.model, None)
    start, value, samples = config.model, None, ()
    for number in range(1, config.iterations + 1):
        folder = config.output / f"round-{number}"
        own = folder / "samples.jsonl"
        samples = (*samples, own) if config.data is Data.POOL else (own,)
        this = Round(number, folder, start, value if config.value is Value.CONTINUE else None, samples)
        start, value = _go_round(config, stages, this)
    _join_answers(config.output, n_rounds=config.iterations)
    report(ReportConfig(run=config.output, start_method="round_0/greedy"))
    return 0


def _go_round(config: IterateConfig, stages: OnceStages, this: Round) -> tuple[Path, Path | None]:
    """Sample, learn, evaluate; returns the policy and the value model that came of it."""
    name, learnt = f"round_{this.number}", this.folder / config.train
    seed = str(config.seed + this.number * SEED_STRIDE)
    collect = ("--model", this.start, "--problems", config.problems, "--output", this.samples[-1], "--seed", seed)
    stages.run(Stage(f"{name}_collect", "collect", collect, recipe=config.collect_recipe))
    learn: tuple[Argument, ...] = ("--model", this.start, "--train_data", *this.samples)
    learn = (*learn, "--output_dir", learnt, "--seed", str(config.seed))
    if config.train == "oreo":
        learn = (*learn, "--reference", config.model if config.reference is Reference.KEEP else this.start)
        learn = learn if this.value is None else (*learn, "--value_model", this.value)
    stages.run(Stage(f"{name}_{config.train}", config.train, learn, recipe=config.train_recipe))
    policy, value = (learnt / "policy", learnt / "value") if config.train == "oreo" else (learnt, None)
    _evaluate(config, stages, this.folder, name, policy, value)
    return policy, value


def _evaluate(
    config: IterateConfig, stages: OnceStages, folder: Path, name: str, policy: Path, value: Path | None
) -> None:
    answers = folder / "answers.jsonl"
    arguments: tuple[Argument, ...] = ("--model", policy, "--name", name, "--problems", config.test_problems)
    arguments = (*arguments, "--output", answers, "--seed", str(config.seed))
    stage = Stage(
        f"{name}_eval",
        "eval run",
        arguments if value is None else (*arguments, "--value_model", value),
        recipe=config.eval_recipe,
    )
    stages.run(stage)


def _join_answers(output: Path, *, n_rounds: int) -> None:
    """All rounds' answers in one file, which the report reads."""
    joined = output / "answers.jsonl"
    joined.unlink(missing_ok=True)
    for number in range(n_rounds + 1):
        append_records(joined, read_records(output / f"round-{number}" / "answers.jsonl"))


class OnceStages:
    """Stages of a run that may be started again: those that have ended well are passed over."""

    def __init__(self, stages: Stages, output: Path) -> None:
        self._stages = stages
        self._file = output / FINISHED

    def is_finished(self, stage: Stage) -> bool:
        """Raises ValueError when it was finished with other arguments: the run is then another one."""
        words = self._words(stage)
        for line in self._lines():
            finished = json.loads(line)
            if finished["stage"] == stage.name and finished["command"] != words:
                raise ValueError(
                    f"{stage.name} was run as {' '.join(finished['command'])}, now wanted as {' '.join(words)}: "
                    "name another --output"
                )
            if finished["stage"] == stage.name:
                return True
        return False

    def run(self, stage: Stage) -> None:
        """Run a stage unless it has been finished. Raises StageError when it fails."""
        if self.is_finished(stage):
            print(f"{stage.name}: finished before", flush=True)
            return
        self._stages.run(stage)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage.name, "command": self._words(stage)}) + "\n")

    def _words(self, stage: Stage) -> list[str]:
        return [stage.verb, str(stage.recipe), *map(str, stage.arguments)]

    def _lines(self) -> Sequence[str]:
        return self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else ()
