"""A tiny language model that learns strings from its own samples, by any of the objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain.losses import total
from posttrain.studies.strings.config import StringsConfig
from posttrain.studies.strings.networks import StringPolicy, StringValue, tiny_llama
from posttrain.studies.strings.objectives import OBJECTIVES, Method, StringBatch


class StringLearner:
    """Fits the protocol of posttrain.training.loop."""

    def __init__(self, config: StringsConfig, method: Method, *, seed: int) -> None:
        self.config, self.task, self.method = config, config.task(), method
        llama = tiny_llama(
            hidden_size=config.hidden_size, n_layers=config.n_layers, n_positions=self.task.n_digits + 1
        )
        with torch.random.fork_rng():  # transformers draws its weights from the global generator
            torch.manual_seed(seed)
            self.policy = StringPolicy(llama)
            self.value = StringValue(llama) if method is Method.OREO else None
        self.log_z = torch.zeros((), requires_grad=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self._groups(), fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.all_strings, self.target = self.task.strings(), self.task.target()
        self.is_solution = self.task.is_solved(self.all_strings)
        self.is_found = torch.zeros(len(self.all_strings), dtype=torch.bool)
        self.n_samples = 0

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Sample strings from the policy, have them verified, and move by one step of Adam."""
        strings = self.policy.sample(self.config.batch_size, self.task.n_digits, self.generator)
        self.is_found[self.task.place(strings)] = True
        self.n_samples += len(strings)
        terms = OBJECTIVES[self.method](self.batch(strings))
        loss = total(terms, {"trajectory": len(strings), "sequence": len(strings)})
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * (1 - step / self.config.n_steps)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "solved": self.task.is_solved(strings).float().mean()}

    def batch(self, strings: Tensor) -> StringBatch:
        value = torch.zeros(strings.shape) if self.value is None else self.value(strings)
        return StringBatch(strings, self.policy(strings), self.task.reward(strings), value, self.log_z)

    def evaluate(self) -> Mapping[str, float]:
        """By enumeration: TV to R/Z, mass on solutions, expected number of distinct solutions in `n_draws` draws."""
        distribution = self.policy.distribution(self.all_strings)
        of_solutions = distribution[self.is_solution]
        return {
            "samples": float(self.n_samples),
            "tv": 0.5 * float((distribution - self.target).abs().sum()),
            "solved": float(of_solutions.sum()),
            "distinct": float((1 - (1 - of_solutions) ** self.config.n_draws).sum()),
            "found": float((self.is_found & self.is_solution).sum()),
        }

    def state(self) -> dict[str, Any]:
        return {
            "policy": dict(self.policy.state_dict()),
            "value": None if self.value is None else dict(self.value.state_dict()),
            "log_z": self.log_z.detach(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "is_found": self.is_found,
            "n_samples": self.n_samples,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.value is not None:
            self.value.load_state_dict(state["value"])
        self.log_z.data.copy_(state["log_z"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.is_found, self.n_samples = state["is_found"], state["n_samples"]

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": self.policy.parameters(), "lr": self.config.learning_rate}]
        if self.value is not None:
            groups.append({"params": self.value.parameters(), "lr": self.config.value_learning_rate})
        if self.method is Method.TRAJECTORY_BALANCE:
            groups.append({"params": [self.log_z], "lr": self.config.log_z_learning_rate})
        return groups
