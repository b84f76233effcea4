"""Options of `posttrain control intrl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.control.integral.kernels import Matern
from posttrain.studies.intrl.rules import RULES


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class IntrlConfig:
    """Integral reinforcement learning: what the rule of quadrature does to the learned value and to its policy."""

    output_dir: Path = field(metadata={"help": "Run folder: run.json, study.json, results.jsonl. Run again to go on."})
    rules: tuple[str, ...] = _option(f"Rules to compare, of {', '.join(RULES)}.", RULES, "rules")
    n_nodes: tuple[int, ...] = _option("Samples of a segment, both ends included.", (5, 7, 9, 11, 13, 15), "rules")
    smoothness: tuple[int, ...] = _option("Sobolev orders b of the Matérn kernels, 1 to 4.", (1, 2, 3, 4), "rules")
    lengthscales: tuple[float, ...] = _option("Of the Matérn kernels, in seconds.", (0.3, 1.0, 3.0), "rules")
    jitters: tuple[float, ...] = _option("Variances added to the kernels' diagonal.", (0.0, 1e-8), "rules")
    segment_s: float = _option("Length of a segment, in seconds.", 0.1, "data")
    n_segments: int = _option("Segments recorded in each iteration.", 20, "data")
    n_iterations: int = _option("Rounds of policy iteration.", 10, "data")
    n_calibration_segments: int = _option("Segments on which error bars are checked.", 400, "data")
    seeds: tuple[int, ...] = _option("Of the states where segments start.", (0, 1, 2, 3, 4), "data")
    n_processes: int = _option("Processes, of one thread each.", 2, "run")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rules) - set(RULES))
        if unknown or not self.rules:
            raise ValueError(f"rules {unknown or 'is empty'}: there are {', '.join(RULES)}")
        if not self.n_nodes or min(self.n_nodes) < 3:
            raise ValueError(f"n_nodes {self.n_nodes}: give counts of 3 or more, both ends of a segment included")
        if not self.segment_s > 0:
            raise ValueError(f"segment_s is {self.segment_s}: give a length above 0 seconds")
        even = [n for n in self.n_nodes if n % 2 == 0]
        if even and "simpson" in self.rules:
            raise ValueError(
                f"n_nodes {even}: Simpson's rule takes odd counts; give those, or leave simpson out of rules"
            )
        if "matern" in self.rules:
            for b, lengthscale in ((b, ell) for b in self.smoothness for ell in self.lengthscales):
                Matern(b - 1, lengthscale)
        if not all(jitter >= 0 for jitter in self.jitters):
            raise ValueError(f"jitters {self.jitters}: variances, so 0 (none) or more")
        if self.n_segments < 6 or self.n_iterations < 1 or self.n_calibration_segments < 1:
            raise ValueError(
                f"n_segments {self.n_segments}, n_iterations {self.n_iterations}, n_calibration_segments "
                f"{self.n_calibration_segments}: needed 6 (three states have six products), 1 and 1 or more"
            )
        if not self.seeds or self.n_processes < 1:
            raise ValueError(f"seeds {self.seeds}, n_processes {self.n_processes}: needed one or more of each")

    def numbers_hang_on(self) -> dict[str, Any]:
        """The settings without where and how fast."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("output_dir", "n_processes")}
