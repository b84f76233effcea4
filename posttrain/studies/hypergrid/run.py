"""`posttrain control hypergrid`: every method for the same CPU time on the same grid, a run for each seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.config_fields import plain
from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.evaluation.study_files import ARRAYS, append_result, begin_study, is_done, run_dir
from posttrain.studies.hypergrid.chain_learner import Acceptance, ChainLearner, MarsLearner
from posttrain.studies.hypergrid.config import HypergridConfig
from posttrain.studies.hypergrid.flow_learner import FlowLearner
from posttrain.studies.hypergrid.methods import FLOW_METHODS, Baseline
from posttrain.studies.hypergrid.ppo_learner import Gain, PpoLearner
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import Learner, LoopConfig, run_loop

STUDY = "hypergrid"
NOT_SETTINGS = frozenset({"output_dir", "methods", "seeds", "n_processes"})  # what no run's numbers hang on


class GridLearner(Learner, Protocol):
    def distribution(self) -> Tensor:
        """[S] float64, what it samples."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    config: HypergridConfig
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def run_hypergrid(config: HypergridConfig) -> Path:
    """Run what is not on file yet, print a line for each run; returns the run folder."""
    begin_study(config.output_dir, STUDY, _settings(config))
    jobs = [
        Job(config, method, seed)
        for method in config.methods
        for seed in config.seeds
        if not is_done(config.output_dir, method=method, seed=seed)
    ]
    for row in run_jobs(run_method, jobs, n_processes=config.n_processes):
        print(
            f"{row['method']:18} seed {row['seed']}  TV {row['tv']:.4f}  {row['modes']:.0f} modes, "
            f"{row['states']:,.0f} states, {row['updates']:,.0f} updates, {row['cpu_s']:.0f} CPU s"
        )
    return config.output_dir


def run_method(job: Job) -> dict[str, Any]:
    """One run: curves, and the row that is added to results.jsonl when it is over."""
    config, grid = job.config, job.config.grid()
    learner = build_learner(job.method, grid, config, seed=job.seed)
    folder = run_dir(config.output_dir, job.method, job.seed)
    loop = LoopConfig(
        folder,
        config.max_updates,
        logging_steps=10 * config.eval_steps,  # losses are not drawn
        eval_steps=config.eval_steps,
        max_cpu_s=config.seconds,
    )
    result = run_loop(learner, loop, settings=_settings(config))
    if grid.n_dims == 2:
        arrays = {"learned": learner.distribution(), "target": grid.graph.log_target.exp()}
        save_file({name: _on_grid(grid, values) for name, values in arrays.items()}, folder / ARRAYS)
    row = {"method": job.method, "seed": job.seed, "updates": result.pop("steps"), **result}
    append_result(config.output_dir, row)
    return row


def build_learner(method: str, grid: Hypergrid, config: HypergridConfig, *, seed: int) -> GridLearner:
    """The learner of a method's name."""
    if method in FLOW_METHODS:
        return FlowLearner(grid, FLOW_METHODS[method], config.flows(), seed=seed)
    match Baseline(method):
        case Baseline.MCMC:
            return ChainLearner(grid, Acceptance.HASTINGS, config.chains(), seed=seed)
        case Baseline.MCMC_NO_HASTINGS:
            return ChainLearner(grid, Acceptance.REWARD_RATIO, config.chains(), seed=seed)
        case Baseline.MARS:
            return MarsLearner(grid, config.chains(), seed=seed)
        case Baseline.PPO:
            return PpoLearner(grid, Gain.REWARD, config.ppo(), seed=seed)
        case Baseline.SOFT_PPO:
            return PpoLearner(grid, Gain.SOFT, config.ppo(), seed=seed)


def _settings(config: HypergridConfig) -> Mapping[str, Any]:
    return {name: value for name, value in plain(asdict(config)).items() if name not in NOT_SETTINGS}


def _on_grid(grid: Hypergrid, values: Tensor) -> Tensor:
    """[H, H] float64; NaN in cells that no trajectory reaches."""
    cells = torch.full((grid.side,) * grid.n_dims, torch.nan, dtype=torch.float64)
    cells[tuple(grid.cell.T)] = values
    return cells
