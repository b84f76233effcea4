"""The library's founding claim: objectives of four fields are potentials on one path residual."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    FlowPaths,
    TransitionValues,
    dpo,
    log_ratio,
    oreo_step,
    path_residual,
    suffix_sum,
    td_squared,
    trajectory_balance,
)
from posttrain.schema import PairValues, PathScores, TokenValues
from tests import reference
from tests.tree_mdp import multi_turn_values, rows_of

EXACT = {"rtol": 0, "atol": 1e-12}
FLOW_PATHS = ((0, 1, 3, 5), (0, 1, 4, 5), (0, 1, 4, 6), (0, 2, 4, 5), (0, 2, 4, 6), (0, 1, 3, 6))


def flow_tables(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random P_B(parent | child) and log R on a graph 0 -> {1, 2} -> {3, 4} -> {5, 6}, and the log-flows of both."""
    generator = torch.Generator().manual_seed(seed)
    p_backward = torch.zeros(7, 7, dtype=torch.float64)  # [child, parent]
    for child in range(1, 7):
        parents = sorted({path[i - 1] for path in FLOW_PATHS for i in range(1, 4) if path[i] == child})
        p_backward[child, parents] = torch.rand(len(parents), dtype=torch.float64, generator=generator) + 0.2
    p_backward[1:] /= p_backward[1:].sum(-1, keepdim=True)
    log_reward = torch.randn(7, dtype=torch.float64, generator=generator)
    flow = torch.zeros(7, dtype=torch.float64)
    flow[5:] = log_reward[5:].exp()
    for node in reversed(range(5)):
        flow[node] = (flow * p_backward[:, node]).sum()  # F(s) = Σ_child F(child) P_B(s | child)
    return p_backward, log_reward, flow.log()


def as_token_values(log_pf: Tensor, log_pb: Tensor, log_z: Tensor, log_reward: Tensor) -> TokenValues:
    """π = P_F, π_ref = P_B, V(s0) = log Z, R = log R(x): one state per path, the first."""
    first = torch.zeros(log_pf.shape, dtype=torch.bool)
    first[:, 0] = True
    zero = torch.zeros_like(log_pf)
    reward = torch.cat((zero[:, :-1], log_reward[:, None]), dim=-1)
    value = torch.cat((log_z.expand(len(log_pf), 1), zero[:, 1:]), dim=-1)
    return TokenValues(log_pf, log_pb, zero, zero, value, reward, torch.ones_like(first), first)


def test_trajectory_balance_is_the_start_residual_with_beta_one_and_the_backward_policy_as_reference():
    p_backward, log_reward, _ = flow_tables(0)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    log_pf = logits.log_softmax(-1)  # any forward policy: three free log-probabilities per path
    log_z = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    log_pb = torch.stack([torch.stack([p_backward[p[i], p[i - 1]].log() for i in (1, 2, 3)]) for p in FLOW_PATHS])
    end = torch.stack([log_reward[path[-1]] for path in FLOW_PATHS])

    value_term, policy_term, *_ = oreo_step(as_token_values(log_pf, log_pb, log_z, end), beta=1.0, alpha=0.0)
    expected = [
        reference.trajectory_balance(0.7, f, b, r)
        for f, b, r in zip(log_pf.detach().numpy(), log_pb.numpy(), end.numpy(), strict=True)
    ]
    assert_close(policy_term.value.sum(-1), torch.tensor(expected, dtype=torch.float64), **EXACT)
    assert_close(value_term.value.sum(-1), torch.tensor(expected, dtype=torch.float64), **EXACT)

    # The two terms together move log Z and P_F as one squared trajectory balance does.
    log_flow = log_z.expand(len(log_pf), 3)
    paths = FlowPaths(log_pf, log_pb, end, log_flow, torch.ones_like(log_pf, dtype=torch.bool))
    (balance,) = trajectory_balance(paths)
    assert_close(balance.value, torch.tensor(expected, dtype=torch.float64), **EXACT)
    by_oreo = torch.autograd.grad(value_term.value.sum() + policy_term.value.sum(), (log_z, logits), retain_graph=True)
    by_balance = torch.autograd.grad(balance.value.sum(), (log_z, logits))
    for ours, theirs in zip(by_oreo, by_balance, strict=True):
        assert_close(ours, theirs, **EXACT)


def test_start_residual_is_zero_on_every_path_of_a_solved_flow():
    # P_F(child | s) = F(child) P_B(s | child) / F(s) and Z = F(s0): balance holds path by path.
    p_backward, log_reward, log_flow = flow_tables(2)
    steps = [[(path[i], path[i + 1]) for i in range(3)] for path in FLOW_PATHS]
    log_pb = torch.stack([torch.stack([p_backward[c, s].log() for s, c in path]) for path in steps])
    log_pf = torch.stack([torch.stack([log_flow[c] - log_flow[s] for s, c in path]) for path in steps]) + log_pb
    end = torch.stack([log_reward[path[-1]] for path in FLOW_PATHS])
    value_term, policy_term, *_ = oreo_step(as_token_values(log_pf, log_pb, log_flow[:1], end), beta=1.0, alpha=0.0)
    assert value_term.value.sum() < 1e-24
    assert policy_term.value.sum() < 1e-24


def test_dpo_is_the_logistic_loss_of_a_difference_of_residuals_and_the_start_value_cancels():
    # δ(y) = V(s0) − (0 − β Σρ) for each response to one prompt, so δ_w − δ_l = h_w − h_l whatever V(s0) is.
    beta = 0.2
    chosen, rejected = multi_turn_values(0), multi_turn_values(1)
    start = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def start_residual(v: TokenValues) -> Tensor:
        return path_residual(start, -beta * log_ratio(v.logp, v.ref_logp, v.is_action).sum(-1))

    loss = -F.logsigmoid(start_residual(chosen) - start_residual(rejected))
    pairs = PairValues(*(PathScores(v.logp, v.ref_logp, v.is_action) for v in (chosen, rejected)))
    assert_close(dpo(pairs, beta=beta)[0].value, loss, **EXACT)
    assert_close(loss, torch.from_numpy(reference.dpo(rows_of(chosen), rows_of(rejected), beta=beta)), **EXACT)
    (start_grad,) = torch.autograd.grad(loss.sum(), start)
    assert_close(start_grad, torch.zeros_like(start), **EXACT)


def test_discounted_temporal_differences_of_a_path_add_up_to_the_residual_of_the_whole_path():
    # Σ_t γ^t [V_t − (r_t + γ V_{t+1})] = V_0 − Σ_t γ^t r_t, with V = 0 after the end: the values between cancel.
    generator = torch.Generator().manual_seed(3)
    value, reward = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    gamma = 0.9
    goes_on = torch.ones(3, 6, dtype=torch.float64)
    goes_on[:, -1] = 0.0
    next_value = torch.cat((value[:, 1:], torch.full((3, 1), 5.0, dtype=torch.float64)), dim=-1)  # read by no one
    fields = (value, reward, gamma * goes_on, next_value, goes_on)
    steps = TransitionValues(*(field.flatten() for field in fields)).residual().view(3, 6)
    discounted = gamma ** torch.arange(6, dtype=torch.float64)
    whole = path_residual(value[:, 0], suffix_sum(discounted * reward)[:, 0])
    assert_close((discounted * steps).sum(-1), whole, **EXACT)


def test_temporal_difference_moves_the_value_and_not_its_target_and_leaves_out_what_has_no_weight():
    q, next_q = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([1.0, 2.0], [3.0, 4.0]))
    reward, discount = torch.tensor([0.5, 7.0], dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)
    weight = torch.tensor([2.0, 0.0], dtype=torch.float64)
    (term,) = td_squared(TransitionValues(q, reward, discount, next_q, weight))
    # residual 1 − (.5 + .5 · 3) = −1, its square weighted by 2; gradient 2 · 2 · (−1)
    assert term.value.tolist() == [2.0, 0.0]
    gradient, of_target = torch.autograd.grad(term.value.sum(), (q, next_q), allow_unused=True)
    assert gradient.tolist() == [-4.0, 0.0]
    assert of_target is None
