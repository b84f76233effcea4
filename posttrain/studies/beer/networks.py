"""Actor and critic, with their copies and optimisers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam

Network = TypeVar("Network", bound=nn.Module)


def hidden_layers(n_inputs: int, sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with a ReLU behind each."""
    widths = (n_inputs, *sizes)
    layers = ((nn.Linear(n_in, n_out), nn.ReLU()) for n_in, n_out in pairwise(widths))
    return nn.Sequential(*chain.from_iterable(layers))


class Critic(nn.Module):
    """Q(s, a) = ⟨φ(s, a), w⟩ + b."""

    def __init__(self, n_inputs: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.hidden = hidden_layers(n_inputs, sizes)
        self.head = nn.Linear(sizes[-1], 1)

    def features(self, *inputs: Tensor) -> Tensor:
        """[N, D] φ, the input of the last layer, of inputs [N, ...] side by side."""
        return self.hidden(torch.cat(inputs, dim=-1))

    def value(self, phi: Tensor) -> Tensor:
        """[N] Q of features [N, D]."""
        return self.head(phi).squeeze(-1)


class Actor(nn.Module):
    """Actions in [-1, 1]."""

    def __init__(self, n_observations: int, n_actions: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.hidden = hidden_layers(n_observations, sizes)
        self.head = nn.Linear(sizes[-1], n_actions)

    def forward(self, observation: Tensor) -> Tensor:
        return self.head(self.hidden(observation)).tanh()


class Critics(nn.Module):
    """Critics of the same pairs that share no weight."""

    def __init__(self, n: int, n_inputs: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.each = tuple(Critic(n_inputs, sizes) for _ in range(n))
        self.registered = nn.ModuleList(self.each)


class Trained(Generic[Network]):
    """A network, or several that are trained together, with a slow copy, its first weights and the optimiser."""

    def __init__(self, network: Network, *, learning_rate: float) -> None:
        self.network = network
        self.slow = copy.deepcopy(network).requires_grad_(False)
        self.first = copy.deepcopy(self.slow)
        self.parameters, self.slow_parameters = list(network.parameters()), list(self.slow.parameters())
        self.optimizer = Adam(self.parameters, lr=learning_rate, fused=True)

    def descend(self, loss: Tensor) -> None:
        """One step down `loss`. Other networks that it runs through get no gradient, and none is computed for them."""
        self.optimizer.zero_grad()
        loss.backward(inputs=self.parameters)
        self.optimizer.step()

    @torch.no_grad()
    def follow(self, *, tau: float) -> None:
        """Move the slow copy by a share tau of its distance."""
        # As training.ema.update_ema, whose checks in each update would cost a tenth of it at this size.
        for slow, current in zip(self.slow_parameters, self.parameters, strict=True):
            slow.lerp_(current, tau)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "slow": self.slow.state_dict(),
            "first": self.first.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.slow.load_state_dict(state["slow"])
        self.first.load_state_dict(state["first"])
        self.optimizer.load_state_dict(state["optimizer"])
