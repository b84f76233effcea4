"""`posttrain alfworld baseline`: agents without a model on the official games, and the table of their records.

The records are append-only JSON lines, one GameRecord per game, so a run that was stopped goes on where it was.
Several agents may share a file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from posttrain.alfworld.agents import AgentName
from posttrain.alfworld.games import Game, Split, TaskType, games_folder, read_games
from posttrain.alfworld.play import GameRecord
from posttrain.alfworld.processes import play_games
from posttrain.config_fields import plain
from posttrain.evaluation.records import append_lines
from posttrain.evaluation.statistics import wilson_interval
from posttrain.evaluation.tables import NOT_APPLICABLE, Table
from posttrain.provenance import run_card

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecordKey = tuple[str, int, int, str]  # agent, seed, max_steps, game_id


@dataclass(frozen=True, slots=True)
class BaselineConfig:
    """Which agent plays which games, and for how long."""

    agent: AgentName = field(
        metadata={
            "help": "walkthrough: the stored commands; oracle: ours, reads the game's facts; handcoded: the alfworld "
            "package's; random: any admissible command."
        }
    )
    output: Path = field(metadata={"help": "JSON lines file of game records, to write or to go on with."})
    split: tuple[Split, ...] = field(
        default=(Split.VALID_SEEN, Split.VALID_UNSEEN), metadata={"help": "Official splits to play."}
    )
    folder: Path | None = field(
        default=None,
        metadata={"help": "Folder of the games; null: ALFWORLD_DATA, or alfworld below POSTTRAIN_DATA."},
    )
    limit: int | None = field(default=None, metadata={"help": "Play the first so many games of each split."})
    max_steps: int = field(default=50, metadata={"help": "Commands after which a game is lost (alfworld's own: 50)."})
    seed: int = field(default=0, metadata={"help": "Of the random and the hand-coded agent, with the game's id."})
    n_processes: int = field(default=1, metadata={"help": "Engines side by side; 0.3 to 1 GB of memory each."})
    seconds_per_game: float = field(
        default=300.0, metadata={"help": "Wall time after which a game is killed and counts as failed."}
    )

    def __post_init__(self) -> None:
        for name in ("max_steps", "n_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at least 1")


def run_baseline(config: BaselineConfig) -> None:
    """Play the games that are not on file, append their records, and print the table of all that were asked for."""
    games = [game for split in config.split for game in read_games(split, folder=config.folder, limit=config.limit)]
    wanted = {_key(config, game): game for game in games}
    known = {record_key(record): record for record in read_game_records(config.output)}
    left = [game for key, game in wanted.items() if key not in known]
    write_card(config, output=config.output, agent=config.agent, n_games=len(games), folder=config.folder)
    played = play_games(
        left,
        config.agent,
        seed=config.seed,
        max_steps=config.max_steps,
        n_processes=config.n_processes,
        seconds_per_game=config.seconds_per_game,
    )
    with tqdm(total=len(games), initial=len(games) - len(left), unit="game", desc=config.agent) as bar:
        for record in played:
            append_game_record(config.output, record)
            known[record_key(record)] = record
            bar.update()
    records = [known[key] for key in wanted]
    print(success_table(records).to_markdown())
    for line in failures(records):
        print(line)


def success_table(records: Iterable[GameRecord]) -> Table:
    """Share of games won by task type, with 95 % Wilson intervals, for every split and agent among the records."""
    groups: dict[tuple[str, str], list[GameRecord]] = {}
    for record in records:
        groups.setdefault((record.agent, record.game_id.partition("/")[0]), []).append(record)
    header = ("task type", *(f"{agent}, {split}" for agent, split in groups))
    by_type = [
        (task_type.value, *(_cell([r for r in group if r.task_type is task_type]) for group in groups.values()))
        for task_type in TaskType
    ]
    total = ("all", *(_cell(group) for group in groups.values()))
    steps = ("commands in a won game", *(_mean_steps(group) for group in groups.values()))
    return Table(header, (*by_type, total, steps))


def failures(records: Iterable[GameRecord]) -> Iterator[str]:
    """One line for each game that ended by itself."""
    for record in records:
        if record.failure is not None:
            yield f"failed: {record.agent} in {record.game_id}: {record.failure}"


def read_game_records(path: Path) -> list[GameRecord]:
    """The records of a file, which may be gzipped, in order; none if it is not there. A torn last line is left out.

    Raises ValueError, opening with file:line, for a line that is no GameRecord or a game that was played twice.
    """
    if not path.exists():
        return []
    records: dict[RecordKey, GameRecord] = {}
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(content.decode("utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            record = GameRecord.from_json(json.loads(line))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path.name}:{number}: is no game record ({error}); choose another output") from None
        if record_key(record) in records:
            raise ValueError(f"{path.name}:{number}: {record.agent} played {record.game_id} before, on this file")
        records[record_key(record)] = record
    return list(records.values())


def append_game_record(path: Path, record: GameRecord) -> None:
    """Add a record and sync it to disk; a torn last line of an interrupted write is cut off first."""
    append_lines(path, [json.dumps(record.to_json())])


def record_key(record: GameRecord) -> RecordKey:
    """What identifies a game that was played; a run goes on by leaving out the keys that are on file."""
    return (record.agent, record.seed, record.max_steps, record.game_id)


def write_card(config: DataclassInstance, *, output: Path, agent: str, n_games: int, folder: Path | None) -> None:
    """The run card beside the records, `<output>.<agent>.run.json`: settings, versions and machine."""
    path = output.with_name(f"{output.name}.{agent}.run.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    card = run_card(plain(asdict(config)), {}) | {"n_games": n_games, "games": games_folder(folder).name}
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _key(config: BaselineConfig, game: Game) -> RecordKey:
    return (config.agent, config.seed, config.max_steps, game.game_id)


def _cell(group: Sequence[GameRecord]) -> str:
    if not group:
        return NOT_APPLICABLE
    n_won = sum(record.is_won for record in group)
    share = wilson_interval(n_won, len(group))
    return f"{n_won}/{len(group)} = {share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _mean_steps(group: Sequence[GameRecord]) -> str:
    steps = [record.n_steps for record in group if record.is_won]
    return f"{sum(steps) / len(steps):.1f}" if steps else NOT_APPLICABLE
