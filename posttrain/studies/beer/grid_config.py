"""Options of `posttrain control beer-grid`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config_fields import plain
from posttrain.control.continuous.grid import GridReward
from posttrain.studies.beer.penalties import PenaltyName


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class BeerGridConfig:
    """Train DQN with penalties on an 8 x 8 grid, and measure it against value iteration. Run again to go on."""

    output_dir: Path = field(metadata={"help": "Run folder: results.jsonl, and metrics.jsonl of every run."})
    rewards: tuple[GridReward, ...] = _option(
        "cost: -1 a move; distance: 1 - distance to the goal, without end; goal: 1 at the goal.",
        tuple(GridReward),
        "study",
    )
    penalties: tuple[PenaltyName, ...] = _option(
        "none is plain DQN; beer, hinge, released, dr3, infer.",
        (PenaltyName.NONE, PenaltyName.BEER, PenaltyName.RELEASED, PenaltyName.DR3),
        "study",
    )
    seeds: tuple[int, ...] = _option("One run of each reward and penalty for each seed.", (0, 1, 2, 3, 4), "study")
    n_updates: int = _option("Updates of a run.", 8000, "study")
    n_processes: int = _option("Runs at a time, with one thread each.", 1, "study")
    logging_steps: int = _option("Updates between rows of metrics.jsonl.", 250, "study")
    eval_steps: int = _option("Updates between evaluations over all pairs.", 250, "study")
    penalty_coef: float = _option("Coefficient of BEER in all its forms; the paper's is 1e-3.", 1e-3, "penalty")
    dr3_coef: float = _option("Coefficient of DR3.", 1e-3, "penalty")
    infer_coef: float = _option("Coefficient of InFeR; the paper's comparison does not say its own.", 0.1, "penalty")
    infer_heads: int = _option("InFeR: fixed random heads on the features.", 10, "penalty")
    infer_scale: float = _option(
        "InFeR: multiple of its first value that a head is held to; at 1 the penalty begins at 0.", 1.0, "penalty"
    )
    hidden_sizes: tuple[int, ...] = _option("Layers of the critic.", (64, 64), "critic")
    learning_rate: float = _option("Of Adam.", 3e-4, "critic")
    discount: float = _option("Of the return, per move.", 0.99, "critic")
    tau: float = _option("Share of its distance by which the slow copy follows.", 0.005, "critic")
    batch_size: int = _option("Pairs of an update, drawn uniformly.", 128, "critic")
    rank_threshold: float = _option("Smallest singular value of features / √N that counts.", 0.01, "measures")
    rank_delta: float = _option(
        "Share of the singular values' sum that the effective rank leaves out.", 0.01, "measures"
    )

    def __post_init__(self) -> None:
        if not 0 < self.discount < 1:
            raise ValueError(f"discount is {self.discount}, needs 0 < discount < 1: the bound divides by it")
        if self.infer_heads < 1:
            raise ValueError(f"infer_heads is {self.infer_heads}, needs 1 or more")
        for name in ("rewards", "penalties", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"{name} are {plain(given)}: needed one or more, none of them twice")

    def settings(self) -> dict[str, Any]:
        """What the numbers of a run hang on."""
        outer = ("output_dir", "rewards", "penalties", "seeds", "n_processes", "logging_steps")
        return {name: plain(value) for name, value in asdict(self).items() if name not in outer}
