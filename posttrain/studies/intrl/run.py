"""`posttrain control intrl`: every experiment of the study, on the cores that are given."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from posttrain.evaluation.study_figures.intrl_tables import errors_table, slopes_table
from posttrain.evaluation.study_files import ARRAYS, append_result, begin_study, read_results, read_study, run_dir
from posttrain.studies.intrl.config import IntrlConfig
from posttrain.studies.intrl.experiments import euler, newton
from posttrain.studies.intrl.jobs import Job, all_jobs, run_job
from posttrain.studies.intrl.portraits import portraits
from posttrain.training.jobs import run_jobs

NAME = "intrl"
PORTRAITS = "portraits"


def run_intrl(config: IntrlConfig) -> Path:
    """Run what is not on file yet, print the main tables; returns the run folder."""
    begin_study(config.output_dir, NAME, config.numbers_hang_on())
    run_jobs(run_job, _open_jobs(config), n_processes=config.n_processes)
    _run_without_rules(config)
    run = read_study(config.output_dir)
    print(errors_table(run, of="from_data").to_markdown())
    print(slopes_table(run, of="from_data").to_markdown())
    return config.output_dir


def _open_jobs(config: IntrlConfig) -> list[Job]:
    done = {(row["experiment"], row["method"], row["seed"]) for row in read_results(config.output_dir)}
    return [job for job in all_jobs(config) if (job.experiment, job.rule.method, job.seed) not in done]


def _run_without_rules(config: IntrlConfig) -> None:
    done = {row["experiment"] for row in read_results(config.output_dir)}
    for experiment, method, rows in (("newton", "kleinman", newton), ("euler", "euler_gain", euler)):
        for row in rows() if experiment not in done else ():
            append_result(config.output_dir, {"method": method, "seed": 0, "experiment": experiment, **row})
    folder = run_dir(config.output_dir, PORTRAITS, 0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.from_numpy(array) for name, array in portraits(config).items()}, folder / ARRAYS)
