"""The recipe of ALFWorld from scratch: every stage runs, scores come from the engine, the tables are made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from posttrain.alfworld.environment import require_engine
from posttrain.alfworld.games import TaskType, write_tree
from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.alfworld_baseline import read_game_records
from tests.alfworld.small_game import for_engine, small_game

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SMOKE = {  # a few steps of everything
    "expert": {"samples_per_game": 4},
    "sft": {"max_steps": 3, "per_device_train_batch_size": 4},
    "collect": {"samples_per_game": 2, "max_turns": 3},
    "oreo": {"max_steps": 3, "value_warmup_steps": 1, "warmup_steps": 1, "per_device_train_batch_size": 4},
    "eval": {"max_turns": 2},
    "eval_by_value": {"max_turns": 2},
}


def module_at(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


record = module_at("evals/record_alfworld.py", "record_alfworld")


def played(agent: str, seed: int, game: int, *, is_won: bool, split: str = "valid_seen") -> GameRecord:
    return GameRecord(
        game_id=f"{split}/pick/trial_{game}",
        task_type=TaskType.PICK,
        agent=agent,
        seed=seed,
        max_steps=25,
        is_won=is_won,
        n_steps=10,
        n_inadmissible=1,
        seconds=None,
        failure=None,
        commands=(),
        n_sampled_tokens=30,
        n_scored_tokens=0,
    )


def test_tables_pair_the_methods_on_the_same_games_and_seeds() -> None:
    # Of 4 games under 2 seeds: sft wins game 0; oreo wins 0, 1 and 2 under seed 0, and 0 and 1 under seed 1.
    value = f"best_of_{record.CANDIDATES}"
    records = []
    for seed, n_oreo in ((0, 3), (1, 2)):
        for agent, n_won in (("sft/command", 1), ("oreo/command", n_oreo)):
            records += [played(agent, seed, game, is_won=game < n_won) for game in range(4)]
            records += [played(f"{agent}/{value}", seed, game, is_won=game < n_won + 1) for game in range(4)]
    methods, pairs = ([line.split(" | ") for line in part.splitlines()[2:]] for part in _parts(records))
    assert [cells[0].removeprefix("| ") for cells in methods] == [
        *("sft, greedy", f"sft, best of {record.CANDIDATES} by value"),
        *("oreo, greedy", f"oreo, best of {record.CANDIDATES} by value"),
    ]
    assert [cells[1:3] for cells in methods] == [
        *(["25.0", "25.0"], ["50.0", "50.0"], ["75.0", "50.0"], ["100.0", "75.0"])
    ]
    assert methods[2][3].startswith("62.5 [")  # (3 + 2) of 8
    assert pairs[0][0].startswith("| oreo/greedy against sft/greedy")
    assert pairs[0][2].startswith("+37.5 [")
    assert (pairs[0][4], pairs[0][5]) == ("+50.0; +25.0", "2 : 0; 1 : 0")
    assert pairs[0][6] == "0.50; 1.00 |"  # two-sided: 2 * (1/2)^2 and 2 * (1/2)^1


def _parts(records: list[GameRecord]) -> list[str]:
    _, methods, pairs = record._of_split("valid_seen", records)
    return [methods, pairs]


@pytest.mark.slow
def test_recipe_runs_from_games_to_tables(tmp_path: Path) -> None:
    try:
        require_engine()
    except ImportError as error:
        pytest.skip(str(error))
    tasks = (("Mug", "SideTable", "put a mug in sidetable"), ("Bowl", "Fridge", "put a bowl in fridge"))
    for split in ("train", "valid_seen", "valid_unseen"):
        games = [
            small_game(TaskType.PICK, thing, target, goal=goal, game_id=f"{split}/pick-{thing}/trial_0")
            for thing, target, goal in tasks
        ]
        write_tree(map(for_engine, games), tmp_path / "official")
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name, smoke in SMOKE.items():
        config = yaml.safe_load((REPOSITORY / f"recipes/alfworld/{name}.yaml").read_text())
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump({**config, **smoke}))
    recipe = module_at("recipes/alfworld/run.py", "run_alfworld")
    run = tmp_path / "seed-0"
    config = recipe.RunConfig(output=run, recipes=recipes, folder=tmp_path / "official", limit=2)
    recipe.run(config)
    records = read_game_records(run / "games.jsonl")
    assert len(records) == 4 * 2 * 2  # methods, splits, games
    assert {r.agent for r in records} == {
        f"{policy}/command{how}" for policy in ("sft", "oreo") for how in ("", f"/best_of_{record.CANDIDATES}")
    }
    searched = [r for r in records if "best_of" in r.agent]
    assert all((r.n_scored_tokens or 0) > (r.n_sampled_tokens or 0) > 0 for r in searched)
    record.record_run(run, tmp_path / "kept" / "seed-0")
    assert record.tables(tmp_path / "kept").count("| oreo, greedy |") == 2
    recipe.run(config)  # goes on: nothing is left to do, and nothing is played twice
    assert read_game_records(run / "games.jsonl") == records
