"""GFlowNet objectives against loops over the equations, their fixed points, and each other. All in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from posttrain.control.gflownet.exact import (
    log_state_flows,
    policy_of_flows,
    terminal_distribution,
    uniform_backward,
)
from posttrain.control.gflownet.hypergrid import Hypergrid, StopRule
from posttrain.control.gflownet.values import StateTables, end_flows, flow_paths, interior_flows
from posttrain.losses import (
    FlowPaths,
    StateFlows,
    critic_only,
    detailed_balance,
    flow_matching,
    sub_trajectory_balance,
    total,
    trajectory_balance,
    var_grad,
)
from posttrain.schema import TokenValues
from tests.hypergrid_paths import as_trajectories, every_path, grid_of, random_tables

EXACT = {"rtol": 0, "atol": 1e-12}
DECAY = 0.9
OF_PATHS = {
    "trajectory": trajectory_balance,
    "detailed": detailed_balance,
    "sub_trajectory": lambda paths: sub_trajectory_balance(paths, DECAY),
    "var_grad": var_grad,
}


def some_paths(seed: int = 0) -> FlowPaths:
    """All 34 trajectories of n = 2, H = 4, of one to six steps, under free numbers."""
    grid = grid_of(2, 4)
    trajectories = as_trajectories(grid, every_path(2, 4, StopRule.FORCED))
    return flow_paths(grid.graph, trajectories, random_tables(grid, seed).tables)


def rows_of(paths: FlowPaths, rows: slice) -> FlowPaths:
    fields = (paths.log_pf, paths.log_pb, paths.log_reward, paths.log_flow, paths.is_step)
    return FlowPaths(*(field[rows] for field in fields))


def exact_tables(grid: Hypergrid) -> StateTables:
    log_pb = uniform_backward(grid.graph)
    log_flow = log_state_flows(grid.graph, log_pb)
    edge = policy_of_flows(grid.graph, log_flow, log_pb) + log_flow[:, None]
    finite = torch.where(grid.graph.is_parent, log_pb, 0.0)
    return StateTables(edge, finite, log_flow, torch.arange(grid.graph.n_states))


def all_state_flows(grid: Hypergrid, tables: StateTables) -> StateFlows:
    states = torch.arange(grid.graph.n_states)
    parts = (interior_flows(grid.graph, states[1:], tables), end_flows(grid.graph, states, tables))
    return StateFlows(torch.cat([p.log_inflow for p in parts]), torch.cat([p.log_outflow for p in parts]))


def squared_pieces(paths: FlowPaths, b: int) -> dict[tuple[int, int], float]:
    """(V_i − V_j + Σ (log P_F − log P_B) − log R at the end)² of every piece of row b, by a loop."""
    n_steps = int(paths.is_step[b].sum())
    flow, log_pf, log_pb = (x[b].tolist() for x in (paths.log_flow, paths.log_pf, paths.log_pb))
    found = {}
    for i in range(n_steps):
        delta = flow[i]
        for j in range(i + 1, n_steps + 1):
            delta += log_pf[j - 1] - log_pb[j - 1]
            end = float(paths.log_reward[b]) if j == n_steps else flow[j]
            found[i, j] = (delta - end) ** 2
    return found


def test_balances_are_those_of_a_loop_over_pieces():
    paths = some_paths()
    by_trajectory = trajectory_balance(paths)[0].value
    by_step = detailed_balance(paths)[0].value.sum(-1)
    by_piece = sub_trajectory_balance(paths, DECAY)[0].value
    for b in range(len(paths.log_reward)):
        pieces, n_steps = squared_pieces(paths, b), int(paths.is_step[b].sum())
        assert_close(float(by_trajectory[b].detach()), pieces[0, n_steps], rtol=1e-12, atol=0)
        assert_close(float(by_step[b].detach()), sum(pieces[t, t + 1] for t in range(n_steps)), rtol=1e-12, atol=0)
        weight = {(i, j): DECAY ** (j - i) for i, j in pieces}
        mean = sum(weight[piece] * pieces[piece] for piece in pieces) / sum(weight.values())
        assert_close(float(by_piece[b].detach()), mean, rtol=1e-12, atol=0)


def gradients(loss: Tensor, paths: FlowPaths) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (paths.log_pf, paths.log_flow), materialize_grads=True, retain_graph=True)


def leaves(paths: FlowPaths) -> FlowPaths:
    return replace(
        paths,
        log_pf=paths.log_pf.detach().requires_grad_(),
        log_flow=paths.log_flow.detach().requires_grad_(),
    )


@pytest.mark.parametrize(("decay", "limit"), [(1e9, "trajectory"), (1e-9, "detailed")])
def test_sub_trajectories_become_the_longest_or_the_shortest_at_the_ends_of_decay(decay: float, limit: str):
    # At 1e9 a piece of T − 1 steps weighs 2e-9 of the whole one; at 1e-9 one of two steps 1e-9 of a single one.
    paths = leaves(some_paths())
    value = sub_trajectory_balance(paths, decay)[0].value
    expected = OF_PATHS[limit](paths)[0].value
    if limit == "detailed":
        expected = expected.sum(-1) / paths.is_step.sum(-1)
    assert_close(value, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(value.sum(), paths), gradients(expected.sum(), paths), strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_value_loss_of_oreo_is_the_pieces_that_end_at_the_object():
    # With β = 1, π_ref = P_B and r = log R at the stop OREO's critic squares V(s_t) − Σ_{i>=t}, a mean over each row.
    paths = leaves(some_paths())
    is_last = paths.is_step.cumsum(-1) == paths.is_step.sum(-1, keepdim=True)
    reward = torch.where(paths.is_step & is_last, paths.log_reward[:, None], 0.0)
    zero = torch.zeros_like(reward)
    values = TokenValues(paths.log_pf, paths.log_pb, zero, zero, paths.log_flow, reward, paths.is_step, paths.is_step)
    critic, *_ = critic_only(values, beta=1.0)
    for b in range(len(paths.log_reward)):
        pieces, n_steps = squared_pieces(paths, b), int(paths.is_step[b].sum())
        suffixes = sum(pieces[t, n_steps] for t in range(n_steps)) / n_steps
        assert_close(float(critic.value[b].sum().detach()), suffixes, rtol=1e-12, atol=0)


def test_a_prior_and_a_temperature_scale_trajectory_balance_by_the_temperature_squared():
    # Trust-PCL: V_0 + Σ α (log π − log π_ref) − r.  Relative trajectory balance: log Z + Σ (log π − log π_ref) − r/α.
    # With V_0 = α log Z the first is α times the second.
    alpha, paths = 0.3, some_paths()
    (relative,) = trajectory_balance(replace(paths, log_reward=paths.log_reward / alpha))
    (trust,) = trajectory_balance(
        FlowPaths(alpha * paths.log_pf, alpha * paths.log_pb, paths.log_reward, alpha * paths.log_flow, paths.is_step)
    )
    assert_close(trust.value, alpha**2 * relative.value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("balance", OF_PATHS)
def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds(balance: str):
    paths = leaves(some_paths())
    longer = leaves(
        FlowPaths(
            pad(paths.log_pf.detach(), (0, 2), value=-torch.inf),
            pad(paths.log_pb, (0, 2), value=7.0),
            paths.log_reward,
            pad(paths.log_flow.detach(), (0, 2), value=torch.nan),
            pad(paths.is_step, (0, 2)),
        )
    )
    (term,), (padded,) = OF_PATHS[balance](paths), OF_PATHS[balance](longer)
    assert_close(padded.value.sum(), term.value.sum(), **EXACT)
    both = gradients(padded.value.sum(), longer), gradients(term.value.sum(), paths)
    for ours, theirs in zip(*both, strict=True):
        assert_close(ours[:, :-2], theirs, **EXACT)
        assert (ours[:, -2:] == 0).all()


@pytest.mark.parametrize("balance", ["trajectory", "detailed", "sub_trajectory"])
def test_a_constant_on_every_log_flow_and_on_the_log_reward_leaves_the_residuals(balance: str):
    paths = some_paths()
    shifted = replace(paths, log_reward=paths.log_reward + 2.5, log_flow=paths.log_flow + 2.5)
    assert_close(OF_PATHS[balance](shifted)[0].value, OF_PATHS[balance](paths)[0].value, **EXACT)


@pytest.mark.parametrize("balance", ["trajectory", "detailed", "sub_trajectory"])
def test_gradient_does_not_depend_on_how_a_batch_is_split(balance: str):
    paths = leaves(some_paths())
    counts = {"trajectory": len(paths.log_reward), "transition": int(paths.is_step.sum())}
    whole = gradients(total(OF_PATHS[balance](paths), counts), paths)
    parts = [rows_of(paths, rows) for rows in (slice(5), slice(5, None))]
    summed = [gradients(total(OF_PATHS[balance](part), counts), paths) for part in parts]
    for place, expected in enumerate(whole):
        assert_close(sum(gradient[place] for gradient in summed), expected, **EXACT)


def test_exact_flows_have_no_loss_and_one_wrong_edge_has():
    grid = grid_of(2, 8)
    trajectories = as_trajectories(grid, every_path(2, 5, StopRule.FREE))
    tables = exact_tables(grid)

    def losses(tables: StateTables) -> list[float]:
        paths = flow_paths(grid.graph, trajectories, tables)
        terms = [balance(paths)[0] for balance in OF_PATHS.values()]
        return [float(term.value.max()) for term in (*terms, *flow_matching(all_state_flows(grid, tables)))]

    assert max(losses(tables)) < 1e-24
    edge = tables.log_edge.clone()
    edge[0, 0] += 0.1
    assert min(losses(replace(tables, log_edge=edge))) > 1e-5
    sampled = terminal_distribution(grid.graph, edge.log_softmax(-1))
    assert float((sampled - grid.graph.log_target.exp()).abs().sum() / 2) > 1e-3


def test_flow_matching_is_that_of_a_loop_over_parents_and_actions():
    grid = grid_of(2, 4)
    tables = random_tables(grid, 3).tables
    edge = tables.log_edge.detach().exp()
    expected = []
    for state in range(1, grid.graph.n_states):
        inflow = sum(edge[p, a] for a, p in enumerate(grid.graph.parent[state].tolist()) if p >= 0)
        outflow = sum(edge[state, a] for a in range(3) if a == 2 or grid.graph.child[state, a] >= 0)
        expected.append((math.log(inflow) - math.log(outflow)) ** 2)
    for x in range(grid.graph.n_states):  # behind the stop: one parent, and the reward flows out
        expected.append((math.log(edge[x, 2]) - float(grid.graph.log_reward[x])) ** 2)
    (term,) = flow_matching(all_state_flows(grid, tables))
    assert_close(term.value.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 50.0])
def test_exact_flows_stay_a_zero_of_flow_matching_for_every_epsilon(epsilon: float):
    grid = grid_of(2, 8)
    (term,) = flow_matching(all_state_flows(grid, exact_tables(grid)), math.log(epsilon))
    assert float(term.value.max()) < 1e-24


def test_epsilon_scales_the_gradient_of_a_flow_by_its_share():
    # (log(ε + F) − c)² has the derivative 2 (log(ε + F) − c) F / (ε + F) by log F; at F = ε the last factor is ½.
    log_f = torch.tensor([math.log(0.2)], dtype=torch.float64, requires_grad=True)
    (term,) = flow_matching(StateFlows(log_f, torch.zeros(1, dtype=torch.float64)), math.log(0.2))
    (gradient,) = torch.autograd.grad(term.value.sum(), log_f)
    assert_close(float(gradient), 2 * (math.log(0.4) - math.log(1.2)) * 0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("balance", ["trajectory", "detailed", "sub_trajectory"])  # VarGrad's log Z is held fixed
def test_gradients_are_those_of_finite_differences(balance: str):
    paths = leaves(some_paths())

    def loss(log_pf: Tensor, log_flow: Tensor) -> Tensor:
        return OF_PATHS[balance](replace(paths, log_pf=log_pf, log_flow=log_flow))[0].value.sum()

    assert torch.autograd.gradcheck(loss, (paths.log_pf, paths.log_flow))


def test_values_of_the_wrong_size_are_refused():
    paths = some_paths()
    with pytest.raises(ValueError, match="needed one per step"):
        replace(paths, log_pb=paths.log_pb[:, 1:])
    with pytest.raises(ValueError, match="needed one per trajectory"):
        replace(paths, log_reward=paths.log_reward[1:])
    with pytest.raises(ValueError, match="needed one of each per state"):
        StateFlows(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="needs decay > 0"):
        sub_trajectory_balance(paths, 0.0)
    with pytest.raises(ValueError, match="needed two or more"):
        var_grad(rows_of(paths, slice(1)))
