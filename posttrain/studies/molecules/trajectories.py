"""Trajectories of molecules: drawn forward by a policy, or backward from a molecule by uniform removals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment, Step
from posttrain.control.molecules.molecule import Molecule

STOP = -1  # the last column of Scores.logits

Logits = Callable[[Sequence[Molecule]], Tensor]  # [G, W * A + 1] of molecules, −inf where not legal


@dataclass(slots=True)
class Trajectory:
    """States before each action, the empty molecule first; the last action stops, at the molecule made."""

    states: list[Molecule] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)  # columns of Scores.logits
    log_counts: list[float] = field(default_factory=list)  # of actions that are one step with it, 0 at the stop
    log_pb: list[float] = field(default_factory=list)

    @property
    def molecule(self) -> Molecule:
        return self.states[-1]

    def append(self, state: Molecule, action: int, log_count: float, log_pb: float) -> None:
        self.states.append(state)
        self.actions.append(action)
        self.log_counts.append(log_count)
        self.log_pb.append(log_pb)


def draw_forward(
    environment: MoleculeEnvironment, logits: Logits, n: int, *, exploration: float, generator: Generator
) -> list[Trajectory]:
    """n trajectories; each action is drawn uniformly with probability `exploration`, by the softmax of logits else."""
    trajectories = [Trajectory() for _ in range(n)]
    now: dict[int, Molecule] = dict.fromkeys(range(n), EMPTY)
    while now:
        columns = _draw(logits(list(now.values())), exploration, generator)
        for index, column in zip(list(now), columns, strict=True):
            state = now.pop(index)
            if column == STOP:
                trajectories[index].append(state, STOP, 0.0, 0.0)
                continue
            action = Action(*divmod(column, len(environment.blocks)))
            child = environment.step(state, action)
            trajectories[index].append(state, column, *environment.log_counts(state, action, child))
            now[index] = child
    return trajectories


def _draw(logits: Tensor, exploration: float, generator: Generator) -> list[int]:
    is_legal = logits > -torch.inf
    p_uniform = is_legal / is_legal.sum(-1, keepdim=True)
    p = (1 - exploration) * logits.softmax(-1) + exploration * p_uniform
    drawn = torch.multinomial(p, 1, generator=generator).squeeze(-1)
    return torch.where(drawn == logits.shape[-1] - 1, STOP, drawn).tolist()


def draw_backward(environment: MoleculeEnvironment, molecule: Molecule, generator: Generator) -> Trajectory:
    """A trajectory that ends at the molecule, drawn by P_B: a removal uniformly among those that there are."""
    steps: list[tuple[Step, int]] = []
    at = molecule
    while len(at):
        choices = environment.steps_into(at)
        steps.append((choices[int(torch.randint(len(choices), (), generator=generator))], len(choices)))
        at = steps[-1][0].parent
    trajectory = Trajectory()
    for step, n_choices in reversed(steps):
        column = step.action.site * len(environment.blocks) + step.action.block
        trajectory.append(step.parent, column, math.log(step.count), math.log(step.removal_count / n_choices))
    trajectory.append(molecule, STOP, 0.0, 0.0)
    return trajectory
