"""Visual tokens and reinforcement learning on them: a tokenizer, a policy that imitates, and its policy gradient.

Run from the root of the repository:

    python recipes/selftok/run.py --output runs/selftok

Every stage is a `posttrain` command with a config of this folder; one that has ended well is not run again. Two runs
go at once, each on one core. --tokenizers selftok no_schedule cells shifted compares tokenizers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from posttrain.config import run_script
from posttrain.evaluation.picture_table import gain_table, picture_table
from posttrain.evaluation.records import read_records
from posttrain.iterate import OnceStages
from posttrain.provenance import hash_data, write_run_card
from posttrain.stages import Stage, Stages

HERE = Path("recipes/selftok")
TOKENIZERS = ("selftok", "no_schedule", "cells", "shifted")
SAMPLED = ("sft/sample", 1), ("pg/sample", 1)


@dataclass(frozen=True)
class RunConfig:
    """What to run and where."""

    output: Path = field(metadata={"help": "Folder of the runs; those that were stopped go on."})
    seeds: tuple[int, ...] = field(
        default=(0, 1, 2), metadata={"help": "Of tokenizers, pictures, policies and samples."}
    )
    tokenizers: tuple[str, ...] = field(default=("selftok",), metadata={"help": f"Any of {', '.join(TOKENIZERS)}."})
    offline: bool = field(
        default=False, metadata={"help": "Also learn from the imitator's pictures by OREO, and search by its value."}
    )
    at_once: int = field(default=2, metadata={"help": "Runs side by side, each on one core."})
    smoke: bool = field(default=False, metadata={"help": "Hardly any steps, to see that every stage runs."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.tokenizers if name not in TOKENIZERS]
        if unknown or not self.tokenizers or not self.seeds or self.at_once < 1:
            raise ValueError(
                f"tokenizers {self.tokenizers}, seeds {self.seeds}, at_once {self.at_once}: needs at least one of "
                f"each, tokenizers among {', '.join(TOKENIZERS)}"
            )


def run(config: RunConfig) -> None:
    """All runs, then for each tokenizer the pictures that pass every check, by family."""
    runs = list(product(config.tokenizers, config.seeds))
    with ThreadPoolExecutor(config.at_once) as pool:
        for done in [pool.submit(run_one, config, *each) for each in runs]:
            done.result()
    for name in config.tokenizers:
        files = [config.output / name / f"seed-{seed}" / "answers.jsonl" for seed in config.seeds]
        records = [record for file in files for record in read_records(file)]
        print(f"\n{name}, held-out prompts, samples at temperature 1\n")
        print(picture_table(records, SAMPLED).to_markdown())
        print(gain_table(records, [SAMPLED[::-1]]).to_markdown())


def run_one(config: RunConfig, name: str, seed: int) -> None:
    """Every stage of one tokenizer and seed."""
    output = config.output / name / f"seed-{seed}"
    stages = OnceStages(Stages(output / "logs", recipes=HERE, is_smoke=config.smoke), output)
    told = {key: str(value) for key, value in asdict(config).items()} | {"tokenizer": name, "seed": str(seed)}
    write_run_card(output, told, hash_data(HERE))
    tokenizer, rows, fresh, sft = (output / part for part in ("tokenizer", "rows.jsonl", "fresh", "sft"))
    draws, seeded = ("--visual_tokenizer", tokenizer), ("--seed", str(seed))
    recipe = "tokenizer" if name == "selftok" else f"tokenizer_{name}"
    stages.run(Stage("tokenizer", "vision train", ("--output_dir", tokenizer, *seeded), recipe=recipe))
    for split in ("held_out", "train"):
        asked = (*draws, "--split", split, "--output", output / f"{split}.jsonl")
        stages.run(Stage(f"problems_{split}", "vision problems", asked, recipe="problems"))
    stages.run(Stage("rows", "vision rows", (*draws, "--output", rows, *seeded)))
    stages.run(Stage("policy", "vision policy", (*draws, "--output", fresh, *seeded)))
    stages.run(Stage("sft", "sft", ("--model", fresh, "--train_data", rows, "--output_dir", sft, *seeded)))
    evaluate(stages, output, "sft", sft, seed)
    learn = ("--model", sft, *draws, "--output_dir", output / "pg", *seeded)
    stages.run(Stage("visual_pg", "visual-pg", learn))
    evaluate(stages, output, "pg", output / "pg" / "policy", seed)
    if config.offline:
        run_offline(stages, output, sft, seed)
    answers = ("--answers", output / "answers.jsonl", "--problems", output / "held_out.jsonl")
    value = ("--value_model", output / "oreo" / "value") if config.offline else ()
    stages.run(Stage("page", "vision page", (*answers, *value, "--output", output / "pictures.html")))


def run_offline(stages: OnceStages, output: Path, sft: Path, seed: int) -> None:
    """OREO on the imitator's own pictures, and pictures chosen by its value model."""
    samples, oreo, seeded = output / "samples.jsonl", output / "oreo", ("--seed", str(seed))
    asked = ("--model", sft, "--problems", output / "train.jsonl", "--output", samples, *seeded)
    stages.run(Stage("collect", "collect", asked))
    learn = ("--model", sft, "--train_data", samples, "--output_dir", oreo, *seeded)
    stages.run(Stage("oreo", "oreo", learn))
    evaluate(stages, output, "oreo", oreo / "policy", seed)
    for name, policy in (("sft", sft), ("pg", output / "pg" / "policy"), ("oreo", oreo / "policy")):
        asked = asked_of(output, name, policy, seed)
        by_value = Stage(
            f"eval_{name}_by_value", "eval run", (*asked, "--value_model", oreo / "value"), recipe="eval_by_value"
        )
        stages.run(by_value)


def evaluate(stages: OnceStages, output: Path, name: str, policy: Path, seed: int) -> None:
    """Greedy pictures and samples of one policy for the held-out prompts."""
    stages.run(Stage(f"eval_{name}", "eval run", asked_of(output, name, policy, seed), recipe="eval"))


def asked_of(output: Path, name: str, policy: Path, seed: int) -> tuple[str | Path, ...]:
    """The arguments of an evaluation on the held-out prompts."""
    problems = ("--problems", output / "held_out.jsonl", "--output", output / "answers.jsonl")
    return ("--model", policy, "--name", name, *problems, "--seed", str(seed))


if __name__ == "__main__":
    raise SystemExit(run_script(run, RunConfig, path=__file__, summary=(__doc__ or "").splitlines()[0]))
