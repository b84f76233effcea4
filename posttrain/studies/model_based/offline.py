"""`posttrain control panflute`: what is learned from m random transitions, with and without a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from posttrain.config_fields import plain
from posttrain.control.worlds.panflute import PanFlute
from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import random_walk
from posttrain.evaluation.study_figures.model_based import panflute_table
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_study
from posttrain.studies.model_based.config import PanFluteConfig, seeds_of
from posttrain.studies.model_based.deep_q import DeepQ
from posttrain.studies.model_based.learners import N_COPIES, Judge, ModelFit, QFit
from posttrain.studies.model_based.methods import ON_SIMPLE_MODEL, Method, fresh_model, model_of, source_of
from posttrain.studies.model_based.models import LearnedNetwork
from posttrain.studies.model_based.play import mean_return
from posttrain.studies.model_based.seed_curves import stack_dir, write_seed_curves
from posttrain.studies.model_based.tabular import TabularQ
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import LoopConfig, run_loop

STUDY = "panflute"
DATA, MODEL, AGENT, EVALUATION = range(1, 5)  # purposes of seeds
MAY_CHANGE = ("output_dir", "methods", "n_transitions", "n_processes")


@dataclass(frozen=True, slots=True)
class SizeJob:
    """One size of the data, with all methods."""

    config: PanFluteConfig
    n_transitions: int


def run_panflute(config: PanFluteConfig) -> None:
    """Every size of the data with every method; a run that was stopped goes on with what is missing.

    Prints the table.
    """
    settings = {name: value for name, value in plain(asdict(config)).items() if name not in MAY_CHANGE}
    begin_study(config.output_dir, STUDY, settings)
    run_jobs(run_size, [SizeJob(config, n) for n in config.n_transitions], n_processes=config.n_processes)
    print(panflute_table(read_study(config.output_dir)).to_markdown())


def run_size(job: SizeJob) -> None:
    """The methods of one size; those that imagine with a learned model share the same one."""
    comparison = Comparison(job.config, job.n_transitions)
    for method in job.config.methods:
        if is_done(job.config.output_dir, method=method.value, n_transitions=job.n_transitions):
            continue
        if method is Method.TABULAR:
            comparison.run_table()
        else:
            comparison.run(method)


class Comparison:
    """The methods on the same m transitions of each seed's random walk."""

    def __init__(self, config: PanFluteConfig, n_transitions: int) -> None:
        self.config, self.n_transitions = config, n_transitions
        self.world = PanFlute(config.n_pipes)
        self.memory = random_walk(self.world, self._streams(DATA), n_transitions)
        self._models: dict[str, tuple[LearnedNetwork | None, float]] = {}

    def run(self, method: Method) -> None:
        """Fit Q by one method, and write its rows and curves."""
        learned, model_cpu_s = self._learned(method)
        model = model_of(method, self.world, learned)
        streams = self._streams(AGENT)
        agent = DeepQ(self.config.deep_q(), n_state=model.n_state, n_actions=self.world.n_actions, streams=streams)
        source = source_of(method, self.memory, model, length=self.config.rollout_length, streams=streams)
        judge = Judge(
            self.world, model, seeds_of(self.config.n_seeds, purpose=EVALUATION), n_steps=self.config.n_eval_steps
        )
        learner = QFit(agent, source, judge, streams, batch_size=self.config.batch_size)
        measured = run_loop(learner, self._loop(method), settings={})
        write_seed_curves(self.config.output_dir, self._name(method), self.config.n_seeds)
        rates = [measured[f"reward_rate/{seed}"] for seed in range(self.config.n_seeds)]
        with_chance = [earned / self.config.n_eval_steps for earned in judge.returns(agent, self.world)]
        self._write(method, rates, with_chance, q_cpu_s=measured["cpu_s"], model_cpu_s=model_cpu_s)

    def run_table(self) -> None:
        """Replay in a table, by its fixed point."""
        start = time.process_time()
        rows = self.memory.all()
        tables = [
            TabularQ(rows.of_seed(seed), n_actions=self.world.n_actions, discount=self.config.discount)
            for seed in range(self.config.n_seeds)
        ]
        cpu_s = time.process_time() - start
        rates, with_chance = (
            self._rates_of_tables(tables, world) for world in (self.world.without_chance(), self.world)
        )
        self._write(Method.TABULAR, rates, with_chance, q_cpu_s=cpu_s, model_cpu_s=0.0)

    def _rates_of_tables(self, tables: Sequence[TabularQ], world: PanFlute) -> list[float]:
        streams = self._streams(EVALUATION)

        def act(observation: Tensor) -> Tensor:
            keys = streams.uniform(*observation.shape[1:-1], self.world.n_actions)
            by_seed = zip(tables, observation, keys, strict=True)
            return torch.stack([table.greedy(seen, own_keys) for table, seen, own_keys in by_seed])

        n_steps = self.config.n_eval_steps
        earned = mean_return(world, act, streams, n_copies=N_COPIES, n_steps=n_steps)
        return [of_seed / n_steps for of_seed in earned.tolist()]

    def _learned(self, method: Method) -> tuple[LearnedNetwork | None, float]:
        """The model that the method learns, fitted to the data, and the CPU seconds that this took."""
        name = "simple_model" if method in ON_SIMPLE_MODEL else f"{method}_model"
        if name not in self._models:
            streams = self._streams(MODEL)
            model = fresh_model(method, self.world, streams, self.config.networks())
            self._models[name] = (model, self._fit(model, streams, name) if model else 0.0)
        return self._models[name]

    def _fit(self, model: LearnedNetwork, streams: Streams, name: str) -> float:
        learner = ModelFit(
            model,
            self.memory,
            streams,
            batch_size=self.config.model_batch_size,
            learning_rate=self.config.model_learning_rate,
        )
        return run_loop(learner, self._loop(name), settings={})["cpu_s"]

    def _loop(self, name: str) -> LoopConfig:
        return LoopConfig(
            output_dir=stack_dir(self.config.output_dir, self._name(name)),
            n_steps=self.config.n_updates,
            eval_steps=self.config.eval_steps,
        )

    def _name(self, name: str) -> str:
        return f"m-{self.n_transitions}/{name}"

    def _streams(self, purpose: int) -> Streams:
        return Streams(seeds_of(self.config.n_seeds, purpose=purpose))

    def _write(
        self,
        method: Method,
        rates: Sequence[float],
        with_chance: Sequence[float],
        *,
        q_cpu_s: float,
        model_cpu_s: float,
    ) -> None:
        """One row per seed. A stack's CPU seconds are shared out evenly; a shared model counts for each method."""
        n_seeds = self.config.n_seeds
        for seed in range(n_seeds):
            row = {
                "method": method.value,
                "n_transitions": self.n_transitions,
                "seed": seed,
                "reward_rate": rates[seed],
                "reward_rate_with_chance": with_chance[seed],
                "cpu_s": (q_cpu_s + model_cpu_s) / n_seeds,
                "model_cpu_s": model_cpu_s / n_seeds,
            }
            append_result(self.config.output_dir, row)
