"""ALFWorld with a policy from scratch: imitate an expert that searches, play, learn from the games played, play again.

Run from the root of the repository, with the official games where ALFWORLD_DATA or POSTTRAIN_DATA says:

    python recipes/alfworld/run.py --seed 0 --output runs/alfworld/seed-0

Every stage is a `posttrain` command with a config of this folder; one that has ended well is not run again. Games for
learning are played in the simulator, games for scores on the real engine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from posttrain.alfworld.games import Split, read_games
from posttrain.alfworld.vocabulary import episode_tokenizer, fresh_policy
from posttrain.config import run_script
from posttrain.iterate import OnceStages
from posttrain.provenance import hash_data, write_run_card
from posttrain.stages import Argument, Stage, Stages

MAX_TOKENS = 384  # positions of the network; expert.yaml, collect.yaml and the evals name the same bound


@dataclass(frozen=True)
class RunConfig:
    """Where to run and with which seed."""

    output: Path = field(metadata={"help": "Run folder; one that was stopped goes on."})
    seed: int = field(default=0, metadata={"help": "Of weights, searches, samples and the order of data."})
    recipes: Path = field(default=Path("recipes/alfworld"), metadata={"help": "Folder of the stages' configs."})
    folder: Path | None = field(default=None, metadata={"help": "Folder of the games; null: see ALFWORLD_DATA."})
    limit: int | None = field(default=None, metadata={"help": "Take the first so many games of each split."})


def run(config: RunConfig) -> None:
    """Run every stage; prints each command and each table."""
    output, fresh = config.output, config.output / "fresh"
    stages = OnceStages(Stages(output / "logs", recipes=config.recipes, is_smoke=False), output)
    write_run_card(output, {key: str(value) for key, value in asdict(config).items()}, hash_data(config.recipes))
    if not (fresh / "tokenizer_config.json").is_file():
        write_fresh_policy(config, fresh)
    seed = ("--seed", str(config.seed))
    games: tuple[Argument, ...] = seed if config.folder is None else (*seed, "--folder", config.folder)
    games = games if config.limit is None else (*games, "--limit", str(config.limit))
    demonstrations, episodes = output / "expert.jsonl", output / "episodes.jsonl"
    sft, oreo = output / "sft", output / "oreo"
    stages.run(Stage("expert", "alfworld expert", ("--model", fresh, "--output", demonstrations, *games)))
    learn = ("--model", fresh, "--train_data", demonstrations, "--output_dir", sft, *seed)
    stages.run(Stage("sft", "sft", learn))
    stages.run(Stage("collect", "alfworld collect", ("--model", sft, "--output", episodes, *games)))
    learn = ("--model", sft, "--train_data", episodes, "--output_dir", oreo, *seed)
    stages.run(Stage("oreo", "oreo", learn))
    for name, policy in (("sft", sft), ("oreo", oreo / "policy")):
        asked = ("--model", policy, "--name", name, "--output", output / "games.jsonl", *games)
        stages.run(Stage(f"eval_{name}", "alfworld eval", asked, recipe="eval"))
        asked = (*asked, "--value_model", oreo / "value")
        stages.run(Stage(f"eval_{name}_by_value", "alfworld eval", asked, recipe="eval_by_value"))


def write_fresh_policy(config: RunConfig, folder: Path) -> None:
    """The tokenizer of the training games and random weights."""
    tokenizer = episode_tokenizer(read_games(Split.TRAIN, folder=config.folder, limit=config.limit))
    fresh_policy(tokenizer, max_tokens=MAX_TOKENS, seed=config.seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    raise SystemExit(run_script(run, RunConfig, path=__file__, summary=(__doc__ or "").splitlines()[0]))
