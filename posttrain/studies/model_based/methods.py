"""The agents that are compared: one value learner, and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Memory
from posttrain.control.worlds.world import World
from posttrain.studies.model_based.latent import CategoricalLatentModel
from posttrain.studies.model_based.models import LearnedNetwork, Model, PerfectModel, SimpleModel, Spliced
from posttrain.studies.model_based.sources import Replayed, Rollouts, Source


class Method(StrEnum):
    """Each tells where the value learner's transitions come from."""

    TABULAR = "tabular"  # replayed, in a table: no generalisation at all
    REPLAY = "replay"  # replayed
    LEARNED = "learned"  # rollouts of the learned model
    PERFECT = "perfect"  # rollouts of the world
    LEARNED_ONE_STEP = "learned_one_step"  # one step of the learned model, from replayed states, with own actions
    PERFECT_ONE_STEP = "perfect_one_step"  # one step of the world: replay made on-policy and nothing else
    LEARNED_DYNAMICS = "learned_dynamics"  # rollouts of the learned dynamics with the true reward
    LEARNED_REWARD = "learned_reward"  # rollouts of the world with the learned reward
    LATENT = "latent"  # rollouts of the categorical latent model, in its own states


ON_SIMPLE_MODEL = frozenset({Method.LEARNED, Method.LEARNED_ONE_STEP, Method.LEARNED_DYNAMICS, Method.LEARNED_REWARD})
ONE_STEP = frozenset({Method.LEARNED_ONE_STEP, Method.PERFECT_ONE_STEP})


@dataclass(frozen=True, slots=True)
class ModelNetworks:
    """Sizes of a learned model."""

    hidden: tuple[int, ...]
    n_groups: int  # of the latent model's states
    n_classes: int


def fresh_model(method: Method, world: World, streams: Streams, sizes: ModelNetworks) -> LearnedNetwork | None:
    """The untrained model that the method learns, None where it learns none."""
    if method in ON_SIMPLE_MODEL:
        return SimpleModel(world, streams, sizes.hidden)
    if method is Method.LATENT:
        return CategoricalLatentModel(world, streams, sizes.hidden, n_groups=sizes.n_groups, n_classes=sizes.n_classes)
    return None


def model_of(method: Method, world: World, learned: Model | None) -> Model:
    """What the method imagines with; the world where it learns no model. For replay only `encode` is asked."""
    true = PerfectModel(world)
    if learned is None:
        return true
    if method is Method.LEARNED_DYNAMICS:
        return Spliced(dynamics=learned, reward=true)
    if method is Method.LEARNED_REWARD:
        return Spliced(dynamics=true, reward=learned)
    return learned


def source_of(method: Method, memory: Memory, model: Model, *, length: int, streams: Streams) -> Source:
    """Where the method's transitions come from."""
    if method is Method.REPLAY:
        return Replayed(memory, streams)
    return Rollouts(memory, model, 1 if method in ONE_STEP else length, streams)
