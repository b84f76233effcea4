"""An update of trajectory balance and of flow matching beside torchgfn's, and what both sample after the same time.

    OMP_NUM_THREADS=1 python -m benchmarks.gflownet.run --out benchmarks/gflownet/results/cpu.json

Needs torchgfn 2.4.1, which needs numpy < 2: an environment of its own, in which posttrain need not be installed.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved, setting, tabulate, write_result
from posttrain.control.gflownet.exact import terminal_distribution
from posttrain.control.gflownet.hypergrid import StopRule, hypergrid
from posttrain.control.gflownet.values import end_flows, flow_paths, interior_flows, visited_after_source
from posttrain.losses import flow_matching, total, trajectory_balance
from posttrain.studies.hypergrid.flow_learner import Balance, FlowLearner, FlowMethod, FlowSettings
from posttrain.studies.hypergrid.sample_log import total_variation
from posttrain.training.ema import update_ema

if TYPE_CHECKING:
    from benchmarks.gflownet.peer import Peer

REWARD_FLOOR, SIDE, BATCH_SIZE = 0.1, 8, 16
UPDATES_PER_ROUND = 20  # one alone is too short to time
TRAINING_S = {2: 5.0, 4: 20.0}  # CPU seconds of each, by n_dims
AVERAGE_DECAY = 0.995
HEADINGS = ["n", "objective", "library", "CPU ms / update", "/ torchgfn", "loss, same weights", "difference"]
HEADINGS += ["CPU s", "updates", "TV", "TV, averaged weights"]


@dataclass(frozen=True, slots=True)
class Case:
    n_dims: int
    balance: str


CASES = [Case(n, balance) for n in (2, 4) for balance in (Balance.TRAJECTORY.value, Balance.FLOW_MATCHING.value)]


def main() -> None:
    from benchmarks.gflownet.peer import Peer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help=f"of {UPDATES_PER_ROUND} updates of each")
    parser.add_argument("--out", type=Path, required=True, help="the result, .json; its table goes beside it as .md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"setting": setting(["torch", "torchgfn"]), "rounds": arguments.rounds, "cases": []}
    for case in CASES:
        steps = measure(case, Peer, arguments.rounds)
        result["cases"].append({"case": asdict(case), "steps": steps})
        write_result(arguments.out, result, table(result), n_new=len(steps))


def make_learner(case: Case, *, learning_rate: float) -> FlowLearner:
    grid = hypergrid(n_dims=case.n_dims, side=SIDE, reward_floor=REWARD_FLOOR, stop_rule=StopRule.FREE)
    settings = FlowSettings(
        batch_size=BATCH_SIZE,
        width=256,
        learning_rate=learning_rate,
        log_z_learning_rate=0.1,
        sub_trajectory_decay=0.9,
        log_epsilon=-torch.inf,
        average_decay=AVERAGE_DECAY,
    )
    return FlowLearner(grid, FlowMethod(Balance(case.balance)), settings, seed=0)


def measure(case: Case, make_peer: Callable[..., Peer], n_rounds: int) -> dict[str, dict[str, Any]]:
    """Both libraries on a case: losses of the same weights, what training for a while gives, times in turn.

    The timed updates go on from the weights that ours ended with, for both, and hardly move them: trajectories are as
    long as those of a trained policy, and equally long.
    """
    learner = make_learner(case, learning_rate=1e-3)
    peer = make_peer(learner, REWARD_FLOOR)
    losses = same_losses(learner, peer)
    seconds = TRAINING_S[case.n_dims]
    trained = {
        "torchgfn": train(peer.step, peer.network, peer.log_policy, learner, seconds),
        "posttrain": train(learner_step(learner), learner.model.network, learner.model.policy, learner, seconds),
    }
    timed = make_learner(case, learning_rate=1e-8)
    timed.model.network.load_state_dict(learner.model.network.state_dict())
    rounds = {
        "torchgfn": partial(several, make_peer(timed, REWARD_FLOOR).step),
        "posttrain": partial(several, learner_step(timed)),
    }
    times = interleaved(rounds, n_rounds=n_rounds, clock=time.process_time)
    return {name: {**times[name], **trained[name], "loss": losses[name]} for name in rounds}


def several(update: Callable[[], Any]) -> dict[str, float]:
    for _ in range(UPDATES_PER_ROUND):
        update()
    return {}


def learner_step(learner: FlowLearner) -> Callable[[], None]:
    n_done = 0

    def step() -> None:
        nonlocal n_done
        learner.step(n_done)
        n_done += 1

    return step


def same_losses(learner: FlowLearner, peer: Peer) -> dict[str, float]:
    """Of both libraries on the same trajectories, with the same weights and log Z = 0."""
    from benchmarks.gflownet.peer import as_ours

    torch.manual_seed(0)
    theirs = peer.sample()
    ours = as_ours(learner.grid, theirs)
    graph, tables = learner.grid.graph, learner.model.tables(learner.model.states)
    if learner.method.balance is Balance.TRAJECTORY:
        loss = total(trajectory_balance(flow_paths(graph, ours, tables)), {"trajectory": BATCH_SIZE})
    else:  # torchgfn adds the mean over states to the mean over objects; the study takes the mean over all of them
        parts = (interior_flows(graph, visited_after_source(ours), tables), end_flows(graph, ours.end, tables))
        loss = sum(total(flow_matching(part), {"state": len(part.log_inflow)}) for part in parts)
    return {"torchgfn": peer.loss(theirs).item(), "posttrain": loss.item()}


def train(
    step: Callable[[], None],
    network: nn.Module,
    policy: Callable[[nn.Module], Tensor],
    learner: FlowLearner,
    seconds: float,
) -> dict[str, float]:
    """Update for so much CPU time; the average of the weights is taken outside of it, for both libraries alike."""
    average = copy.deepcopy(network).requires_grad_(False)
    used, n_updates = 0.0, 0
    while used < seconds:
        start = time.process_time()
        step()
        used += time.process_time() - start
        n_updates += 1
        update_ema(average, network, decay=min(AVERAGE_DECAY, n_updates / (n_updates + 9)))
    target = learner.grid.graph.log_target.exp()
    with torch.no_grad():
        last, averaged = (
            total_variation(terminal_distribution(learner.grid.graph, policy(weights)), target)
            for weights in (network, average)
        )
    return {"trained_s": used, "updates": n_updates, "tv": last, "tv_averaged": averaged}


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    step, peer = steps[name], steps["torchgfn"]
    return [
        str(case["n_dims"]),
        case["balance"].replace("_", " "),
        name,
        f"{1000 * step['median_seconds'] / UPDATES_PER_ROUND:.2f}",
        f"{step['median_seconds'] / peer['median_seconds']:.2f}",
        f"{step['loss']:.6f}",
        f"{abs(step['loss'] - peer['loss']):.0e}",
        f"{step['trained_s']:.0f}",
        f"{step['updates']:,}",
        f"{step['tv']:.4f}",
        f"{step['tv_averaged']:.4f}",
    ]


if __name__ == "__main__":
    main()
