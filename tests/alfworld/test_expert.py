"""The expert that searches, and its rows: token for token what a policy's own episodes would be."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from posttrain.alfworld.episode import EpisodeParams, play_episodes
from posttrain.alfworld.expert import ExpertConfig, ExpertName, expert_rows, write_expert_rows
from posttrain.alfworld.games import Game, Split, TaskType, write_tree
from posttrain.alfworld.oracle import oracle_plan, search_plan
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName, without_banner
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.turns import turns_of
from posttrain.data.encode import encode_trajectory
from posttrain.sampling import SamplingParams
from posttrain.training.sft import parse_demonstration
from tests.alfworld.small_game import small_game
from tests.alfworld.tiny_player import PlanEngine, RecordingEngine, character_tokenizer, write_random_policy

PARAMS = EpisodeParams(SamplingParams(64, 1.0, 0), max_turns=40, max_tokens=4000)
LISTED = ["cabinet 1", "countertop 1", "fridge 1", "microwave 1", "shelf 1", "sidetable 1", "sinkbasin 1"]
WITH_GOAL = '"Your task is to: UNKNOWN GOAL."'  # what a grammar needs to be written to a file


def with_shown(game: Game, plan: list[str]) -> list[tuple[str, str]]:
    """(command, all that was shown before it) of a plan that must be admissible and win."""
    simulator = Simulator(game)
    seen = simulator.reset()
    told, shown = [], seen.text
    for command in plan:
        assert command in seen.admissible, (game.game_id, command)
        told.append((command, shown))
        seen = simulator.step(command)
        shown += seen.text
    assert seen.is_won, game.game_id
    return told


def test_search_takes_only_what_it_has_seen_and_goes_on_as_the_room_is_listed() -> None:
    game = small_game()  # apples are in the cabinet and on the counter
    for seed in range(40):
        plan = search_plan(game, random.Random(seed), p_jump=0.0)
        for command, shown in with_shown(game, plan):
            verb, _, rest = command.partition(" ")
            assert verb != "take" or f"a {rest.partition(' from ')[0]}" in shown
        searched = plan[: next(i for i, command in enumerate(plan) if command.startswith("take"))]
        looked = [" ".join(command.split()[-2:]) for command in searched if not command.startswith("open")]
        first = LISTED.index(looked[0])
        assert looked == (LISTED + LISTED)[first : first + len(looked)]
        assert ("examine sidetable 1" in searched) == ({"shelf 1", "sidetable 1"} <= set(looked) and first != 5)


def test_search_that_leaps_visits_in_many_orders_and_still_wins() -> None:
    game = small_game()
    plans = {tuple(search_plan(game, random.Random(seed), p_jump=0.5)) for seed in range(60)}
    assert len(plans) > 30
    for plan in plans:
        with_shown(game, list(plan))


def test_search_wins_official_games_of_every_type_in_over_twice_the_commands_of_the_oracle(
    official_games: dict[Split, list[Game]],
) -> None:
    games = official_games[Split.VALID_SEEN]
    assert {game.task_type for game in games} == set(TaskType)
    n_search = [len(with_shown(g, search_plan(g, random.Random(g.game_id), p_jump=0.2))) for g in games]
    assert sum(n_search) > 2 * sum(len(oracle_plan(game)) for game in games)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_rows_of_the_expert_are_those_of_a_policy_that_says_the_same(chat: bool) -> None:
    tokenizer, game = character_tokenizer(chat=chat), small_game()
    plan = search_plan(game, random.Random(3), p_jump=0.2)
    (row,) = expert_rows([(game, 0, plan)], tokenizer, PARAMS)
    # What a policy would be asked in rollouts and evaluation before each of these replies:
    end = "<|im_end|>" if chat else "\n"
    policy = RecordingEngine(PlanEngine(tokenizer, [f"{command}{end}" for command in plan]))
    (episode,) = play_episodes(
        policy,
        tokenizer,
        turns_of(tokenizer),
        EpisodeProtocol(ProtocolName.COMMAND),
        [(game, 0, Simulator(game))],
        PARAMS,
    )
    assert row.input_ids == tuple(episode.input_ids)
    assert [row.input_ids[:start] for start, _ in row.action_spans] == [tuple(prompt) for prompt, _ in policy.asked]
    # And without any of that code, from the simulator's texts:
    simulator = Simulator(game)
    lines = [without_banner(simulator.reset().text)]
    for command in plan:
        lines += [f">{command}", simulator.step(command).text]
    if not chat:
        assert tokenizer.decode(row.input_ids) == "\n".join(lines) + "\n>"
    encoded = encode_trajectory(row, tokenizer, 0, step_delimiters=())
    chosen = [i for i, is_action in zip(row.input_ids, encoded.is_action, strict=True) if is_action]
    assert tokenizer.decode(chosen) == "".join(f"{command}{end}" for command in plan)


def test_rows_on_file_are_the_won_episodes_within_the_limits(tmp_path: Path) -> None:
    policy = write_random_policy(tmp_path / "policy", chat=False)
    names = [f"generated/small/trial_{i}" for i in range(3)]
    write_tree([small_game(grammar=WITH_GOAL, game_id=name) for name in names], tmp_path / "games")

    def rows_of(expert: ExpertName, max_turns: int) -> list[dict]:
        path = tmp_path / f"{expert}-{max_turns}.jsonl"
        config = ExpertConfig(
            model=str(policy),
            output=path,
            expert=expert,
            games=str(tmp_path / "games"),
            samples_per_game=4,
            max_turns=max_turns,
        )
        write_expert_rows(config)
        return [json.loads(line) for line in path.read_text().splitlines()]

    # The oracle's plan for "heat some apple and put it in fridge": go, take, go, heat, go, open, move.
    assert [len(row["action_spans"]) for row in rows_of(ExpertName.ORACLE, 7)] == [7] * 12
    assert rows_of(ExpertName.ORACLE, 6) == []
    searched = rows_of(ExpertName.SEARCH, 40)
    assert [row["task_id"] for row in searched] == [name for name in names for _ in range(4)]
    assert len({row["completion"] for row in searched}) > 4  # a draw for each game and sample
    within = rows_of(ExpertName.SEARCH, 10)
    assert within == [row for row in searched if len(row["action_spans"]) <= 10]
    row = parse_demonstration(searched[0], "test")
    assert (row.reward, row.behavior_logp) == (1.0, None)


def test_validation_games_are_refused_for_demonstrations() -> None:
    with pytest.raises(ValueError, match="rows for training"):
        ExpertConfig(model="m", output=Path("rows.jsonl"), games="valid_unseen")
