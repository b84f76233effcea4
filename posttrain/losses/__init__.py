"""Objectives: pure functions from values to summed terms. No network, config, device or file is seen here."""

from posttrain.losses.oreo import effective_temperature, oreo_step, oreo_token
from posttrain.losses.paths import later_sum, log_ratio, next_state_index, path_residual, per_sequence_mean, suffix_sum
from posttrain.losses.term import Counts, Objective, Term, Unit, total

__all__ = [
    "Counts",
    "Objective",
    "Term",
    "Unit",
    "effective_temperature",
    "later_sum",
    "log_ratio",
    "next_state_index",
    "oreo_step",
    "oreo_token",
    "path_residual",
    "per_sequence_mean",
    "suffix_sum",
    "total",
]
