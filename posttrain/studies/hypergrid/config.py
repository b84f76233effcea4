"""Options of `posttrain control hypergrid`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.control.gflownet.hypergrid import Hypergrid, StopRule, hypergrid
from posttrain.studies.hypergrid.chain_learner import ChainSettings
from posttrain.studies.hypergrid.flow_learner import FlowSettings
from posttrain.studies.hypergrid.methods import METHODS
from posttrain.studies.hypergrid.ppo_learner import PpoSettings


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class HypergridConfig:
    """Sample the cells of a hypergrid in proportion to their reward: GFlowNets, Markov chains, policy gradients.

    Every method gets the same CPU time and is judged by the total variation between what it samples and R/Z, which
    dynamic programming gives exactly. Run again to go on after a stop.
    """

    output_dir: Path = field(metadata={"help": "Run folder: results.jsonl, study.json, curves of every run."})
    methods: tuple[str, ...] = _option(
        f"Which methods to run, of: {', '.join(METHODS)}.", ("fm", "tb", "subtb", "mcmc", "ppo"), "study"
    )
    seeds: tuple[int, ...] = _option("Of weights and samples; one run for each method and seed.", (0, 1, 2), "study")
    seconds: float = _option("CPU seconds of a run, without its evaluations.", 20.0, "study")
    max_updates: int = _option("A run ends after so many updates if its time is not over by then.", 1_000_000, "study")
    eval_steps: int = _option("Updates between two points of the curves.", 40, "study")
    n_processes: int = _option("Runs side by side, one thread each.", 1, "study")
    n_dims: int = _option("Coordinates of a cell (n).", 2, "grid")
    side: int = _option("Values of a coordinate (H).", 8, "grid")
    reward_floor: float = _option("Reward outside the plateaus (R0); small values part the modes.", 0.1, "grid")
    stop_rule: StopRule = field(
        default=StopRule.FORCED,
        metadata={
            "help": "forced: an episode ends where a coordinate reaches H-1, as in the paper's code; free: by the "
            "stop alone. The two have different objects and Z.",
            "group": "grid",
        },
    )
    batch_size: int = _option("Trajectories of a GFlowNet's update.", 16, "training")
    width: int = _option("Of the two hidden layers.", 256, "training")
    learning_rate: float = _option("Of Adam, for GFlowNets and MARS.", 1e-3, "training")
    log_z_learning_rate: float = _option("Of log Z.", 0.1, "training")
    average_decay: float = _option("Of the running average of weights that is evaluated.", 0.995, "training")
    sub_trajectory_decay: float = _option("Weight of a sub-trajectory per step (lambda of SubTB).", 0.9, "training")
    flow_epsilon: float = _option("Added to flows within the log of flow matching; 0 for none.", 0.0, "training")
    n_chains: int = _option("Chains of the Markov chain methods.", 16, "baselines")
    n_sweep: int = _option("Steps of every chain in one update.", 100, "baselines")
    ppo_batch_size: int = _option("Trajectories of a round of PPO.", 256, "baselines")
    ppo_epochs: int = _option("Passes over a round.", 4, "baselines")
    ppo_minibatches: int = _option("Updates of a pass.", 4, "baselines")
    ppo_learning_rate: float = _option("Of Adam, for PPO.", 3e-4, "baselines")
    ppo_clip: float = _option("Bound on the change of a probability.", 0.2, "baselines")
    ppo_entropy: float = _option("Weight of PPO's entropy bonus, beside rewards of mean 1.", 0.5, "baselines")
    ppo_gae_decay: float = _option("Lambda of generalised advantages.", 0.95, "baselines")

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods {', '.join(unknown) or '(none)'}: needed some of {', '.join(METHODS)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: needed one or more, each once")
        if not self.seconds > 0 or min(self.max_updates, self.eval_steps, self.n_processes) < 1:
            raise ValueError("seconds is positive; max_updates, eval_steps and n_processes are at least 1")
        if self.flow_epsilon < 0:
            raise ValueError(f"flow_epsilon is {self.flow_epsilon:g}, needs 0 or more: it is added to flows")
        if self.grid().n_modes == 0:
            raise ValueError(
                f"side {self.side}: no cell has 0.6 < |2x/(H-1) - 1| < 0.8, so there is no mode to find; "
                "needed 7, 8, 9, 10 or 12 and more"
            )

    def grid(self) -> Hypergrid:
        """Raises ValueError for sizes and rewards that make no grid."""
        return hypergrid(n_dims=self.n_dims, side=self.side, reward_floor=self.reward_floor, stop_rule=self.stop_rule)

    def flows(self) -> FlowSettings:
        return FlowSettings(
            batch_size=self.batch_size,
            width=self.width,
            learning_rate=self.learning_rate,
            log_z_learning_rate=self.log_z_learning_rate,
            sub_trajectory_decay=self.sub_trajectory_decay,
            log_epsilon=math.log(self.flow_epsilon) if self.flow_epsilon else -math.inf,
            average_decay=self.average_decay,
        )

    def chains(self) -> ChainSettings:
        return ChainSettings(self.n_chains, self.n_sweep, self.width, self.learning_rate)

    def ppo(self) -> PpoSettings:
        return PpoSettings(
            batch_size=self.ppo_batch_size,
            n_epochs=self.ppo_epochs,
            n_minibatches=self.ppo_minibatches,
            width=self.width,
            learning_rate=self.ppo_learning_rate,
            clip=self.ppo_clip,
            entropy=self.ppo_entropy,
            gae_decay=self.ppo_gae_decay,
            average_decay=self.average_decay,
        )
