"""Returns of DDPG and TD3 on walker-walk beside stable-baselines3, over seeds, with the same settings and evaluation.

OMP_NUM_THREADS=1 python -m benchmarks.ddpg.curves --out benchmarks/ddpg/results/curves.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ddpg.peers import WALKER, Case, our_config, our_learner, sb3_model
from benchmarks.measure import setting, write_result
from posttrain.evaluation.statistics import seed_interval
from posttrain.studies.beer.run import environment as environment_of
from posttrain.training.jobs import run_jobs

EVERY, N_TIMES = 3000, 4
N_EPISODES = 3
HEADINGS = ("algorithm", "by", *(f"return at {EVERY * (k + 1):,}" for k in range(N_TIMES)), "CPU s of training")
Job = tuple[str, str, int]  # library, algorithm, seed
Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def run(job: Job) -> dict[str, Any]:
    """Returns of the actor without noise every EVERY steps, and the CPU seconds that training took."""
    library, algorithm, seed = job
    case = Case(algorithm, 64, 128, WALKER)
    returns, seconds = (_ours if library == "ours" else _sb3)(case, seed)
    return {"library": library, "algorithm": algorithm, "seed": seed, "returns": returns, "cpu_s": seconds}


def _ours(case: Case, seed: int) -> tuple[list[float], float]:
    learner = our_learner(case, seed=seed)
    returns, seconds = [], 0.0
    for start in range(0, N_TIMES * EVERY, EVERY):
        begin = time.process_time()
        for step in range(start, start + EVERY):
            learner.step(step)
        seconds += time.process_time() - begin
        policy = learner.agent.policy
        returns.append(_mean_return(lambda x: policy(torch.from_numpy(x)).detach().numpy(), case, seed))  # noqa: B023
    return returns, seconds


def _sb3(case: Case, seed: int) -> tuple[list[float], float]:
    model = sb3_model(case, seed=seed)
    returns, seconds = [], 0.0
    for place in range(N_TIMES):
        begin = time.process_time()
        model.learn(EVERY, reset_num_timesteps=place == 0)
        seconds += time.process_time() - begin
        returns.append(_mean_return(lambda x: model.predict(x, deterministic=True)[0], case, seed))
    return returns, seconds


def _mean_return(act: Act, case: Case, seed: int) -> float:
    """Over episodes that begin the same for both libraries."""
    task, totals = environment_of(our_config(case)), []
    for episode in range(N_EPISODES):
        observation, total = task.reset(10_000 * (seed + 1) + episode), 0.0
        for _ in range(task.n_steps):
            observation, reward, is_terminal = task.step(act(observation))
            total += reward
            if is_terminal:
                break
        totals.append(total)
    return float(np.mean(totals))


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2)]
    for algorithm in ("ddpg", "td3"):
        for library in ("sb3", "ours"):
            chosen = [one for one in runs if (one["algorithm"], one["library"]) == (algorithm, library)]
            columns = np.array([one["returns"] for one in chosen]).T
            cells = [_spoken(column) for column in columns]
            lines.append("| " + " | ".join((algorithm, library, *cells, _spoken([x["cpu_s"] for x in chosen]))) + " |")
    return "\n".join(lines)


def _spoken(by_seed: Any) -> str:
    interval = seed_interval(by_seed)
    return f"{interval.estimate:.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the result, .json; its table goes beside it as .md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n_processes", type=int, default=1)
    arguments = parser.parse_args()
    jobs = [
        (library, name, seed) for seed in arguments.seeds for name in ("ddpg", "td3") for library in ("ours", "sb3")
    ]
    runs = run_jobs(run, jobs, n_processes=arguments.n_processes)
    result = {"setting": setting(["torch", "gymnasium", "dm-control", "stable-baselines3"]), "runs": runs}
    write_result(arguments.out, json.loads(json.dumps(result)), table(runs), n_new=4)


if __name__ == "__main__":
    main()
