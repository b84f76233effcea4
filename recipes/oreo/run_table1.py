"""What the paper's Table 1 and its ablation have beyond the quickstart: KTO, and OREO at step and response level.

Run from the root of the repository, after a quickstart and on its samples:

    posttrain quickstart --seed 0 --output runs/seed-0
    python recipes/oreo/run_table1.py --run runs/seed-0 --seed 0

Every stage is a `posttrain` command with a config of recipes/oreo/table1; their answers join those of the quickstart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrain.config import run_script
from posttrain.stages import Argument, Stage, Stages

METHODS = {"kto": "kto", "oreo_step": "oreo", "oreo_response": "oreo"}  # name -> verb


@dataclass(frozen=True)
class RunConfig:
    """Whose samples to learn from."""

    run: Path = field(metadata={"help": "Folder of a finished quickstart."})
    seed: int = field(default=0, metadata={"help": "That of the quickstart."})


def run(config: RunConfig) -> None:
    """Train and evaluate each method; prints each command."""
    answers = config.run / "answers.jsonl"
    if not answers.is_file():
        raise FileNotFoundError(f"no {answers}: run `posttrain quickstart --output {config.run}` first")
    stages = Stages(config.run / "logs", recipes=Path("recipes"), is_smoke=False)
    seed = ("--seed", str(config.seed))
    for name, verb in METHODS.items():
        folder = config.run / name
        learn: tuple[Argument, ...] = ("--model", config.run / "sft", "--train_data", config.run / "samples.jsonl")
        stages.run(Stage(name, verb, (*learn, "--output_dir", folder, *seed), recipe=f"oreo/table1/{name}"))
        policy = folder / "policy" if verb == "oreo" else folder
        asked = ("--model", policy, "--name", name, "--problems", config.run / "test_problems.jsonl", *seed)
        stages.run(Stage(f"eval_{name}", "eval run", (*asked, "--output", answers), recipe="quickstart/eval"))


if __name__ == "__main__":
    raise SystemExit(run_script(run, RunConfig, path=__file__, summary=(__doc__ or "").splitlines()[0]))
