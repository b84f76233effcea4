"""Options of the studies of model-based generalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.control.worlds.button_grid import ButtonGrid
from posttrain.control.worlds.open_grid import OpenGrid
from posttrain.control.worlds.panflute import PanFlute
from posttrain.control.worlds.proc_maze import ProcMaze
from posttrain.control.worlds.world import World
from posttrain.studies.model_based.deep_q import DeepQConfig
from posttrain.studies.model_based.methods import Method, ModelNetworks


class WorldName(StrEnum):
    PANFLUTE = "panflute"
    PROC_MAZE = "proc_maze"
    BUTTON_GRID = "button_grid"
    OPEN_GRID = "open_grid"


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class ModelTheoremConfig:
    """Count the value functions that fit the data, with and without a model, over whole classes of models."""

    output_dir: Path = field(metadata={"help": "Run folder."})
    n_true_models: int = _option("True models drawn from each class.", 200, "run")
    seed: int = _option("Of the true models, and of the order in which pairs are observed.", 0, "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """What all methods share, on fixed data and while acting. None of it was tuned for any of them."""

    output_dir: Path = field(metadata={"help": "Run folder. Run again to go on after a stop."})
    n_seeds: int = _option("Seeds of data, weights and rollouts; they are trained as one stack.", 5, "run")
    batch_size: int = _option("Transitions of an update of Q, replayed or imagined.", 320, "training")
    rollout_length: int = _option("Steps of an imagined path.", 10, "training")
    model_batch_size: int = _option("Transitions of an update of the model.", 64, "training")
    hidden: tuple[int, ...] = _option("Widths of all networks' hidden layers.", (64, 64), "training")
    n_groups: int = _option("Categorical variables of the latent model.", 8, "training")
    n_classes: int = _option("Values of each.", 8, "training")
    learning_rate: float = _option("Of Q.", 1e-3, "training")
    model_learning_rate: float = _option("Of the model.", 1e-3, "training")
    discount: float = _option("Of later rewards.", 0.9, "training")
    temperature: float = _option("Of the softmax over Q that acts.", 0.1, "training")
    target_period: int = _option("Updates between two copies of Q to its target.", 100, "training")
    eval_steps: int = _option("Steps of training between two evaluations.", 500, "run")
    n_eval_steps: int = _option("Steps of an evaluation.", 100, "run")
    n_processes: int = _option("Runs at once.", 2, "run")

    def __post_init__(self) -> None:
        if self.rollout_length < 1 or self.batch_size % self.rollout_length:
            raise ValueError(
                f"batch_size {self.batch_size} with rollout_length {self.rollout_length}: a batch is whole rollouts, "
                "so that every method sees as many transitions"
            )
        if self.n_seeds < 2:
            raise ValueError(f"n_seeds is {self.n_seeds}: an interval over seeds needs at least 2")

    def deep_q(self) -> DeepQConfig:
        return DeepQConfig(self.hidden, self.learning_rate, self.discount, self.temperature, self.target_period)

    def networks(self) -> ModelNetworks:
        return ModelNetworks(self.hidden, self.n_groups, self.n_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PanFluteConfig(LearningConfig):
    """Learn PanFlute from a fixed set of random transitions: by replay, by a learned model, by the world itself."""

    n_pipes: int = _option("Of PanFlute; its optimum earns 1 in so many steps.", 5, "data")
    n_transitions: tuple[int, ...] = _option("Sizes of the data, one comparison each.", (250, 4000), "data")
    methods: tuple[Method, ...] = _option(
        "What the value learner learns from.", (Method.TABULAR, Method.REPLAY, Method.LEARNED, Method.PERFECT), "run"
    )
    n_updates: int = _option("Updates of Q, and before them of the model.", 4000, "training")

    def __post_init__(self) -> None:
        LearningConfig.__post_init__(self)
        if not self.n_transitions or min(self.n_transitions) < 1:
            raise ValueError(f"n_transitions {self.n_transitions}: needed one size or more, each at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldsOnlineConfig(LearningConfig):
    """Learn a world while acting in it: by replay, by a model that is learned alongside, by the world itself."""

    world: WorldName = field(default=WorldName.PANFLUTE, metadata={"help": "World to act in.", "group": "world"})
    size: int = _option("Pipes of PanFlute, or cells along the side of a grid.", 5, "world")
    methods: tuple[Method, ...] = _option(
        "What the value learner learns from.", (Method.REPLAY, Method.LEARNED, Method.PERFECT), "run"
    )
    replay_ratios: tuple[int, ...] = _option("Updates per step of the world, one comparison each.", (1,), "training")
    n_steps: int = _option("Steps of the world.", 6000, "training")
    n_first_steps: int = _option("Of these, before the first update.", 1000, "training")
    capacity: int = _option("Transitions that are remembered.", 100_000, "training")
    checkpoint_steps: int = _option("Steps between two checkpoints; 0 for none.", 0, "run")

    def __post_init__(self) -> None:
        LearningConfig.__post_init__(self)
        if Method.TABULAR in self.methods:
            raise ValueError("the table is solved on fixed data: it is a method of `control panflute` alone")
        if not self.replay_ratios or min(self.replay_ratios) < 1:
            raise ValueError(f"replay_ratios {self.replay_ratios}: needed one or more, each at least 1")
        if not 1 <= self.n_first_steps <= min(self.n_steps, self.capacity):
            raise ValueError(
                f"n_first_steps {self.n_first_steps} of n_steps {self.n_steps}, capacity {self.capacity}: "
                "needed at least 1 and no more than either, or nothing is learned"
            )

    def make_world(self) -> World:
        match self.world:
            case WorldName.PANFLUTE:
                return PanFlute(self.size)
            case WorldName.PROC_MAZE:
                return ProcMaze(self.size)
            case WorldName.BUTTON_GRID:
                return ButtonGrid(self.size)
            case WorldName.OPEN_GRID:
                return OpenGrid(self.size)


@dataclass(frozen=True, slots=True)
class ImaginedValuesConfig:
    """Train value models of a finished quickstart's imitator on few answers, with and without imagined ones."""

    quickstart: Path = field(metadata={"help": "A quickstart's run folder: sft, samples.jsonl, train_problems.jsonl."})
    output_dir: Path = field(metadata={"help": "Run folder. Run again to go on after a stop."})
    n_tasks: int = _option("Problems whose sampled answers are replayed.", 200, "data")
    n_test_tasks: int = _option("Other problems, whose answers the values are tested on.", 500, "data")
    n_imagined: int = _option("Imagined continuations of each answer.", 4, "data")
    max_new_tokens: int = _option("Of an imagined continuation.", 64, "data")
    n_updates: int = _option("Updates of every value model, and of the reward model.", 100, "training")
    batch_size: int = _option("Answers of an update.", 64, "training")
    learning_rate: float = _option("Peak of Adam's; it falls along a cosine to a tenth.", 1e-3, "training")
    n_seeds: int = _option("Seeds of batches, prefixes and continuations.", 3, "run")

    def __post_init__(self) -> None:
        if self.n_seeds < 2:
            raise ValueError(f"n_seeds is {self.n_seeds}: an interval over seeds needs at least 2")


def seeds_of(n_seeds: int, *, purpose: int) -> Sequence[int]:
    """Seeds of one purpose (data, weights, evaluation …), far from those of the others and alike for all methods."""
    return [1_000_000 * purpose + seed for seed in range(n_seeds)]
