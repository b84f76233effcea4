"""torchgfn 2.4.1 on the hypergrid that posttrain's study has, with the same weights; needs torchgfn installed."""

from __future__ import annotations

import torch
from gfn.containers import Trajectories as PeerTrajectories
from gfn.estimators import DiscretePolicyEstimator
from gfn.gflownet import FMGFlowNet, TBGFlowNet
from gfn.gym import HyperGrid
from gfn.preprocessors import KHotPreprocessor
from gfn.samplers import Sampler
from gfn.utils.modules import MLP
from torch import Tensor, nn

from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.control.gflownet.rollouts import Trajectories
from posttrain.studies.hypergrid.flow_learner import Balance, FlowLearner, FlowSettings

BANDS = {"R1": 0.5, "R2": 2.0}


def copy_weights(network: nn.Sequential, peer: MLP) -> None:
    """Give torchgfn's network the weights of ours, which has outputs of its own after those of the actions."""
    ours = [layer for layer in network if isinstance(layer, nn.Linear)]
    theirs = [layer for layer in peer.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for target, source in zip(theirs, ours, strict=True):
            target.weight.copy_(source.weight[: target.out_features])
            target.bias.copy_(source.bias[: target.out_features])


class Peer:
    """torchgfn's trajectory balance or flow matching beside a learner of ours, whose weights it starts from."""

    def __init__(self, learner: FlowLearner, reward_floor: float) -> None:
        grid, settings = learner.grid, learner.settings
        self.grid, self.settings = grid, settings
        self.env = HyperGrid(ndim=grid.n_dims, height=grid.side, reward_fn_kwargs={"R0": reward_floor, **BANDS})
        n_actions = grid.n_dims + 1
        self.preprocessor = KHotPreprocessor(height=grid.side, ndim=grid.n_dims)
        self.network = MLP(grid.n_dims * grid.side, n_actions, hidden_dim=settings.width, activation_fn="leaky_relu")
        copy_weights(learner.model.network, self.network)
        forward = DiscretePolicyEstimator(self.network, n_actions, preprocessor=self.preprocessor)
        backward = DiscretePolicyEstimator.uniform(n_actions, preprocessor=self.preprocessor)
        self.sampler = Sampler(forward)
        self.is_flow_matching = learner.method.balance is Balance.FLOW_MATCHING
        self.gflownet = FMGFlowNet(forward) if self.is_flow_matching else TBGFlowNet(forward, backward)
        self.optimizer = self._adam(settings)

    def _adam(self, settings: FlowSettings) -> torch.optim.Optimizer:
        groups = [{"params": self.network.parameters(), "lr": settings.learning_rate}]
        if not self.is_flow_matching:
            groups.append({"params": self.gflownet.logz_parameters(), "lr": settings.log_z_learning_rate})
        return torch.optim.Adam(groups, fused=True)

    def sample(self) -> PeerTrajectories:
        return self.sampler.sample_trajectories(self.env, n=self.settings.batch_size)

    def loss(self, trajectories: PeerTrajectories) -> Tensor:
        # Log-probabilities computed anew: faster here than keeping those of each sampling step for the backward pass.
        samples = self.gflownet.to_training_samples(trajectories)
        return self.gflownet.loss(self.env, samples, recalculate_all_logprobs=True)

    def step(self) -> None:
        loss = self.loss(self.sample())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def log_policy(self, network: nn.Module) -> Tensor:
        """[S, A + 1] log P_F by `network`, theirs or an average of it, in our order of the states."""
        logits = network(self.grid.one_hot())
        return torch.where(self.grid.graph.is_legal, logits, -torch.inf).log_softmax(-1)


def as_ours(grid: Hypergrid, trajectories: PeerTrajectories) -> Trajectories:
    """torchgfn's trajectories, [T, B, ...] with −1 in the padding, as ours."""
    cells = trajectories.states.tensor[:-1].transpose(0, 1)
    action = trajectories.actions.tensor[..., 0].T
    n_steps = trajectories.terminating_idx
    is_step = torch.arange(cells.shape[1]) < n_steps[:, None]
    place = grid.side ** torch.arange(grid.n_dims)
    number = torch.empty(grid.side**grid.n_dims, dtype=torch.int64)
    number[(grid.cell * place).sum(-1)] = torch.arange(grid.graph.n_states)
    state = number[(cells.clamp(min=0) * place).sum(-1)]
    end = state.gather(-1, n_steps[:, None] - 1)
    return Trajectories(torch.where(is_step, state, end), torch.where(is_step, action, grid.n_dims), is_step)
