"""The runs of the study: which experiment, with which rule, from which seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.control.integral.bayesian_quadrature import PriorMean
from posttrain.evaluation.study_files import append_result
from posttrain.studies.intrl import experiments
from posttrain.studies.intrl.config import IntrlConfig
from posttrain.studies.intrl.experiments import Row
from posttrain.studies.intrl.rules import (
    AT_ANY_NODES,
    EVEN,
    EXACT_MATERN,
    LONG_MATERN,
    PAPERS_MATERN,
    ClassicRule,
    Rule,
    matern_grid,
)

ONCE = {"data_free": experiments.data_free, "carried": experiments.carried, "first_figure": experiments.first_figure}
SEEDED = {
    "paired": experiments.paired,
    "from_data": experiments.from_data,
    "irregular": experiments.irregular,
    "calibration": experiments.calibration,
}


@dataclass(frozen=True, slots=True)
class Job:
    config: IntrlConfig
    experiment: str
    rule: Rule
    seed: int = 0


def run_job(job: Job) -> int:
    """Write the rows of one job; returns how many there are."""
    rows = list(_rows(job))
    for row in rows:
        head = {"method": job.rule.method, "seed": job.seed, "experiment": job.experiment, **job.rule.entries()}
        append_result(job.config.output_dir, {**head, **row})
    return len(rows)


def all_jobs(config: IntrlConfig) -> list[Job]:
    """Every job that the config asks for, long ones first, so that processes end together."""
    classics: list[Rule] = [ClassicRule(name) for name in EVEN]
    chosen: list[Rule] = [*classics, PAPERS_MATERN, EXACT_MATERN, LONG_MATERN]
    grid = matern_grid(config.smoothness, config.lengthscales, tuple(PriorMean), config.jitters)
    exact = matern_grid(config.smoothness, config.lengthscales, (PriorMean.CONSTANT,), (0.0,))
    at_any_nodes = [*map(ClassicRule, AT_ANY_NODES), EXACT_MATERN, LONG_MATERN]
    rules: dict[str, list[Rule]] = {
        "first_figure": [ClassicRule("trapezoid"), PAPERS_MATERN, LONG_MATERN],
        "from_data": chosen,
        "paired": chosen,
        "carried": chosen,
        "data_free": list(dict.fromkeys([*chosen, *grid])),
        "irregular": at_any_nodes,
        "calibration": list(exact),
    }
    return [
        Job(config, experiment, rule, seed)
        for experiment, candidates in rules.items()
        for rule in candidates
        if rule.name in config.rules
        for seed in (config.seeds if experiment in SEEDED else (0,))
    ]


def _rows(job: Job) -> Iterator[Row]:
    if job.experiment in ONCE:
        return ONCE[job.experiment](job.config, job.rule)
    return SEEDED[job.experiment](job.config, job.rule, job.seed)
