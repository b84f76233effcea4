"""Games in worker processes: what hangs is killed, what dies is named, and the next game is played."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from posttrain.alfworld.agents import AgentName
from posttrain.alfworld.games import Game
from posttrain.alfworld.processes import GameFailure, GameProcess, RemoteEnvironment, play_games
from posttrain.alfworld.simulator import Simulator

HANGS = (sys.executable, "-c", "import time; time.sleep(600)")
DIES = (sys.executable, "-c", "import os, sys; sys.stdin.readline(); print('no memory', file=sys.stderr); os.abort()")
SAYS_NOTHING_WON = (
    sys.executable,
    "-c",
    'import sys\nfor line in sys.stdin: print(\'{"text": "hello", "admissible": [], "is_won": false}\', flush=True)',
)


def failure_of(command: tuple[str, ...], game: Game, *, seconds: float) -> str | None:
    with GameProcess(seconds_per_game=seconds, command=command) as process:
        record = process.play(game, AgentName.WALKTHROUGH, seed=0, max_steps=5)
    assert not record.is_won
    return record.failure


def test_engine_that_hangs_is_killed_and_its_game_is_failed(kitchen: Game) -> None:
    assert failure_of(HANGS, kitchen, seconds=0.5) == "killed: the engine needed more than 0.5 s"


def test_engine_that_dies_is_named_with_its_signal_and_last_words(kitchen: Game) -> None:
    assert failure_of(DIES, kitchen, seconds=60) == "the engine's process ended, signal SIGABRT: no memory"


def test_request_larger_than_a_pipe_to_a_worker_that_does_not_read_is_a_hang_too(kitchen: Game) -> None:
    large = replace(kitchen, pddl_domain="x" * 1_000_000)
    assert failure_of(HANGS, large, seconds=0.5) == "killed: the engine needed more than 0.5 s"


def test_step_after_a_failure_says_that_the_game_is_over(kitchen: Game) -> None:
    with GameProcess(seconds_per_game=0.5, command=HANGS) as process:
        with pytest.raises(GameFailure, match="killed"):
            process.reset(kitchen)
        with pytest.raises(GameFailure, match="is over"):
            process.step("look")


def test_seconds_of_a_game_start_anew_with_the_next_one(kitchen: Game) -> None:
    with GameProcess(seconds_per_game=60, command=SAYS_NOTHING_WON) as process:
        for _ in range(3):
            assert process.reset(kitchen).text == "hello"
            assert process.step("look").text == "hello"


def test_worker_loads_without_torch() -> None:
    check = "import posttrain.alfworld.worker, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_engine_in_a_process_answers_as_the_simulator_and_fails_for_a_broken_game(engine_kitchen: Game) -> None:
    broken = replace(engine_kitchen, pddl_problem="(define (problem none) (:init) (:goal))")
    simulator = Simulator(engine_kitchen)
    with GameProcess(seconds_per_game=300) as process:
        with pytest.raises(GameFailure):
            process.reset(broken)
        environment = RemoteEnvironment(process, engine_kitchen)
        assert environment.reset() == simulator.reset()
        assert environment.step("go to countertop 1") == simulator.step("go to countertop 1")


def test_oracle_and_handcoded_agent_play_on_the_engine(engine_kitchen: Game) -> None:
    for agent in (AgentName.ORACLE, AgentName.HANDCODED):
        settings = {"seed": 0, "max_steps": 50, "n_processes": 1, "seconds_per_game": 300.0}
        (record,) = play_games([engine_kitchen], agent, **settings)
        assert (record.is_won, record.failure) == (True, None), record
