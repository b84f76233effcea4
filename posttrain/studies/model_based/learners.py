"""The learners that the small loop runs: a model fitted to data, and Q fitted to what a source gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Memory
from posttrain.control.worlds.world import World
from posttrain.losses.term import total
from posttrain.studies.model_based.deep_q import DeepQ
from posttrain.studies.model_based.models import LearnedNetwork, Model
from posttrain.studies.model_based.play import mean_return
from posttrain.studies.model_based.sources import Source
from posttrain.studies.model_based.stacked import adam

N_COPIES = 32  # of the world in an evaluation


class ModelFit:
    """Fits a model to the transitions of a memory. A `Learner`."""

    def __init__(
        self, model: LearnedNetwork, memory: Memory, streams: Streams, *, batch_size: int, learning_rate: float
    ) -> None:
        self.model, self.memory, self.streams, self.batch_size = model, memory, streams, batch_size
        self.optimizer = adam(model.parameters(), learning_rate)

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        terms = self.model.terms(self.memory.sample(self.streams, self.batch_size), self.streams)
        # Divided by the transitions of one seed: the seeds of a stack share no weight.
        loss = total(terms, {"transition": self.batch_size})
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        n_rows = self.batch_size * len(self.streams)
        return {f"loss/{term.name}": term.value.detach().sum() / n_rows for term in terms}

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "streams": self.streams.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.streams.load_state(state["streams"])


class QFit:
    """Fits Q to the transitions of a source. A `Learner`."""

    def __init__(self, agent: DeepQ, source: Source, judge: Judge, streams: Streams, *, batch_size: int) -> None:
        """`streams` are what agent and source draw from."""
        self.agent, self.source, self.judge, self.streams = agent, source, judge, streams
        self.batch_size = batch_size

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        return self.agent.update(self.source.draw(self.batch_size, self.agent.sample))

    def evaluate(self) -> Mapping[str, float]:
        return self.judge.evaluate(self.agent)

    def state(self) -> dict[str, Any]:
        return {"agent": self.agent.state(), "streams": self.streams.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.agent.load_state(state["agent"])
        self.streams.load_state(state["streams"])


class Judge:
    """Measures a greedy policy by seed, always on the same episodes."""

    def __init__(self, world: World, model: Model, seeds: Sequence[int], *, n_steps: int) -> None:
        self.world, self.model, self.seeds, self.n_steps = world, model, seeds, n_steps

    def evaluate(self, agent: DeepQ) -> dict[str, float]:
        """Rewards of an episode per step, "reward_rate/<seed's place>", without the event that comes by chance."""
        earned = self.returns(agent, self.world.without_chance())
        return {f"reward_rate/{place}": of_seed / self.n_steps for place, of_seed in enumerate(earned)}

    @torch.no_grad()
    def returns(self, agent: DeepQ, world: World) -> list[float]:
        """Mean return of each seed's greedy policy in `world`."""
        streams = Streams(self.seeds)

        def act(observation: Tensor) -> Tensor:
            return agent.greedy(self.model.encode(observation, streams))

        return mean_return(world, act, streams, n_copies=N_COPIES, n_steps=self.n_steps).tolist()
