"""KL targets in a training run: measured over a whole step on all ranks, updated once, kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from posttrain.losses import Counts, Term
from posttrain.training.averages import TermAverages
from posttrain.training.kl_target import KlTarget


class KlSteering:
    """Feeds each KlTarget the exact average, over the rows of a step, of the term it is named after."""

    def __init__(self, targets: Mapping[str, KlTarget]) -> None:
        self._targets = dict(targets)
        self._open_step = TermAverages()

    def add_counts(self, counts: Counts) -> None:
        """Count the items of a step, all micro-batches and ranks together; once per step."""
        self._open_step.add_counts(counts)

    def add_terms(self, terms: Sequence[Term]) -> None:
        """Add one micro-batch. Raises ValueError when the objective has no term of a target's name."""
        followed = [term for term in terms if term.name in self._targets]
        if len(followed) < len(self._targets):
            wanted, found = ", ".join(self._targets), ", ".join(term.name for term in terms)
            raise ValueError(f"kl_targets follow {wanted}, but the terms of the objective are {found}")
        self._open_step.add_terms(followed)

    def end_step(self, accelerator: Accelerator, step: int) -> None:
        """Update the targets whose policy moves in optimiser step `step`. All ranks must call it."""
        averages = self._open_step.drain(accelerator)
        for name, target in self._targets.items():
            if step >= target.start_step:
                target.update(averages[f"loss/{name}"])

    def state(self) -> dict[str, float]:
        """What a checkpoint needs, the same on every rank."""
        return {f"{key} of {name}": x for name, target in self._targets.items() for key, x in target.state().items()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take up what `state` returned; a target that it does not know stays at its start."""
        for name, target in self._targets.items():
            known = {key: state[f"{key} of {name}"] for key in target.state() if f"{key} of {name}" in state}
            target.restore({**target.state(), **known})

    def agree(self) -> None:
        """Take over the targets of rank 0, on ranks that the saved run did not have. All ranks must call it."""
        if self._targets:
            [state] = broadcast_object_list([self.state()])
            self.restore(state)
