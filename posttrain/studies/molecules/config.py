"""Options of `posttrain control molecules`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.control.molecules.rewards import RewardName


class Method(StrEnum):
    TB = "tb"
    TB_REPLAY = "tb_replay"
    FM = "fm"
    MARS = "mars"
    PPO = "ppo"
    RANDOM = "random"


class BlockSet(StrEnum):
    PDB105 = "pdb105"
    SMALL = "small"


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class MoleculesConfig:
    """Search for molecules that bind to sEH by GFlowNets, MARS, PPO and chance, at the same number of evaluations."""

    output_dir: Path = field(
        metadata={"help": "Run folder: results.jsonl, curves and the best molecules of each run."}
    )
    data: Path | None = field(
        default=None,
        metadata={
            "help": "Folder of blocks_PDB_105.json and proxy_params.npz; null: molecules/ below POSTTRAIN_DATA.",
            "group": "task",
        },
    )
    blocks: BlockSet = field(
        default=BlockSet.PDB105,
        metadata={"help": "pdb105: the published blocks; small: 16 blocks that need no file.", "group": "task"},
    )
    reward: RewardName = field(
        default=RewardName.SEH,
        metadata={"help": "seh: the published proxy; qed: RDKit's drug-likeness, no file needed.", "group": "task"},
    )
    exponent: float = _option("Of the reward, (max(score, floor) / scale)^exponent.", 10.0, "task")
    threshold: float = _option("Score above which scaffolds and modes are counted; of qed 0.8 is apt.", 7.0, "task")
    max_blocks: int = _option("Blocks of a molecule at most.", 8, "task")
    methods: tuple[Method, ...] = _option("Any of tb, tb_replay, fm, mars, ppo, random.", tuple(Method), "runs")
    seeds: tuple[int, ...] = _option("One run of each method per seed.", (0, 1, 2), "runs")
    n_steps: int = _option("Steps of a run; each evaluates batch_size molecules.", 320, "runs")
    batch_size: int = _option("Molecules evaluated per step; chains of mars.", 32, "runs")
    eval_steps: int = _option("Steps between two points of the curves.", 20, "runs")
    checkpoint_steps: int = _option("Steps between two checkpoints; 0: none.", 0, "runs")
    n_best: int = _option("Best molecules of a run to write to best.jsonl.", 100, "runs")
    n_processes: int = _option("Runs side by side.", 1, "runs")
    width: int = _option("Of the network.", 64, "networks")
    n_rounds: int = _option("Rounds of messages along bonds.", 4, "networks")
    exploration: float = _option("Of tb, tb_replay and fm: probability of a uniformly drawn action.", 0.05, "gflownet")
    n_replayed: int = _option("Of tb_replay: trajectories per step back from the best molecules.", 32, "gflownet")
    n_kept: int = _option("Of tb_replay: best molecules to lead back from.", 200, "gflownet")
    tb_learning_rate: float = _option("Adam's, of the policy.", 5e-3, "gflownet")
    log_z_learning_rate: float = _option("Of tb and tb_replay: Adam's, of log Z.", 0.1, "gflownet")
    initial_log_z: float = _option("Of tb and tb_replay: log Z at the start.", 30.0, "gflownet")
    fm_learning_rate: float = _option("Adam's.", 3e-3, "gflownet")
    epsilon: float = _option("Of fm: flows below it are not told apart (paper: 2.5e-5).", 2.5e-5, "gflownet")
    terminal_weight: float = _option("Of fm: weight of stops beside other states (paper: 10).", 10.0, "gflownet")
    max_grad_norm: float = _option("Of all but mars: gradients are cut to this norm.", 10.0, "gflownet")
    mars_learning_rate: float = _option("Adam's, of the proposal.", 2.5e-4, "baselines")
    mars_updates: int = _option("Updates of the proposal per step, each on 32 edits (paper: 25).", 5, "baselines")
    ppo_learning_rate: float = _option("Adam's.", 1e-3, "baselines")
    ppo_epochs: int = _option("Updates per step.", 4, "baselines")
    ppo_clip: float = _option("Of the probability ratio.", 0.2, "baselines")
    ppo_gae_decay: float = _option("λ of the generalised advantage.", 0.95, "baselines")
    ppo_entropy: float = _option("Coefficient of the entropy; 0.01 collapses.", 0.15, "baselines")
    ppo_value: float = _option("Coefficient of the value's error.", 0.5, "baselines")

    def __post_init__(self) -> None:
        if not self.methods or not self.seeds:
            raise ValueError("methods and seeds need one entry each or more")
        if min(self.n_steps, self.batch_size - 1, self.width, self.n_rounds, self.n_best, self.eval_steps) < 1:
            raise ValueError(
                f"n_steps {self.n_steps}, width {self.width}, n_rounds {self.n_rounds}, n_best {self.n_best} and "
                f"eval_steps {self.eval_steps} are at least 1, batch_size {self.batch_size} at least 2"
            )
        if not 0 <= self.exploration <= 1 or not self.epsilon > 0:
            raise ValueError(f"exploration {self.exploration} is a probability, epsilon {self.epsilon} is above 0")
        if self.n_replayed < 1 or self.n_kept < 1:
            raise ValueError(f"n_replayed {self.n_replayed} and n_kept {self.n_kept} are at least 1")
