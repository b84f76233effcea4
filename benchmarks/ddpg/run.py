"""DDPG and TD3 against stable-baselines3 on Pendulum: time of updates alone, and of steps with acting and replay.

    OMP_NUM_THREADS=1 python -m benchmarks.ddpg.run --out benchmarks/ddpg/results/cpu.json

writes the result and, beside it, a Markdown table of it. Rounds of N_STEPS are interleaved in one process and timed in
CPU seconds.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.ddpg.peers import N_RANDOM, Case, our_learner, sb3_model
from benchmarks.measure import Comparison, Step, beside, compare, tabulate

N_STEPS = 200
CASES = [Case(algorithm, width, batch) for algorithm in ("ddpg", "td3") for width, batch in ((64, 128), (256, 256))]
PEERS = {"ours, updates": "sb3, updates", "ours, steps": "sb3, steps"}
NAMES = [*PEERS.values(), *PEERS]
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


if __name__ == "__main__":
    compare(
        Comparison(
            module="benchmarks.ddpg.run",
            cases=CASES,
            names=lambda case: NAMES,
            build=build,
            build_alone=build,
            table=table,
            packages=["torch", "gymnasium", "stable-baselines3"],
            clock=time.process_time,
        ),
        __doc__,
    )
