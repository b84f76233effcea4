"""Options of `posttrain control strings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.studies.strings.objectives import Method
from posttrain.studies.strings.task import SumTask


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class StringsConfig:
    """Trajectory balance, OREO and policy gradients on strings of digits with a verifier, measured by enumeration."""

    output_dir: Path = field(metadata={"help": "Run folder. Run again to go on."})
    n_digits: int = _option("Digits of a string.", 3, "task")
    target_sum: int = _option("The verifier passes strings whose digits add up to this.", 13, "task")
    floor: float = _option("Reward of all other strings; solutions have 1.", 0.01, "task")
    methods: tuple[Method, ...] = _option(f"Of {', '.join(Method)}.", tuple(Method), "training")
    seeds: tuple[int, ...] = _option("Of weights and samples.", (0, 1, 2), "training")
    n_steps: int = _option("Updates, each on new samples.", 1000, "training")
    batch_size: int = _option("Strings sampled for an update.", 128, "training")
    learning_rate: float = _option("Adam's, of the policy; all rates fall linearly to 0.", 2e-3, "training")
    value_learning_rate: float = _option("Adam's, of OREO's value network.", 2e-3, "training")
    log_z_learning_rate: float = _option("Adam's, of log Z of trajectory balance.", 0.1, "training")
    hidden_size: int = _option("Of the language models.", 32, "networks")
    n_layers: int = _option("Of the language models.", 2, "networks")
    eval_steps: int = _option("Updates between two evaluations by enumeration.", 50, "run")
    n_draws: int = _option("Draws of which distinct solutions are counted, in expectation.", 200, "run")
    n_processes: int = _option("Processes, of one thread each.", 2, "run")

    def __post_init__(self) -> None:
        self.task()
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}: baselines compare a string with others, so 2 or more")
        if not self.methods or not self.seeds or self.n_processes < 1 or self.n_draws < 1:
            raise ValueError(
                f"methods {self.methods}, seeds {self.seeds}, n_processes {self.n_processes}, n_draws "
                f"{self.n_draws}: needed one or more of each"
            )

    def task(self) -> SumTask:
        return SumTask(self.n_digits, self.target_sum, self.floor)

    def numbers_hang_on(self) -> dict[str, Any]:
        """The settings of one run: without where, how fast, and which others run beside it."""
        left_out = ("output_dir", "n_processes", "methods", "seeds")
        return {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
