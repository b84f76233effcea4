"""`posttrain control strings`: every method from every seed, on the cores that are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from posttrain.evaluation.study_figures.strings import results_table
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_study, run_dir
from posttrain.studies.strings.config import StringsConfig
from posttrain.studies.strings.learner import StringLearner
from posttrain.studies.strings.objectives import Method
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import LoopConfig, run_loop

NAME = "strings"


@dataclass(frozen=True, slots=True)
class Job:
    config: StringsConfig
    method: Method
    seed: int


def run_strings(config: StringsConfig) -> Path:
    """Train what is not on file yet, print the table; returns the run folder."""
    begin_study(config.output_dir, NAME, config.numbers_hang_on())
    jobs = [Job(config, method, seed) for seed in config.seeds for method in config.methods]
    open_jobs = [job for job in jobs if not is_done(config.output_dir, method=job.method.value, seed=job.seed)]
    run_jobs(run_job, open_jobs, n_processes=config.n_processes)
    print(results_table(read_study(config.output_dir)).to_markdown())
    return config.output_dir


def run_job(job: Job) -> None:
    """Train one policy, and add its last evaluation to the results."""
    config = job.config
    folder = run_dir(config.output_dir, job.method.value, job.seed)
    folder.mkdir(parents=True, exist_ok=True)
    loop = LoopConfig(folder, n_steps=config.n_steps, logging_steps=config.eval_steps, eval_steps=config.eval_steps)
    settings = {**config.numbers_hang_on(), "method": job.method.value, "seed": job.seed}
    last = run_loop(StringLearner(config, job.method, seed=job.seed), loop, settings=settings)
    append_result(config.output_dir, {"method": job.method.value, "seed": job.seed, **last})
