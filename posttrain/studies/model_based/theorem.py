"""`posttrain control model-theorem`: how many value functions fit the data, by the Bellman equation and by a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from posttrain.config_fields import plain
from posttrain.control.worlds.theorem import N_PAIRS, ModelClass, SetSizes, factored_models, tabular_models
from posttrain.evaluation.study_files import append_result, begin_study, is_done
from posttrain.studies.model_based.config import ModelTheoremConfig

STUDY = "model-theorem"
CLASSES = {"factored": factored_models, "tabular": tabular_models}


def run_model_theorem(config: ModelTheoremConfig) -> None:
    """Both classes, one row for each number of observed pairs; prints them."""
    settings = {name: value for name, value in plain(asdict(config)).items() if name != "output_dir"}
    begin_study(config.output_dir, STUDY, settings)
    print(f"{'class':10}{'observed':>9}{'fits':>10}{'model':>10}{'strict':>8}{'violations':>12}")
    for name, models in CLASSES.items():
        if not is_done(config.output_dir, method=name):
            for row in measure_class(name, ModelClass(models()), n_true_models=config.n_true_models, seed=config.seed):
                append_result(config.output_dir, row)
                print(
                    f"{name:10}{row['n_observed']:9}{row['n_model_free']:10.1f}{row['n_model_based']:10.1f}"
                    f"{row['strict_share']:8.2f}{row['n_violations']:12}"
                )


def measure_class(
    name: str, models: ModelClass, *, n_true_models: int, seed: int
) -> list[dict[str, str | int | float]]:
    """Means over random true models of the class and random orders of observing the pairs."""
    generator = torch.Generator().manual_seed(seed)
    by_model: list[list[SetSizes]] = []
    for _ in range(n_true_models):
        true_model = int(torch.randint(len(models.next_state), (), generator=generator))
        by_model.append(models.set_sizes(true_model, torch.randperm(N_PAIRS, generator=generator)))
    return [_row(name, sizes) for sizes in zip(*by_model, strict=True)]


def _row(name: str, sizes: Sequence[SetSizes]) -> dict[str, str | int | float]:
    n = len(sizes)
    return {
        "method": name,
        "n_observed": sizes[0].n_observed,
        "n_model_free": sum(s.n_model_free for s in sizes) / n,
        "n_model_based": sum(s.n_model_based for s in sizes) / n,
        "strict_share": sum(s.n_model_based < s.n_model_free for s in sizes) / n,
        "n_violations": sum(not s.is_subset for s in sizes),
    }
