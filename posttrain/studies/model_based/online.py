"""`posttrain control worlds-online`: agents that act, remember and learn, with and without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from posttrain.config_fields import plain
from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Episodes, Memory
from posttrain.evaluation.study_figures.model_based import online_table
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_study
from posttrain.studies.model_based.config import WorldsOnlineConfig, seeds_of
from posttrain.studies.model_based.deep_q import DeepQ
from posttrain.studies.model_based.learners import Judge, ModelFit, QFit
from posttrain.studies.model_based.methods import Method, fresh_model, model_of, source_of
from posttrain.studies.model_based.seed_curves import stack_dir, write_seed_curves
from posttrain.training.jobs import run_jobs
from posttrain.training.loop import LoopConfig, run_loop

STUDY = "worlds-online"
WALK, MODEL, AGENT, EVALUATION = range(11, 15)  # purposes of seeds
MAY_CHANGE = ("output_dir", "methods", "replay_ratios", "n_processes")


class OnlineFit:
    """One step of the world in each seed, then the updates that belong to it. A `Learner`."""

    def __init__(
        self, episodes: Episodes, memory: Memory, q: QFit, model: ModelFit | None, *, n_first: int, replay_ratio: int
    ) -> None:
        """Updates begin once the memory holds `n_first` steps; then there are `replay_ratio` of them per step."""
        self.episodes, self.memory, self.q, self.model = episodes, memory, q, model
        self.n_first, self.replay_ratio = n_first, replay_ratio

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        state = self.q.judge.model.encode(self.episodes.observation, self.episodes.streams)
        row = self.episodes.act(self.q.agent.sample(state))
        self.memory.add(row)
        logged: dict[str, Tensor | float] = {"reward": row.reward.mean()}
        if len(self.memory) >= self.n_first:
            for _ in range(self.replay_ratio):
                logged |= self.model.step(step) if self.model else {}
                logged |= self.q.step(step)
        return logged

    def evaluate(self) -> Mapping[str, float]:
        return self.q.evaluate()

    def state(self) -> dict[str, Any]:
        return {
            "observation": self.episodes.observation,
            "walk": self.episodes.streams.state(),
            "memory": self.memory.state(),
            "q": self.q.state(),
            "model": self.model.state() if self.model else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.episodes.observation = state["observation"]
        self.episodes.streams.load_state(state["walk"])
        self.memory.load_state(state["memory"])
        self.q.load_state(state["q"])
        if self.model:
            self.model.load_state(state["model"])


@dataclass(frozen=True, slots=True)
class OnlineJob:
    """One method at one replay ratio, all seeds."""

    config: WorldsOnlineConfig
    method: Method
    replay_ratio: int


def run_worlds_online(config: WorldsOnlineConfig) -> None:
    """Every method at every replay ratio; a run that was stopped goes on from its checkpoints. Prints the table."""
    settings = {name: value for name, value in plain(asdict(config)).items() if name not in MAY_CHANGE}
    begin_study(config.output_dir, STUDY, settings)
    jobs = [OnlineJob(config, method, ratio) for ratio in config.replay_ratios for method in config.methods]
    run_jobs(run_online, jobs, n_processes=config.n_processes)
    print(online_table(read_study(config.output_dir)).to_markdown())


def run_online(job: OnlineJob) -> None:
    """Train one method, and write its rows and curves."""
    config = job.config
    if is_done(config.output_dir, method=job.method.value, replay_ratio=job.replay_ratio):
        return
    learner = online_fit(job)
    name = f"ratio-{job.replay_ratio}/{job.method}"
    loop = LoopConfig(
        output_dir=stack_dir(config.output_dir, name),
        n_steps=config.n_steps,
        eval_steps=config.eval_steps,
        checkpoint_steps=config.checkpoint_steps,
    )
    measured = run_loop(learner, loop, settings={})
    write_seed_curves(config.output_dir, name, config.n_seeds)
    with_chance = learner.q.judge.returns(learner.q.agent, learner.episodes.world)
    for seed in range(config.n_seeds):
        row = {
            "method": job.method.value,
            "replay_ratio": job.replay_ratio,
            "seed": seed,
            "reward_rate": measured[f"reward_rate/{seed}"],
            "reward_rate_with_chance": with_chance[seed] / config.n_eval_steps,
            "cpu_s": measured["cpu_s"] / config.n_seeds,
        }
        append_result(config.output_dir, row)


def online_fit(job: OnlineJob) -> OnlineFit:
    """The learner of a job, before its first step."""
    config, method = job.config, job.method
    world = config.make_world()
    walk, model_streams, streams = (
        Streams(seeds_of(config.n_seeds, purpose=purpose)) for purpose in (WALK, MODEL, AGENT)
    )
    memory = Memory(config.n_seeds, min(config.capacity, config.n_steps), world.n_bits)
    learned = fresh_model(method, world, model_streams, config.networks())
    fit = learned and ModelFit(
        learned,
        memory,
        model_streams,
        batch_size=config.model_batch_size,
        learning_rate=config.model_learning_rate,
    )
    model = model_of(method, world, learned)
    agent = DeepQ(config.deep_q(), n_state=model.n_state, n_actions=world.n_actions, streams=streams)
    judge = Judge(world, model, seeds_of(config.n_seeds, purpose=EVALUATION), n_steps=config.n_eval_steps)
    source = source_of(method, memory, model, length=config.rollout_length, streams=streams)
    q = QFit(agent, source, judge, streams, batch_size=config.batch_size)
    episodes = Episodes(world, walk, 1)
    return OnlineFit(episodes, memory, q, fit, n_first=config.n_first_steps, replay_ratio=job.replay_ratio)
