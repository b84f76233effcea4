"""`posttrain alfworld eval`: a policy on the official validation games, on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from posttrain.alfworld.collect import load_episode_engine
from posttrain.alfworld.environments import Environments
from posttrain.alfworld.episode import Episode, EpisodeParams, play_episodes
from posttrain.alfworld.games import Game, Split, TaskType, read_games
from posttrain.alfworld.play import GameRecord, agent_name
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.alfworld.turns import turns_of
from posttrain.evaluation.alfworld_baseline import (
    append_game_record,
    failures,
    read_game_records,
    record_key,
    success_table,
    write_card,
)
from posttrain.evaluation.loading import load_value_beside
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.engines import EngineName
from posttrain.sampling import SamplingParams
from posttrain.search.scorer import ReencodingScorer


@dataclass(frozen=True, slots=True)
class AlfworldEvalConfig:
    """Which policy plays which games, and in what form."""

    model: str = field(metadata={"help": "Folder or Hub id of the policy."})
    name: str = field(metadata={"help": "Name of the policy in the records and the table."})
    output: Path = field(metadata={"help": "JSON lines file of game records, to write or to go on with."})
    split: tuple[Split, ...] = field(
        default=(Split.VALID_SEEN, Split.VALID_UNSEEN), metadata={"help": "Official splits to play."}
    )
    folder: Path | None = field(default=None, metadata={"help": "Folder of the games; null: see ALFWORLD_DATA."})
    task_types: tuple[TaskType, ...] = field(default=tuple(TaskType), metadata={"help": "Task types to play."})
    limit: int | None = field(
        default=None, metadata={"help": "Play the first so many games of each split and these types."}
    )
    protocol: ProtocolName = field(
        default=ProtocolName.REACT, metadata={"help": "How a game becomes a conversation; it is part of the result."}
    )
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy (the paper)."})
    candidates: int = field(
        default=1,
        metadata={"help": "Replies sampled for each turn, of which the value model picks one; needs a temperature."},
    )
    value_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the value model that picks among several candidates."}
    )
    seed: int = field(default=0, metadata={"help": "Of every sampled token."})
    max_turns: int = field(default=40, metadata={"help": "Replies of an episode (the paper: 40)."})
    max_new_tokens: int = field(default=128, metadata={"help": "Token budget of one reply."})
    max_tokens: int = field(default=4096, metadata={"help": "Tokens of a whole episode."})
    engine: EngineName = field(default="transformers", metadata={"help": "What runs the policy."})
    dtype: str = field(default="bfloat16", metadata={"help": "Arithmetic of the policy: float32 or bfloat16."})
    device: str = field(default="auto", metadata={"help": "Of the transformers engine: cpu, cuda, ...; or auto."})
    n_processes: int = field(default=8, metadata={"help": "Games side by side, each 0.3 to 1 GB of memory."})
    seconds_per_game: float = field(
        default=300.0, metadata={"help": "Of the game engine, after which it is killed and the game failed."}
    )

    def __post_init__(self) -> None:
        if self.n_processes < 1:
            raise ValueError(f"n_processes is {self.n_processes}, needs at least 1")
        if (self.candidates > 1) is not (self.value_model is not None):
            raise ValueError(
                f"candidates is {self.candidates} and value_model {self.value_model}: several candidates need a value "
                "model to pick one, and a single one needs none"
            )
        self.params()

    @property
    def agent(self) -> str:
        return agent_name(self.name, self.protocol, n_candidates=self.candidates)

    def params(self) -> EpisodeParams:
        sampling = SamplingParams(self.max_new_tokens, self.temperature, self.seed)
        return EpisodeParams(sampling, self.max_turns, self.max_tokens, self.candidates)


def evaluate_alfworld(config: AlfworldEvalConfig) -> None:
    """Play the games that are not on file, append their records, and print the table of all that were asked for."""
    games = [
        game
        for split in config.split
        for game in read_games(split, folder=config.folder, limit=config.limit, task_types=config.task_types)
    ]
    keys = {game.game_id: (config.agent, config.seed, config.max_turns, game.game_id) for game in games}
    known = {record_key(record): record for record in read_game_records(config.output)}
    left = [game for game in games if keys[game.game_id] not in known]
    write_card(
        config, output=config.output, agent=config.agent.replace("/", "."), n_games=len(games), folder=config.folder
    )
    for record in _played(config, left) if left else ():
        append_game_record(config.output, record)
        known[record_key(record)] = record
    records = [known[key] for key in keys.values()]
    print(success_table(records).to_markdown())
    for line in failures(records):
        print(line)


def _played(config: AlfworldEvalConfig, games: list[Game]) -> Iterator[GameRecord]:
    tokenizer = load_tokenizer(config.model)
    engine = load_episode_engine(config, tokenizer, batch_size=config.n_processes * config.candidates)
    scorer = None
    if config.value_model is not None:
        value_model = load_value_beside(
            engine, tokenizer, config.value_model, dtype=config.dtype, device=config.device
        )
        scorer = ReencodingScorer(value_model, batch_size=config.n_processes * config.candidates)
    turns, protocol = turns_of(tokenizer), EpisodeProtocol(config.protocol)
    with (
        Environments("engine", seconds_per_game=config.seconds_per_game) as environments,
        tqdm(total=len(games), unit="game", desc=config.agent) as bar,
    ):
        for first in range(0, len(games), config.n_processes):
            chunk = games[first : first + config.n_processes]
            tasks = [(game, 0, environment) for game, environment in zip(chunk, environments.of(chunk), strict=True)]
            episodes = play_episodes(engine, tokenizer, turns, protocol, tasks, config.params(), scorer=scorer)
            bar.update(len(chunk))
            yield from (_record(config, episode) for episode in episodes)


def _record(config: AlfworldEvalConfig, episode: Episode) -> GameRecord:
    return GameRecord(
        game_id=episode.game.game_id,
        task_type=episode.game.task_type,
        agent=config.agent,
        seed=config.seed,
        max_steps=config.max_turns,
        is_won=episode.is_won,
        n_steps=len(episode.commands),
        n_inadmissible=episode.n_inadmissible,
        seconds=None,
        failure=episode.failure,
        commands=tuple(episode.commands),
        n_sampled_tokens=episode.n_sampled_tokens,
        n_scored_tokens=episode.n_scored_tokens,
    )
