"""`posttrain alfworld collect`: episodes of a policy in many games, as rows that the trainers read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tqdm import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from posttrain import __version__
from posttrain.alfworld.environments import EnvironmentName, Environments
from posttrain.alfworld.episode import Episode, EpisodeParams, episode_row, play_episodes
from posttrain.alfworld.games import Game, Split, TaskType, read_folder, read_games
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.turns import turns_of
from posttrain.config_fields import plain
from posttrain.data.tokenizer_card import tokenizer_card
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import weights_sha256
from posttrain.rollout.engines import EngineName, load_engine
from posttrain.rollout.row_file import RowFile
from posttrain.sampling import SamplingEngine, SamplingParams
from posttrain.schema import Message, TrajectoryRow

# Keys that may differ when a run goes on: they say where, how far and how fast, not what is sampled.
_MAY_CHANGE = ("output", "limit", "batch_size", "games_per_chunk", "folder", "seconds_per_game")


class GameSettings(Protocol):
    """What of a config says which games to play."""

    @property
    def games(self) -> str: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def task_types(self) -> tuple[TaskType, ...]: ...
    @property
    def limit(self) -> int | None: ...


class EngineSettings(Protocol):
    """What of a config the engine of its policy takes."""

    @property
    def model(self) -> str: ...
    @property
    def engine(self) -> EngineName: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...


def _option(help: str, default: object, group: str = "sampling") -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class AlfworldCollectConfig:
    """Play ALFWorld games with a policy and write the episodes as trajectory rows. Run again to go on after a stop."""

    model: str = field(metadata={"help": "Folder or Hub id of the policy."})
    output: Path = field(
        metadata={"help": "JSON lines file to write or to go on with; a .summary.json is put beside it."}
    )
    games: str = _option("train, or a folder that `posttrain alfworld generate` has written.", "train", "games")
    folder: Path | None = _option("Folder of the official games; null: see ALFWORLD_DATA.", None, "games")
    task_types: tuple[TaskType, ...] = _option("Task types to play.", tuple(TaskType), "games")
    limit: int | None = _option("Play the first so many games of these types.", None, "games")
    environment: EnvironmentName = _option(
        "simulator: fast and equal to the engine in all that was compared; engine: the real one, in processes.",
        "simulator",
        "games",
    )
    seconds_per_game: float = _option("Of an engine, after which it is killed and the game lost.", 300.0, "games")
    protocol: ProtocolName = _option("How a game becomes a conversation.", ProtocolName.REACT)
    samples_per_game: int = _option("Episodes of each game (k).", 5)
    temperature: float = _option("0 is greedy.", 1.0)
    top_p: float = _option("Cut to the likeliest tokens with this mass; 1 is off.", 1.0)
    top_k: int = _option("Cut to this many tokens; 0 is off.", 0)
    max_new_tokens: int = _option("Token budget of one reply.", 128)
    max_turns: int = _option("Replies of an episode (the paper: 40).", 40)
    max_tokens: int = _option("Tokens of a whole episode; it ends where they are used up.", 4096)
    seed: int = _option("Each turn draws from a stream of its own, set by this, the game's id, sample and turn.", 0)
    engine: EngineName = _option("What runs the policy.", "transformers", "engine")
    dtype: Literal["float32", "bfloat16"] = _option("Arithmetic of the policy.", "bfloat16", "engine")
    device: str = _option("Of the transformers engine: cpu, cuda, ...; auto takes CUDA.", "auto", "engine")
    batch_size: int = _option("Rows that the transformers engine decodes at a time.", 64, "engine")
    games_per_chunk: int = _option("Games between two writes, played side by side.", 16, "engine")

    def __post_init__(self) -> None:
        for name in ("samples_per_game", "batch_size", "games_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at least 1")
        require_training_games(self.games)

    def params(self) -> EpisodeParams:
        sampling = SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            top_p=self.top_p,
            top_k=self.top_k,
        )
        return EpisodeParams(sampling, max_turns=self.max_turns, max_tokens=self.max_tokens)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A game as the rows' file knows it."""

    game: Game
    task_id: str
    prompt: tuple[Message, ...]


@dataclass(slots=True)
class _Tally:
    """Sums over the rows on file."""

    n_games: int = 0
    n_won: int = 0
    n_rows: int = 0
    n_solved: int = 0
    n_tokens: int = 0

    def add(self, asked: _Asked, rows: Sequence[TrajectoryRow]) -> None:
        won = [row.reward == 1.0 for row in rows]
        self.n_games += 1
        self.n_rows += len(rows)
        self.n_won += sum(won)
        self.n_solved += any(won)
        self.n_tokens += sum(end - start for row in rows for start, end in row.action_spans)


def collect_episodes(config: AlfworldCollectConfig) -> Path:
    """Play `config.samples_per_game` episodes of each game and write their rows; returns the rows' file.

    Rows are appended a chunk of games at a time; a run that was stopped goes on after its last whole chunk. Raises
    ValueError when the file at `output` is of another model, other games or other parameters.
    """
    tokenizer = load_tokenizer(config.model)
    protocol, params = EpisodeProtocol(config.protocol), config.params()
    asked = [_asked(game, protocol) for game in read_training_games(config)]
    tally, file = _Tally(), RowFile(config.output, n_per_problem=config.samples_per_game)
    run = {key: value for key, value in plain(asdict(config)).items() if key not in _MAY_CHANGE}
    run["model_sha256"] = weights_sha256(Path(config.model))
    file.claim(run)
    n_done = file.resume(asked, problems_per_chunk=config.games_per_chunk, count=tally.add)
    start = time.monotonic()
    if n_done < len(asked):
        _play_and_write(config, tokenizer, protocol, params, asked[n_done:], file, tally)
    file.write_summary(
        {
            "is_complete": True,
            "run": run,
            **asdict(tally),
            "last_run": {"n_games_found_done": n_done, "seconds": time.monotonic() - start},
            "config": {**plain(asdict(config)), "template": "chat" if tokenizer.chat_template else "plain"},
            "tokenizer": tokenizer_card(tokenizer),
            "posttrain": __version__,
        }
    )
    print(f"{config.output}: {tally.n_rows:,} episodes of {tally.n_games:,} games, {tally.n_won:,} won")
    return config.output


def _play_and_write(
    config: AlfworldCollectConfig,
    tokenizer: PreTrainedTokenizerBase,
    protocol: EpisodeProtocol,
    params: EpisodeParams,
    asked: Sequence[_Asked],
    file: RowFile,
    tally: _Tally,
) -> None:
    """Play the games that are left, a chunk at a time, and add their rows to file and tally."""
    engine = load_episode_engine(config, tokenizer, batch_size=config.batch_size)
    k, turns = config.samples_per_game, turns_of(tokenizer)
    with (
        Environments(config.environment, seconds_per_game=config.seconds_per_game) as environments,
        tqdm(total=len(asked), unit="game", desc="collect") as bar,
    ):
        for first in range(0, len(asked), config.games_per_chunk):
            chunk = asked[first : first + config.games_per_chunk]
            games = [one.game for one in chunk for _ in range(k)]
            tasks = list(zip(games, itertools.cycle(range(k)), environments.of(games), strict=False))
            episodes = play_episodes(engine, tokenizer, turns, protocol, tasks, params)
            rows = [_row(episode, tokenizer) for episode in episodes]
            file.append(rows)
            for place, one in enumerate(chunk):
                tally.add(one, rows[place * k : (place + 1) * k])
            bar.set_postfix_str(f"won {tally.n_won / tally.n_rows:.1%}")
            bar.update(len(chunk))


def load_episode_engine(
    config: EngineSettings, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
) -> SamplingEngine:
    """The engine that plays episodes. Raises ValueError when they may be longer than the model has positions."""
    n_positions = AutoConfig.from_pretrained(config.model).max_position_embeddings
    if config.max_tokens > n_positions:
        raise ValueError(
            f"max_tokens is {config.max_tokens:,}, the model has {n_positions:,} positions: set it to those or less"
        )
    return load_engine(
        config.model,
        tokenizer,
        engine=config.engine,
        dtype=config.dtype,
        device=config.device,
        batch_size=batch_size,
        max_tokens=lambda: config.max_tokens,
    )


def _row(episode: Episode, tokenizer: PreTrainedTokenizerBase) -> TrajectoryRow:
    if not episode.action_spans:
        raise ValueError(
            f"{episode.game.game_id}: no reply was sampled ({episode.failure}); raise max_tokens or seconds_per_game"
        )
    return episode_row(episode, tokenizer, where=episode.game.game_id)


def require_training_games(games: str) -> None:
    """Raises ValueError for a split whose games are for reported scores."""
    if games in (Split.VALID_SEEN, Split.VALID_UNSEEN):
        raise ValueError(f"games is {games!r}: rows for training come from train or from generated games")


def read_training_games(config: GameSettings) -> list[Game]:
    """The official training games, or those of a folder, of the types that the config names."""
    if config.games == Split.TRAIN:
        return read_games(Split.TRAIN, folder=config.folder, limit=config.limit, task_types=config.task_types)
    return read_folder(Path(config.games), limit=config.limit, task_types=config.task_types)


def _asked(game: Game, protocol: EpisodeProtocol) -> _Asked:
    return _Asked(game, game.game_id, protocol.opening(Simulator(game).reset().text))
