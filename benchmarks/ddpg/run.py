"""DDPG and TD3 against stable-baselines3 on Pendulum: time of updates alone, and of steps with acting and replay.

    OMP_NUM_THREADS=1 python -m benchmarks.ddpg.run --out benchmarks/ddpg/results/cpu.json

writes the result and, beside it, a Markdown table of it. Rounds of N_STEPS are interleaved in one process and timed in
CPU seconds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.ddpg.peers import N_RANDOM, Case, our_learner, sb3_model
from benchmarks.measure import Step, beside, interleaved, setting, tabulate, write_result

N_STEPS = 200
CASES = [Case(algorithm, width, batch) for algorithm in ("ddpg", "td3") for width, batch in ((64, 128), (256, 256))]
PEERS = {"ours, updates": "sb3, updates", "ours, steps": "sb3, steps"}
NAMES = [*PEERS.values(), *PEERS]
PACKAGES = ["torch", "gymnasium", "stable-baselines3"]
HEADINGS = ["algorithm", "layers", "batch", "what", "ms each", "time / sb3"]


def build(name: str, case: Case) -> Step:
    """N_STEPS updates on a filled replay, or as many steps of acting, storing and updating."""
    is_update = name.endswith("updates")
    return _ours(case, is_update=is_update) if name.startswith("ours") else _sb3(case, is_update=is_update)


def _ours(case: Case, *, is_update: bool) -> Step:
    learner = our_learner(case, seed=0)
    for step in range(N_RANDOM):
        learner.step(step)

    def updates() -> dict[str, float]:
        for _ in range(N_STEPS):
            learner.agent.update(learner.replay.sample(case.batch_size, learner.generator), learner.generator)
        return {"n": N_STEPS}

    def steps() -> dict[str, float]:
        for _ in range(N_STEPS):
            learner.step(N_RANDOM)
        return {"n": N_STEPS}

    return updates if is_update else steps


def _sb3(case: Case, *, is_update: bool) -> Step:
    model = sb3_model(case, seed=0)
    model.learn(N_RANDOM + 1)

    def updates() -> dict[str, float]:
        model.train(gradient_steps=N_STEPS, batch_size=case.batch_size)
        return {"n": N_STEPS}

    def steps() -> dict[str, float]:
        model.learn(N_STEPS, reset_num_timesteps=False)
        return {"n": N_STEPS}

    return updates if is_update else steps


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    each = {key: {"ms": 1000 * step["median_seconds"] / step["n"]} for key, step in steps.items()}
    sizes = f"{case['width']}, {case['width']}"
    measured = beside("ms", each[name], [each[PEERS.get(name, name)]], digits=3)
    return [case["algorithm"], sizes, str(case["batch_size"]), name, *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the result, .json; its table goes beside it as .md")
    parser.add_argument("--rounds", type=int, default=5, help="how often every step is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"setting": setting(PACKAGES), "rounds": arguments.rounds, "cases": []}
    for case in CASES:
        steps = {name: build(name, case) for name in NAMES}
        timed = interleaved(steps, n_rounds=arguments.rounds, clock=time.process_time)
        result["cases"].append({"case": asdict(case), "steps": timed})
        write_result(arguments.out, result, table(result), n_new=len(NAMES))


if __name__ == "__main__":
    main()
