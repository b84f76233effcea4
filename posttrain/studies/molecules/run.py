"""`posttrain control molecules`: every method with every seed, at the same number of evaluated molecules."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from posttrain.config_fields import plain
from posttrain.control.molecules.blocks import Blocks, read_blocks
from posttrain.control.molecules.environment import MoleculeEnvironment
from posttrain.control.molecules.rewards import BLOCKS_FILE, data_file, make_reward
from posttrain.control.molecules.small_blocks import small_blocks
from posttrain.evaluation.study_figures.molecules import BEST, results_table
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_study, run_dir
from posttrain.studies.molecules.baselines import MarsLearner, MarsSettings, RandomLearner
from posttrain.studies.molecules.config import BlockSet, Method, MoleculesConfig
from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.evaluations import Evaluations
from posttrain.studies.molecules.flow_losses import FlowMatchingLoss, TrajectoryBalanceLoss
from posttrain.studies.molecules.gflownet import GflownetLearner, GflownetSettings
from posttrain.studies.molecules.network import MoleculeNetwork
from posttrain.studies.molecules.ppo import PpoLearner, PpoSettings
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import Learner, LoopConfig, run_loop

STUDY = "molecules"
MARS_UPDATE_BATCH, MARS_KEPT = 32, 5000  # as in the released comparison
HANGS_NOT_ON = frozenset({"output_dir", "data", "n_processes", "methods", "seeds", "checkpoint_steps"})


@dataclass(frozen=True, slots=True)
class Job:
    """One method with one seed."""

    config: MoleculesConfig
    method: Method
    seed: int

    def __str__(self) -> str:
        return f"{self.method} with seed {self.seed}"


def run_molecules(config: MoleculesConfig) -> Path:
    """Run what has no result yet; returns the run folder. results.jsonl has one row per method and seed."""
    make_block_set(config)  # refuses what cannot be read before anything is written
    reward = make_reward(config.reward, config.data, exponent=config.exponent)
    constants = {"reward_floor": reward.floor, "reward_scale": reward.scale}
    begin_study(config.output_dir, STUDY, {**settings_of(config), **constants})
    jobs = [
        Job(config, method, seed)
        for seed in config.seeds
        for method in config.methods
        if not is_done(config.output_dir, method=str(method), seed=seed)
    ]
    run_jobs(run_job, jobs, n_processes=config.n_processes)
    print(results_table(read_study(config.output_dir)).to_markdown(), end="")
    return config.output_dir


def settings_of(config: MoleculesConfig) -> dict[str, Any]:
    """What the numbers hang on."""
    return {name: value for name, value in plain(asdict(config)).items() if name not in HANGS_NOT_ON}


def run_job(job: Job) -> None:
    """Train, and write the curves, best.jsonl and the row of results.jsonl."""
    config = job.config
    folder = run_dir(config.output_dir, str(job.method), job.seed)
    folder.mkdir(parents=True, exist_ok=True)
    learner, evaluations = make_learner(config, job.method, job.seed)
    loop = LoopConfig(
        folder,
        n_steps=config.n_steps,
        logging_steps=config.eval_steps,
        eval_steps=config.eval_steps,
        checkpoint_steps=config.checkpoint_steps,
    )
    measured = run_loop(learner, loop, settings=settings_of(config))
    best = [json.dumps({"smiles": smiles, "score": score}) for smiles, score in evaluations.ranked()[: config.n_best]]
    (folder / BEST).write_text("\n".join(best) + "\n", encoding="utf-8")
    append_result(config.output_dir, {"method": str(job.method), "seed": job.seed, **measured})


def make_learner(config: MoleculesConfig, method: Method, seed: int) -> tuple[Learner, Evaluations]:
    """A method at its start, and the account of the molecules that it evaluates."""
    torch.manual_seed(seed)  # of the network's weights
    generator = Generator().manual_seed(seed)
    environment = MoleculeEnvironment(make_block_set(config), max_blocks=config.max_blocks)
    reward = make_reward(config.reward, config.data, exponent=config.exponent)
    evaluations = Evaluations(environment.blocks, reward, threshold=config.threshold)
    encoder = MoleculeEncoder(environment)
    network = MoleculeNetwork(encoder, width=config.width, n_rounds=config.n_rounds)
    match method:
        case Method.TB | Method.TB_REPLAY:
            n_replayed = config.n_replayed if method is Method.TB_REPLAY else 0
            settings = _gflownet_settings(config, config.tb_learning_rate, n_replayed)
            learner = GflownetLearner(network, encoder, evaluations, TrajectoryBalanceLoss(), settings, generator)
        case Method.FM:
            loss = FlowMatchingLoss(math.log(config.epsilon), config.terminal_weight)
            settings = _gflownet_settings(config, config.fm_learning_rate, n_replayed=0)
            learner = GflownetLearner(network, encoder, evaluations, loss, settings, generator)
        case Method.MARS:
            learner = MarsLearner(network, encoder, evaluations, _mars_settings(config), generator)
        case Method.PPO:
            learner = PpoLearner(network, encoder, evaluations, _ppo_settings(config), generator)
        case Method.RANDOM:
            learner = RandomLearner(environment, evaluations, config.batch_size, generator)
    return learner, evaluations


def make_block_set(config: MoleculesConfig) -> Blocks:
    match config.blocks:
        case BlockSet.PDB105:
            return read_blocks(data_file(BLOCKS_FILE, config.data))
        case BlockSet.SMALL:
            return small_blocks()


def _gflownet_settings(config: MoleculesConfig, learning_rate: float, n_replayed: int) -> GflownetSettings:
    return GflownetSettings(
        batch_size=config.batch_size,
        n_replayed=n_replayed,
        n_kept=config.n_kept,
        exploration=config.exploration,
        learning_rate=learning_rate,
        log_z_learning_rate=config.log_z_learning_rate,
        initial_log_z=config.initial_log_z,
        max_grad_norm=config.max_grad_norm,
    )


def _mars_settings(config: MoleculesConfig) -> MarsSettings:
    return MarsSettings(
        n_chains=config.batch_size,
        n_updates=config.mars_updates,
        update_batch=MARS_UPDATE_BATCH,
        n_kept=MARS_KEPT,
        learning_rate=config.mars_learning_rate,
    )


def _ppo_settings(config: MoleculesConfig) -> PpoSettings:
    return PpoSettings(
        batch_size=config.batch_size,
        n_epochs=config.ppo_epochs,
        clip=config.ppo_clip,
        gae_decay=config.ppo_gae_decay,
        entropy=config.ppo_entropy,
        value=config.ppo_value,
        learning_rate=config.ppo_learning_rate,
        max_grad_norm=config.max_grad_norm,
    )
