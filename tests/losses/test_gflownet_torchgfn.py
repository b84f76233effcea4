"""Our GFlowNet losses beside torchgfn's on the same trajectories and weights, where torchgfn is installed.

torchgfn 2.4.1 needs numpy < 2 and so an environment of its own: `pip install "torchgfn==2.4.1" pytest`, then
`PYTHONPATH=. python -m pytest tests/losses/test_gflownet_torchgfn.py` there.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("gfn", reason="torchgfn is not installed: pip install torchgfn==2.4.1, in its own environment")

from gfn.containers import Trajectories as PeerTrajectories
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import DBGFlowNet, SubTBGFlowNet
from gfn.utils.modules import MLP
from torch import Tensor
from torch.testing import assert_close

from benchmarks.gflownet.peer import Peer, as_ours, copy_weights
from benchmarks.gflownet.run import CASES, REWARD_FLOOR, Case, make_learner, same_losses
from posttrain.control.gflownet.values import StateTables, flow_paths
from posttrain.losses import detailed_balance, sub_trajectory_balance, total
from posttrain.studies.hypergrid.flow_learner import FlowLearner

TO_FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}  # sums of up to 29 float32 terms, in another order


@pytest.mark.parametrize("case", CASES)
def test_trajectory_balance_and_flow_matching_equal_torchgfns(case: Case):
    learner = make_learner(case, learning_rate=1e-3)
    losses = same_losses(learner, Peer(learner, REWARD_FLOOR))
    assert_close(losses["posttrain"], losses["torchgfn"], **TO_FLOAT32)


def with_flows() -> tuple[FlowLearner, Peer, PeerTrajectories, StateTables, DiscretePolicyEstimator, ScalarEstimator]:
    """Both libraries on n = 2, with the flow of a state by a network of its own, the same for both."""
    learner = make_learner(Case(2, "trajectory"), learning_rate=1e-3)
    peer = Peer(learner, REWARD_FLOOR)
    torch.manual_seed(1)
    flow = MLP(16, 1, hidden_dim=32)
    model = learner.model
    tables = model.tables(model.states)
    tables = StateTables(tables.log_edge, tables.log_pb, flow(model.one_hot)[:, 0], tables.row)
    backward = DiscretePolicyEstimator.uniform(3, preprocessor=peer.preprocessor)
    return learner, peer, peer.sample(), tables, backward, ScalarEstimator(flow, preprocessor=peer.preprocessor)


def test_detailed_balance_equals_torchgfns():
    learner, peer, sampled, tables, backward, flow = with_flows()
    theirs = DBGFlowNet(peer.sampler.estimator, backward, flow)
    expected = theirs.loss(peer.env, theirs.to_training_samples(sampled), recalculate_all_logprobs=True)
    paths = flow_paths(learner.grid.graph, as_ours(learner.grid, sampled), tables)
    ours = total(detailed_balance(paths), {"transition": int(paths.is_step.sum())})
    assert_close(ours, expected, **TO_FLOAT32)


def test_sub_trajectory_balance_equals_torchgfns_geometric_within():
    learner, peer, sampled, tables, backward, flow = with_flows()
    theirs = SubTBGFlowNet(peer.sampler.estimator, backward, flow, weighting="geometric_within", lamda=0.9)
    expected = theirs.loss(peer.env, theirs.to_training_samples(sampled), recalculate_all_logprobs=True)
    paths = flow_paths(learner.grid.graph, as_ours(learner.grid, sampled), tables)
    ours: Tensor = total(sub_trajectory_balance(paths, 0.9), {"trajectory": len(paths.log_reward)})
    assert_close(ours, expected, **TO_FLOAT32)


def test_weights_of_one_network_are_those_of_the_other():
    learner = make_learner(Case(2, "trajectory"), learning_rate=1e-3)
    peer = Peer(learner, REWARD_FLOOR)
    torch.nn.init.zeros_(peer.network.last_layer.weight)
    copy_weights(learner.model.network, peer.network)
    with torch.no_grad():
        assert_close(peer.log_policy(peer.network), learner.model.policy(learner.model.network), **TO_FLOAT32)
