"""`posttrain alfworld expert`: an expert's episodes as rows, token for token as a policy's own would be."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from posttrain import __version__
from posttrain.alfworld.collect import read_training_games, require_training_games
from posttrain.alfworld.episode import EpisodeParams, episode_row, play_episodes
from posttrain.alfworld.games import Game, TaskType
from posttrain.alfworld.oracle import oracle_plan, search_plan
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.turns import Turns, turns_of
from posttrain.config_fields import plain
from posttrain.data.rows import trajectory_to_json
from posttrain.data.sources import write_jsonl
from posttrain.data.tokenizer_card import summary_path, tokenizer_card
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import write_json
from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason, TrajectoryRow


class ExpertName(StrEnum):
    SEARCH = "search"  # looks for things in an order that is drawn, so a policy can imitate it
    ORACLE = "oracle"  # goes where things are, which no policy can know


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Whose episodes of which games to write."""

    model: str = field(metadata={"help": "Folder whose tokenizer makes the rows; its policy is not used."})
    output: Path = field(metadata={"help": "JSON lines file to write; a .summary.json is put beside it."})
    expert: ExpertName = field(
        default=ExpertName.SEARCH,
        metadata={"help": "search: looks for things as a player must; oracle: knows where they are."},
    )
    games: str = field(
        default="train", metadata={"help": "train, or a folder that `posttrain alfworld generate` has written."}
    )
    folder: Path | None = field(default=None, metadata={"help": "Folder of the official games; null: ALFWORLD_DATA."})
    task_types: tuple[TaskType, ...] = field(default=tuple(TaskType), metadata={"help": "Task types to play."})
    limit: int | None = field(default=None, metadata={"help": "Play the first so many games."})
    samples_per_game: int = field(default=1, metadata={"help": "Episodes of each game; another draw each."})
    p_jump: float = field(default=0.2, metadata={"help": "Chance that the search leaps to a drawn place, each time."})
    max_turns: int = field(default=40, metadata={"help": "Episodes that take more are left out."})
    max_tokens: int = field(default=4096, metadata={"help": "Episodes that take more are left out."})
    seed: int = field(default=0, metadata={"help": "Of the search order, with the game's id and the sample."})

    def __post_init__(self) -> None:
        if self.samples_per_game < 1:
            raise ValueError(f"samples_per_game is {self.samples_per_game}, needs at least 1")
        require_training_games(self.games)


def write_expert_rows(config: ExpertConfig) -> Path:
    """Write the rows of all episodes that were won within the limits; returns their file.

    The replies are bare commands (protocol `command`): an expert by rules has no thoughts to imitate.
    """
    tokenizer = load_tokenizer(config.model)
    games = read_training_games(config)
    sampling = SamplingParams(max_new_tokens=config.max_tokens, temperature=1.0, seed=config.seed)
    params = EpisodeParams(sampling, max_turns=config.max_turns, max_tokens=config.max_tokens)
    asked = ((game, sample) for game in games for sample in range(config.samples_per_game))
    plans = ((game, sample, expert_plan(game, sample, config)) for game, sample in asked)
    rows = [row for row in expert_rows(plans, tokenizer, params) if row.reward == 1.0]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(config.output, map(trajectory_to_json, rows))
    n_played = len(games) * config.samples_per_game
    write_json(
        summary_path(config.output),
        {
            "n_games": len(games),
            "n_played": n_played,
            "n_rows": len(rows),
            "n_tokens": sum(len(row.input_ids or ()) for row in rows),
            "config": {**plain(asdict(config)), "template": "chat" if tokenizer.chat_template else "plain"},
            "tokenizer": tokenizer_card(tokenizer),
            "posttrain": __version__,
        },
    )
    print(f"{config.output}: {len(rows):,} of {n_played:,} episodes, the others take more than the limits")
    return config.output


def expert_plan(game: Game, sample: int, config: ExpertConfig) -> Sequence[str]:
    if config.expert is ExpertName.ORACLE:
        return oracle_plan(game)
    return search_plan(game, random.Random(f"{config.seed}/{game.game_id}/{sample}"), p_jump=config.p_jump)


def expert_rows(
    plans: Iterable[tuple[Game, int, Sequence[str]]], tokenizer: PreTrainedTokenizerBase, params: EpisodeParams
) -> Iterator[TrajectoryRow]:
    """The rows of (game, which sample of it, commands), played by `play_episodes` as a policy's replies would be."""
    turns, protocol = turns_of(tokenizer), EpisodeProtocol(ProtocolName.COMMAND)
    for game, sample, commands in plans:
        engine = ScriptedEngine(tokenizer, turns, commands)
        (episode,) = play_episodes(engine, tokenizer, turns, protocol, [(game, sample, Simulator(game))], params)
        yield replace(episode_row(episode, tokenizer, where=game.game_id), behavior_logp=None)


class ScriptedEngine:
    """A SamplingEngine that says given commands one after another, each ended as a policy would end it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: Turns, commands: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._end = turns.stop[0] if turns.stop else str(tokenizer.eos_token)
        self._commands = iter(commands)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        n: int,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        if (len(prompts), n) != (1, 1):
            raise ValueError(f"asked for {n} replies to {len(prompts)} conversations; a script has one to one")
        ids = tuple(self._tokenizer(f"{next(self._commands)}{self._end}", add_special_tokens=False)["input_ids"])
        return [[Sample(ids, (0.0,) * len(ids), FinishReason.STOP, None)]]
