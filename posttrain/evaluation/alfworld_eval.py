"""`posttrain alfworld eval`: a policy on the official validation games, on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from posttrain.alfworld.collect import load_episode_engine, play_side_by_side
from posttrain.alfworld.episode import Episode, EpisodeParams
from posttrain.alfworld.games import Game, Split, read_games
from posttrain.alfworld.play import GameRecord
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.evaluation.alfworld_baseline import (
    append_game_record,
    failures,
    read_game_records,
    record_key,
    success_table,
    write_card,
)
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.engines import EngineName
from posttrain.sampling import SamplingParams


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
    limit: int | None = field(default=None, metadata={"help": "Play the first so many games of each split."})
    protocol: ProtocolName = field(
        default=ProtocolName.REACT, metadata={"help": "How a game becomes a conversation; it is part of the result."}
    )
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy (the paper)."})
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

    @property
    def agent(self) -> str:
        return f"{self.name}/{self.protocol}"


def evaluate_alfworld(config: AlfworldEvalConfig) -> None:
    """Play the games that are not on file, append their records, and print the table of all that were asked for."""
    games = [game for split in config.split for game in read_games(split, folder=config.folder, limit=config.limit)]
    keys = {game.game_id: (config.agent, config.seed, config.max_turns, game.game_id) for game in games}
    known = {record_key(record): record for record in read_game_records(config.output)}
    left = [game for game in games if keys[game.game_id] not in known]
    write_card(config, output=config.output, agent=config.name, n_games=len(games), folder=config.folder)
    for record in _played(config, left) if left else ():
        append_game_record(config.output, record)
        known[record_key(record)] = record
    records = [known[key] for key in keys.values()]
    print(success_table(records).to_markdown())
    for line in failures(records):
        print(line)


def _played(config: AlfworldEvalConfig, games: list[Game]) -> Iterator[GameRecord]:
    tokenizer = load_tokenizer(config.model)
    engine = load_episode_engine(config, tokenizer, batch_size=config.n_processes)
    sampling = SamplingParams(config.max_new_tokens, config.temperature, config.seed)
    params = EpisodeParams(sampling, max_turns=config.max_turns, max_tokens=config.max_tokens)
    with tqdm(total=len(games), unit="game", desc=config.agent) as bar:
        for first in range(0, len(games), config.n_processes):
            chunk = games[first : first + config.n_processes]
            episodes = play_side_by_side(
                engine,
                tokenizer,
                EpisodeProtocol(config.protocol),
                params,
                [(game, 0) for game in chunk],
                environment="engine",
                seconds_per_game=config.seconds_per_game,
            )
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
    )
