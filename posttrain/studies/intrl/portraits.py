"""Phase portraits of Example 2: where three controllers send the state, and how far their inputs are from optimal."""

from __future__ import annotations

import numpy as np

from posttrain.control.integral.quadrature import Array
from posttrain.control.integral.segments import carried_iterations, integrate
from posttrain.control.integral.systems import ControlAffineSystem
from posttrain.studies.intrl.config import IntrlConfig
from posttrain.studies.intrl.plants import CARRIED_START, plants
from posttrain.studies.intrl.rules import LONG_MATERN, PAPERS_MATERN, ClassicRule

HALF_WIDTH = 4.0
N_GRID = 41
PATH_TIMES = np.linspace(0.0, 8.0, 161)
N_PATHS = 8


def portraits(config: IntrlConfig) -> dict[str, Array]:
    """`<controller>/velocity` [G, G, 2], `/input_error` [G, G], `/paths` [8, K, 2] and `axis` [G].

    Controllers: the first policy, and those after four iterations with the fewest samples, where rules differ most.
    """
    system = plants()["example_two"].system
    forms = {"first policy": system.start}
    for rule, n in ((PAPERS_MATERN, 2), (ClassicRule("trapezoid"), 2), (LONG_MATERN, 3)):
        built = rule.build(n, config.segment_s)
        learned = carried_iterations(system, built, CARRIED_START, n_segments=config.n_segments, n_iterations=4)
        forms[f"{rule.method}, {n} samples"] = learned[-1]
    axis = np.linspace(-HALF_WIDTH, HALF_WIDTH, N_GRID)
    arrays: dict[str, Array] = {"axis": axis}
    for name, form in forms.items():
        arrays |= {f"{name}/{key}": array for key, array in _portrait(system, form, axis).items()}
    return arrays


def _portrait(system: ControlAffineSystem, form: Array, axis: Array) -> dict[str, Array]:
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    angles = 2 * np.pi * np.arange(N_PATHS) / N_PATHS
    starts = 0.95 * HALF_WIDTH * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    return {
        "velocity": np.ascontiguousarray(system.velocity(form, grid)),
        "input_error": np.sqrt(system.excess_rate(form, grid)),  # R is 1
        "paths": np.ascontiguousarray(integrate(lambda state: system.velocity(form, state), starts, PATH_TIMES)),
    }
