"""Episodes of a policy in many games at once: tokens as they were sampled, and what came between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from posttrain.alfworld.environment import NOTHING_HAPPENS, Environment, Observation
from posttrain.alfworld.games import Game
from posttrain.alfworld.processes import GameFailure
from posttrain.alfworld.protocol import EpisodeProtocol
from posttrain.alfworld.turns import Turns
from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import FinishReason, Message, TrajectoryRow
from posttrain.search.scorer import ValueScorer
from posttrain.search.turn import choose_turns

NO_COMMAND = "the reply names no action"
REPLY_CUT = "the reply was cut by its token budget"
NO_ROOM = "the conversation has reached max_tokens"
MAX_THREADS = 32  # that step environments side by side


@dataclass(frozen=True, slots=True)
class EpisodeParams:
    """How episodes are played; `sampling.max_new_tokens` is the budget of one reply."""

    sampling: SamplingParams
    max_turns: int  # the paper: 40
    max_tokens: int  # of the whole conversation; no turn starts that could not add at least one token
    n_candidates: int = 1  # replies sampled for each turn; of several a value model picks one

    def __post_init__(self) -> None:
        for name in ("max_turns", "n_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at least 1")
        if self.n_candidates > 1 and self.sampling.temperature == 0:
            raise ValueError(f"n_candidates is {self.n_candidates}, but at temperature 0 all replies are the same one")


@dataclass(slots=True)
class Episode:
    """One game as one policy played it."""

    game: Game
    sample: int  # which of the episodes of this game; chooses its random streams
    messages: tuple[Message, ...] = ()  # up to the policy's first turn
    input_ids: list[int] = field(default_factory=list)
    action_spans: list[tuple[int, int]] = field(default_factory=list)  # the tokens of the policy's turns
    logp: list[float] = field(default_factory=list)  # one per token of the spans, nats, at temperature 1
    n_sampled_tokens: int = 0  # by the policy, in all candidates of all turns
    n_scored_tokens: int = 0  # that a value model was given
    commands: list[str] = field(default_factory=list)
    n_inadmissible: int = 0
    is_won: bool = False
    is_over: bool = False
    finish_reason: FinishReason = FinishReason.STOP  # of the last reply
    failure: str | None = None  # why it ended before the game was won or the turns were used up
    observation: Observation | None = None  # after the last command

    @property
    def afterstates(self) -> tuple[int, ...]:
        """Indexes of the tokens that follow a turn: the state before each is an afterstate."""
        return tuple(end for _, end in self.action_spans if end < len(self.input_ids))


def play_episodes(
    engine: SamplingEngine,
    tokenizer: PreTrainedTokenizerBase,
    turns: Turns,
    protocol: EpisodeProtocol,
    games: Sequence[tuple[Game, int, Environment]],
    params: EpisodeParams,
    *,
    scorer: ValueScorer | None = None,
) -> list[Episode]:
    """Play all games side by side, a turn of every running one per call of the engine.

    games: (game, which sample of it, its own environment). scorer: picks among `params.n_candidates` replies. Every
    turn draws from a stream of its own, set by the seed, the game's id, the sample and the turn: an episode does not
    depend on the others, up to the last bits of logits.
    Environments are stepped in threads, so that engine processes work side by side.
    """
    if (params.n_candidates > 1) is not (scorer is not None):
        raise ValueError(
            f"n_candidates is {params.n_candidates}: several need a scorer to pick one, and one needs none"
        )
    sampling = replace(params.sampling, stop=(*params.sampling.stop, *turns.stop))
    episodes = [Episode(game, sample) for game, sample, _ in games]
    environments = [environment for _, _, environment in games]
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        side_by_side = threads.map if len(games) > 1 else map  # a game alone would only wait for its thread
        list(side_by_side(lambda e, env: _start(e, env, turns, protocol), episodes, environments))
        while running := [i for i, episode in enumerate(episodes) if not _is_done(episode, params)]:
            samples = _take_turns([episodes[i] for i in running], engine, scorer, sampling, params.n_candidates)
            replies = [str(tokenizer.decode(list(s.token_ids), skip_special_tokens=True)) for s in samples]
            list(
                side_by_side(
                    lambda i, reply: _answer(episodes[i], reply, environments[i], turns, protocol), running, replies
                )
            )
    return episodes


def episode_row(episode: Episode, tokenizer: PreTrainedTokenizerBase, *, where: str) -> TrajectoryRow:
    """A trajectory row: tokens and log-probabilities as sampled, reward 1 for a game that was won, else 0.

    Observations are no actions; the states before them are afterstates, where a value learns what the turn was worth.
    """
    first = episode.action_spans[0][0]
    return TrajectoryRow(
        where=where,
        task_id=episode.game.game_id,
        prompt=episode.messages,
        completion=str(tokenizer.decode(episode.input_ids[first:], skip_special_tokens=True)),
        input_ids=tuple(episode.input_ids),
        action_spans=tuple(episode.action_spans),
        reward=1.0 if episode.is_won else 0.0,
        step_rewards=(),
        finish_reason=episode.finish_reason,
        behavior_logp=tuple(episode.logp),
        ref_logp=None,
        afterstates=episode.afterstates,
    )


def _start(episode: Episode, environment: Environment, turns: Turns, protocol: EpisodeProtocol) -> None:
    try:
        observation = environment.reset()
    except GameFailure as failure:
        episode.is_over, episode.failure = True, str(failure)
        return
    episode.observation = observation
    episode.messages = protocol.opening(observation.text)
    episode.input_ids = turns.opening(episode.messages)


def _is_done(episode: Episode, params: EpisodeParams) -> bool:
    if not episode.is_over and len(episode.input_ids) >= params.max_tokens:
        episode.is_over, episode.failure = True, NO_ROOM
    return episode.is_over or len(episode.action_spans) >= params.max_turns


def _take_turns(
    episodes: Sequence[Episode],
    engine: SamplingEngine,
    scorer: ValueScorer | None,
    sampling: SamplingParams,
    n_candidates: int,
) -> list[Sample]:
    """The policy's next reply in each episode, sampled, picked and recorded."""
    prompts = [episode.input_ids for episode in episodes]
    streams = [_stream(episode) for episode in episodes]
    if scorer is None:
        samples = [found[0] for found in engine.sample(prompts, sampling, 1, streams=streams)]
        for episode, sample in zip(episodes, samples, strict=True):
            episode.n_sampled_tokens += len(sample.token_ids)
    else:
        chosen = choose_turns(engine, scorer, prompts, sampling, n_candidates, streams=streams)
        samples = [turn.sample for turn in chosen]
        for episode, turn in zip(episodes, chosen, strict=True):
            episode.n_sampled_tokens += turn.n_sampled_tokens
            episode.n_scored_tokens += turn.n_scored_tokens
    for episode, sample in zip(episodes, samples, strict=True):
        _record(episode, sample)
    return samples


def _record(episode: Episode, sample: Sample) -> None:
    start = len(episode.input_ids)
    episode.input_ids.extend(sample.token_ids)
    episode.action_spans.append((start, len(episode.input_ids)))
    episode.logp.extend(sample.logp)
    episode.finish_reason = sample.finish_reason


def _answer(episode: Episode, reply: str, environment: Environment, turns: Turns, protocol: EpisodeProtocol) -> None:
    """Give the reply's command to the game and append what comes back."""
    if episode.finish_reason is FinishReason.LENGTH:
        episode.is_over, episode.failure = True, REPLY_CUT
        return
    command = protocol.command_in(reply)
    text = NOTHING_HAPPENS
    if command is None:
        episode.is_over, episode.failure = True, NO_COMMAND
    else:
        text = _step(episode, command, environment)
    episode.input_ids.extend(turns.after_reply(protocol.shown(text), last_id=episode.input_ids[-1]))


def _step(episode: Episode, command: str, environment: Environment) -> str:
    assert episode.observation is not None
    episode.commands.append(command)
    episode.n_inadmissible += command not in episode.observation.admissible
    try:
        episode.observation = environment.step(command)
    except GameFailure as failure:
        episode.is_over, episode.failure = True, str(failure)
        return NOTHING_HAPPENS
    episode.is_won = episode.observation.is_won
    episode.is_over = episode.is_won
    return episode.observation.text


def _stream(episode: Episode) -> int:
    """The random stream of an episode's next turn: 64 bits of a hash."""
    text = f"{episode.game.game_id}/{episode.sample}/{len(episode.action_spans)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
