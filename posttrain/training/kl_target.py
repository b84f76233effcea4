"""A KL coefficient that keeps the policy at a chosen distance from its reference, instead of being chosen itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

LARGEST_LOG = math.log(1e30)  # far beyond any use, and a loss times it still fits float32


class KlTarget:
    """The multiplier c of  max_π min_{c > 0}  E[R] − c (KL − target),  by gradient ascent of the dual in log c.

    An update multiplies c by exp(rate · (KL − target)): up while the policy is too far, down while it is closer than
    it may be, and never below 0. Use `coefficient` as the alpha of an objective, and update once per optimiser step
    with the KL averaged over all ranks, so that ranks keep the same c; an ObjectiveTrainer does, see its `kl_targets`.
    """

    def __init__(self, *, target: float, coefficient: float, rate: float, start_step: int = 0) -> None:
        """target in nats per action (as the terms kl_ref and kl_forward are averaged), > 0; rate in 1/nats, > 0.

        `start_step` is the optimiser step in which the policy starts to move. Before it the KL says nothing about c.
        """
        for name, number in {"target": target, "coefficient": coefficient, "rate": rate}.items():
            if not 0 < number < math.inf:
                raise ValueError(f"{name} is {number}, needs a finite number above 0")
        self.target = target
        self.rate = rate
        self.start_step = start_step
        self._log_coefficient = math.log(coefficient)

    @property
    def coefficient(self) -> float:
        return math.exp(self._log_coefficient)

    def update(self, kl: float) -> None:
        """Take one step of dual ascent at the measured `kl`, nats.

        Raises ValueError when it is not finite, or so large that the coefficient would not be.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}, needs a finite number: did the policy's loss diverge?")
        log_coefficient = self._log_coefficient + self.rate * (kl - self.target)
        if log_coefficient > LARGEST_LOG:
            raise ValueError(
                f"a measured KL of {kl} against a target of {self.target} makes the coefficient "
                f"e^{log_coefficient:.0f}: is the rate of {self.rate} per nat too large, or did the loss diverge?"
            )
        self._log_coefficient = log_coefficient

    def state(self) -> dict[str, float]:
        """What a checkpoint needs; all else belongs to the config."""
        return {"log_coefficient": self._log_coefficient}

    def restore(self, state: Mapping[str, float]) -> None:
        self._log_coefficient = state["log_coefficient"]
