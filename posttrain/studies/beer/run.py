"""`posttrain control beer`: methods x seeds on one control task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrain.control.continuous.environment import ActionKind, Environment, Repeated
from posttrain.control.continuous.tasks import make_environment
from posttrain.evaluation.study_files import append_result, begin_study, is_done, run_dir
from posttrain.studies.beer.agents import AgentConfig, Ddpg, Td3, Td3Config
from posttrain.studies.beer.config import Algorithm, BeerConfig, split_method
from posttrain.studies.beer.dqn import Dqn
from posttrain.studies.beer.learner import Agent, ControlLearner
from posttrain.studies.beer.penalties import penalty_of
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import LoopConfig, run_loop

EXAMPLES = {ActionKind.CONTINUOUS: "Pendulum-v1", ActionKind.DISCRETE: "LunarLander-v3"}


@dataclass(frozen=True)
class Run:
    """One method with one seed."""

    config: BeerConfig
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def run_beer(config: BeerConfig) -> Path:
    """Train every method with every seed; returns the run folder. Runs whose result is on file are not run again.

    Raises ValueError for a task that does not exist, or whose actions are not of a method's kind.
    """
    check_methods(config, environment(config))  # before any file
    begin_study(config.output_dir, "beer", config.settings())
    runs = [
        Run(config, method, seed)
        for seed in config.seeds
        for method in config.methods
        if not is_done(config.output_dir, method=method, seed=seed)
    ]
    run_jobs(train, runs, n_processes=config.n_processes)
    return config.output_dir


def train(run: Run) -> None:
    """Train one agent and add its last evaluation to results.jsonl."""
    config = run.config
    loop = LoopConfig(
        run_dir(config.output_dir, run.method, run.seed),
        config.n_steps,
        logging_steps=config.logging_steps,
        eval_steps=config.eval_steps,
        checkpoint_steps=config.checkpoint_steps,
    )
    settings = {"method": run.method, "seed": run.seed, **config.settings()}
    evaluated = run_loop(make_learner(run), loop, settings=settings)
    append_result(config.output_dir, {"method": run.method, "seed": run.seed, "task": config.task, **evaluated})


def make_learner(run: Run) -> ControlLearner:
    """The agent, its two environments and its replay, all from the run's seed."""
    config = run.config
    torch.manual_seed(run.seed)  # of the networks' initialisation alone
    training, evaluation = environment(config), environment(config)
    algorithm, name = split_method(run.method)
    penalty = penalty_of(name, config, seed=run.seed)
    common = AgentConfig(config.hidden_sizes, config.learning_rate, config.discount, config.tau)
    sizes = (training.n_observations, training.n_actions)
    smoothing = Td3Config(config.target_noise, config.noise_clip, config.actor_every)
    agents: dict[Algorithm, Callable[[], Agent]] = {
        Algorithm.DDPG: lambda: Ddpg(*sizes, common, penalty),
        Algorithm.TD3: lambda: Td3(*sizes, common, smoothing, penalty),
        Algorithm.DQN: lambda: Dqn(*sizes, common, penalty),
    }
    return ControlLearner(agents[algorithm](), training, evaluation, config, seed=run.seed)


def check_methods(config: BeerConfig, task: Environment) -> None:
    """Raises ValueError, with the fix, when a method's actions are of another kind than the task's."""
    for method in config.methods:
        kind = split_method(method)[0].action_kind
        if kind is not task.action_kind:
            fitting = " or ".join(algorithm for algorithm in Algorithm if algorithm.action_kind is task.action_kind)
            raise ValueError(
                f"method {method} is for {kind} actions, and those of {config.task} are {task.action_kind}: give "
                f"--methods {fitting}, or a --task such as {EXAMPLES[kind]}"
            )


def environment(config: BeerConfig) -> Environment:
    """The task as the agent plays it."""
    task = make_environment(config.task)
    return task if config.action_repeat == 1 else Repeated(task, n_repeats=config.action_repeat)
