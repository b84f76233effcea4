"""`posttrain control beer-grid`: DQN with and without penalties on three grids whose optimal values are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.control.continuous.grid import GridReward, grid_world
from posttrain.evaluation.study_files import append_result, begin_study, is_done, run_dir
from posttrain.studies.beer.grid_config import BeerGridConfig
from posttrain.studies.beer.grid_learner import GridLearner
from posttrain.studies.beer.penalties import PenaltyName, penalty_of
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import LoopConfig, run_loop


@dataclass(frozen=True)
class GridRun:
    """One reward and penalty with one seed."""

    config: BeerGridConfig
    reward: GridReward
    penalty: PenaltyName
    seed: int

    @property
    def method(self) -> str:
        return "dqn" if self.penalty is PenaltyName.NONE else f"dqn_{self.penalty}"

    def __str__(self) -> str:
        return f"{self.reward}, {self.method}, seed {self.seed}"


def run_beer_grid(config: BeerGridConfig) -> Path:
    """Train every penalty on every reward with every seed; returns the run folder. Results on file are kept."""
    begin_study(config.output_dir, "beer-grid", config.settings())
    runs = [
        GridRun(config, reward, penalty, seed)
        for seed in config.seeds
        for reward in config.rewards
        for penalty in config.penalties
    ]
    missing = [run for run in runs if not is_done(config.output_dir, **_key(run))]
    run_jobs(train, missing, n_processes=config.n_processes)
    return config.output_dir


def train(run: GridRun) -> None:
    """Train one critic and add its last evaluation to results.jsonl."""
    config = run.config
    penalty = penalty_of(run.penalty, config, seed=run.seed)
    learner = GridLearner(grid_world(run.reward), config, penalty, seed=run.seed)
    folder = run_dir(config.output_dir, f"{run.reward}/{run.method}", run.seed)
    loop = LoopConfig(folder, config.n_updates, logging_steps=config.logging_steps, eval_steps=config.eval_steps)
    evaluated = run_loop(learner, loop, settings={**_key(run), **config.settings()})
    append_result(config.output_dir, {**_key(run), **evaluated})


def _key(run: GridRun) -> dict[str, Any]:
    return {"method": run.method, "reward": run.reward.value, "seed": run.seed}
