"""Our rules of quadrature against scipy's and emukit's: equality, and time, in one run of one process.

    python -m benchmarks.quadrature.run --out benchmarks/quadrature/results/cpu.json

needs numpy, scipy and mpmath alone, so that it also runs in the environment of a peer. emukit is compared where it is
installed, and said to be missing where not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quadrature.peers import Array, emukit_matern, scipy_simpson, scipy_spline, scipy_trapezoid
from posttrain.control.integral.bayesian_quadrature import PriorMean, bayesian_quadrature_at
from posttrain.control.integral.kernels import Matern
from posttrain.control.integral.quadrature import Quadrature, cubic_spline, simpson, trapezoid

N_NODES, LENGTH = (5, 9, 15), 0.1
N_SEGMENTS, N_CALLS, N_ROUNDS = 20, 200, 9  # a call integrates the segments of one iteration of the study
LENGTHSCALE = 0.3
SCIPY = {"trapezoid": (trapezoid, scipy_trapezoid), "simpson": (simpson, scipy_simpson)}
SCIPY |= {"cubic_spline": (cubic_spline, scipy_spline)}
HEADINGS = ["rule", "peer", "N", "largest difference", "ours, µs", "peer, µs", "peer / ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the result, .json; its table goes beside it as .md")
    out = parser.parse_args().out
    rows = [compare_with_scipy(name, n) for name in SCIPY for n in N_NODES]
    if installed("emukit"):
        rows += [compare_with_emukit(p, n) for p in range(3) for n in N_NODES]
    else:
        print("emukit is not installed: its rows are left out")
    packages = {name: installed(name) for name in ("numpy", "scipy", "mpmath", "emukit")}
    result = {"device": cpu(), "python": platform.python_version(), "packages": packages, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


def compare_with_scipy(name: str, n: int) -> dict[str, Any]:
    """Our rule is built once and applied; scipy's function derives its weights at each call."""
    build, peer = SCIPY[name]
    rule, samples = build(n, LENGTH), costs(n)
    difference = float(np.abs(rule(samples) - peer(rule.nodes, samples)).max())
    ours, theirs = interleaved(partial(rule, samples), partial(peer, rule.nodes, samples))
    return {"rule": name, "peer": "scipy", "n": n, "difference": difference, "ours_us": ours, "peer_us": theirs}


def compare_with_emukit(p: int, n: int) -> dict[str, Any]:
    """Weights are made once for all segments: by us in many digits, by emukit in float64 (relative difference)."""
    times = np.linspace(0.0, LENGTH, n)
    peer = emukit_matern(p, LENGTHSCALE, LENGTH)
    rule = build_uncached(p, times)
    difference = float(np.abs(rule.weights - peer(times)[0]).max() / np.abs(rule.weights).max())
    ours, theirs = interleaved(partial(build_uncached, p, times), partial(peer, times), n_calls=3)
    rule_name = f"Matérn {2 * p + 1}/2, weights"
    return {"rule": rule_name, "peer": "emukit", "n": n, "difference": difference, "ours_us": ours, "peer_us": theirs}


def build_uncached(p: int, times: Array) -> Quadrature:
    from posttrain.control.integral import bayesian_quadrature

    bayesian_quadrature._solve.cache_clear()
    return bayesian_quadrature_at(times, LENGTH, kernel=Matern(p, LENGTHSCALE), mean=PriorMean.ZERO)


def costs(n: int) -> Array:
    """[S, N] smooth functions, decaying and turning as running costs do."""
    generator = np.random.default_rng(0)
    rate, phase = generator.uniform(0.5, 3.0, (2, N_SEGMENTS, 1))
    times = np.linspace(0.0, LENGTH, n)
    return np.exp(-rate * times) * (2.0 + np.sin(10 * times + phase))


def interleaved(ours: Callable[[], Any], peer: Callable[[], Any], *, n_calls: int = N_CALLS) -> tuple[float, float]:
    """CPU microseconds of a call of each, medians of rounds in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(N_ROUNDS):
        for name, call in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            for _ in range(n_calls):
                call()
            seconds[name].append((time.process_time() - start) / n_calls)
    return 1e6 * statistics.median(seconds["ours"]), 1e6 * statistics.median(seconds["peer"])


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["rule"],
            row["peer"],
            str(row["n"]),
            f"{row['difference']:.0e}",
            f"{row['ours_us']:.1f}",
            f"{row['peer_us']:.1f}",
            f"{row['peer_us'] / row['ours_us']:.3g}",
        ]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (HEADINGS, ["---"] * len(HEADINGS), *cells))


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "CPU: " + next(line for line in lines if line.startswith("model name")).split(":")[1].strip()


if __name__ == "__main__":
    main()
