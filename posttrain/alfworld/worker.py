"""The program of a game process: requests as JSON lines on standard input, answers on standard output.

    {"op": "reset", "game": {...}}                          -> {"text": ..., "admissible": [...], "is_won": ...}
    {"op": "step", "command": "go to desk 1"}               -> the same
    {"op": "play", "game": {...}, "agent": "oracle", ...}   -> a GameRecord

Every request has "seconds", its time limit: should the parent be gone and nobody kill a hanging engine, the process
ends itself soon after. An error of the engine is the answer {"error": "IndexError: ..."}.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from typing import IO, Any

from posttrain.alfworld.agents import AgentName, make_agent
from posttrain.alfworld.environment import EngineEnvironment, Observation
from posttrain.alfworld.games import Game, TaskType
from posttrain.alfworld.play import described, play

SECONDS_OF_GRACE = 30.0  # the parent kills at the limit; this is for when there is no parent


def main() -> None:
    """Answer requests until standard input ends."""
    answers = _answers_apart_from_prints()
    environment: EngineEnvironment | None = None
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["seconds"] + SECONDS_OF_GRACE, exit=True)
        try:
            if request["op"] == "play":
                answer = _play(request)
            elif request["op"] == "reset":
                environment = EngineEnvironment(game_from_json(request["game"]))
                answer = observation_to_json(environment.reset())
            else:
                assert environment is not None, "a game starts with a reset"
                answer = observation_to_json(environment.step(request["command"]))
        except Exception as error:  # whatever the engine raises makes a failed game, never a stopped run
            answer = {"error": described(error)}
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def game_from_json(row: dict[str, Any]) -> Game:
    """The game that `dataclasses.asdict` turned into JSON."""
    return Game(**{**row, "task_type": TaskType(row["task_type"]), "walkthrough": tuple(row["walkthrough"])})


def observation_to_json(observation: Observation) -> dict[str, Any]:
    return {
        "text": observation.text,
        "admissible": list(observation.admissible),
        "is_won": observation.is_won,
    }


def _play(request: dict[str, Any]) -> dict[str, Any]:
    game = game_from_json(request["game"])
    environment = EngineEnvironment(game)
    name, seed = AgentName(request["agent"]), request["seed"]
    agent = make_agent(name, game, environment, seed=seed)
    return play(game, environment, agent, name=name, seed=seed, max_steps=request["max_steps"]).to_json()


def _answers_apart_from_prints() -> IO[str]:
    """Standard output for answers alone: what the engine's libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
