"""The three insights of "From r to Q*" (arXiv 2404.12358 v2), measured on a finished run of the quickstart.

Run from the root of the repository:

    posttrain quickstart --seed 0 --output runs/quickstart
    python recipes/dpo/run_insights.py --run runs/quickstart --output runs/insights --seed 0

Every stage is a `posttrain` command with a config of this folder. It is printed before it runs; what it prints goes to
OUTPUT/logs. Results: answers.jsonl (searches); tuned/, untuned/ and own_pairs/metrics.jsonl (implicit rewards; the
last is the quickstart's own DPO); credit.json.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from posttrain.config import run_script
from posttrain.data.answers import as_trajectory
from posttrain.data.encode import encode_trajectory
from posttrain.data.problems import read_problems
from posttrain.data.remainders import DIVISOR, LABELS, TOP
from posttrain.data.sources import write_jsonl
from posttrain.evaluation.credit import AnswerCredits, Networks, TokenCredit, answer_credits
from posttrain.evaluation.statistics import wilson_interval
from posttrain.models.policy import load_policy
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import hash_data, write_run_card
from posttrain.schema import Problem
from posttrain.stages import Argument, Stage, Stages
from posttrain.training.metrics import METRICS, read_metrics

NEEDED = (
    "sft",
    "dpo",
    "samples.jsonl",
    "train_problems.jsonl",
    "test_problems.jsonl",
)  # of the quickstart's run folder
BETA = 0.5  # of recipes/quickstart/dpo.yaml; credits of one answer keep their order under another
TOKENS_PER_LINE = 3  # a solution's lines are label, total, line break
REWARDS = ("chosen", "rejected", "reference_samples", "reference_samples_stderr", "reference_samples_exact")
NUMBERS: dict[str, Callable[[TokenCredit], float]] = {
    "implicit advantage": lambda credit: credit.implicit,
    "log pi": lambda credit: credit.logp,
    "log pi_ref": lambda credit: credit.ref_logp,
}


@dataclass(frozen=True)
class InsightsConfig:
    """Which run to look at, and how closely."""

    run: Path = field(default=Path("runs/quickstart"), metadata={"help": "Run folder of the quickstart."})
    output: Path = field(default=Path("runs/insights"), metadata={"help": "Run folder; must be new or empty."})
    seed: int = field(default=0, metadata={"help": "Of fresh samples, the order of data, and corruptions."})
    n_problems: int = field(default=300, metadata={"help": "Held-out problems searched, and solutions corrupted."})


@dataclass(frozen=True, slots=True)
class Corrupted:
    """A careful solution with one bad line, from which the later lines go on without another error."""

    prompt: str
    completion: str
    places: dict[str, int]  # what may be blamed -> its place among the answer's tokens


def run_insights(config: InsightsConfig) -> None:
    """All three; prints each command and what came of it."""
    if config.output.exists() and any(config.output.iterdir()):
        raise FileExistsError(f"{config.output} is not empty: name another --output, or remove it")
    missing = [name for name in NEEDED if not (config.run / name).exists()]
    if missing:
        raise FileNotFoundError(f"{config.run} lacks {', '.join(missing)}: is it a finished run of the quickstart?")
    stages = Stages(config.output / "logs", recipes=Path("recipes/dpo"), is_smoke=False)
    data = hash_data(config.run / "samples.jsonl", config.run / "test_problems.jsonl")
    write_run_card(config.output, {name: str(value) for name, value in asdict(config).items()}, data)
    search(config, stages)
    falling_rewards(config, stages)
    credit(config, stages)


def search(config: InsightsConfig, stages: Stages) -> None:
    """Greedy, likelihood search and log-ratio search of the DPO policy, the last also held to likely tokens."""
    common: tuple[Argument, ...] = (
        *("--model", config.run / "dpo", "--reference", config.run / "sft"),
        *("--problems", config.run / "test_problems.jsonl", "--limit", str(config.n_problems)),
        *("--output", config.output / "answers.jsonl", "--seed", str(config.seed)),
    )
    stages.run(Stage("search", "eval run", (*common, "--name", "dpo"), recipe="insights_search"))
    likely = (*common, "--name", "dpo_likely")
    stages.run(Stage("search_likely", "eval run", likely, recipe="insights_search_likely"))


def falling_rewards(config: InsightsConfig, stages: Stages) -> None:
    """DPO on the same pairs from the imitator, and from the imitator tuned on the chosen answers of these pairs."""
    out, seed = config.output, ("--seed", str(config.seed))
    pairs = written_pairs(config.run)
    write_jsonl(out / "pairs.jsonl", pairs)
    write_jsonl(out / "chosen.jsonl", ({"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs))
    tuned = ("--model", config.run / "sft", "--train_data", out / "chosen.jsonl", "--output_dir", out / "tuned_start")
    stages.run(Stage("tune", "sft", (*tuned, *seed), recipe="insights_sft"))
    for name, start in (("tuned", out / "tuned_start"), ("untuned", config.run / "sft")):
        fresh = out / f"{name}_samples.jsonl"
        sampled = ("--model", start, "--problems", config.run / "test_problems.jsonl", "--output", fresh, *seed)
        stages.run(Stage(f"collect_{name}", "collect", sampled, recipe="insights_collect"))
        data = ("--train_data", out / "pairs.jsonl", "--track_reference_samples", fresh)
        dpo = ("--model", start, *data, "--output_dir", out / name, *seed)
        stages.run(Stage(f"dpo_{name}", "dpo", dpo, recipe="insights_dpo"))
        print(f"          reference {name}: {last_rewards(out / name / METRICS)}")
    (out / "own_pairs").mkdir()
    shutil.copy(config.run / "dpo" / METRICS, out / "own_pairs" / METRICS)


def credit(config: InsightsConfig, stages: Stages) -> None:
    """Where the bad tokens of a wrong solution stand among all tokens of it, by credit and by likelihood."""
    problems = read_problems(config.run / "test_problems.jsonl", limit=config.n_problems)
    found: dict[str, Any] = {}
    for kind, corrupt in (("slip", slip), ("hurry", hurry)):
        rng = random.Random(config.seed)
        made = [corrupt(problem, rng) for problem in problems]
        rows = config.output / f"{kind}.jsonl"
        write_jsonl(rows, ({"prompt": item.prompt, "completion": item.completion} for item in made))
        networks = ("--model", config.run / "dpo", "--reference", config.run / "sft")
        page = ("--html", config.output / f"{kind}.html")
        stages.run(Stage(f"credit_{kind}", "inspect credit", (rows, *networks, *page), recipe="insights_credit"))
        found[kind] = rank_all(made, credits_of(config, made))
        for name, ranks in found[kind]["ranks"].items():
            at = wilson_interval(ranks.count(0), len(ranks))
            print(f"          {kind}: lowest of {found[kind]['n_tokens']}: {name} in {at.estimate:.1%}")
    (config.output / "credit.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def written_pairs(run: Path) -> list[dict[str, str]]:
    """The careful solution of a training problem, preferred to the first wrong sample of the imitator.

    The imitator was taught hurried solutions: it seldom gives the chosen answers, and often the rejected ones.
    """
    solved = {
        problem.task_id: written(careful(all_totals(problem)))
        for problem in read_problems(run / "train_problems.jsonl", limit=None)
    }
    wrong: dict[str, dict[str, str]] = {}
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["reward"] == 0.0 and row["finish_reason"] == "stop" and row["task_id"] not in wrong:
            chosen = solved[row["task_id"]]
            wrong[row["task_id"]] = {"prompt": row["prompt"], "chosen": chosen, "rejected": row["completion"]}
    return list(wrong.values())


def all_totals(problem: Problem) -> list[int]:
    """The running total after each operation."""
    entry = json.loads(problem.entry or "{}")
    return list(accumulate(entry["operations"], initial=entry["start"]))[1:]


def written(lines: Sequence[tuple[str, int]]) -> str:
    """A solution with these labels and totals."""
    return " ".join((*(f"{label} {total} \n" for label, total in lines), f"#### {lines[-1][1] % DIVISOR}"))


def careful(totals: Sequence[int]) -> list[tuple[str, int]]:
    """One line for each operation."""
    return list(zip(LABELS, totals, strict=False))


def slip(problem: Problem, rng: random.Random) -> Corrupted:
    """A total of the careful solution is off, on a line drawn at random: an error that both networks know as one."""
    totals = all_totals(problem)
    line, off = draw_slip(totals, range(len(totals)), rng)
    lines = careful([total + (off if n >= line else 0) for n, total in enumerate(totals)])
    return Corrupted(problem.prompt, written(lines), {"wrong total": TOKENS_PER_LINE * line + 1})


def hurry(problem: Problem, rng: random.Random) -> Corrupted:
    """One line takes three operations and its total is off, as the imitator was taught: a choice, then its price."""
    totals = all_totals(problem)
    last, off = draw_slip(totals, range(2, len(totals)), rng)
    shown = careful([total + (off if n >= last else 0) for n, total in enumerate(totals)])
    first = TOKENS_PER_LINE * (last - 2)
    lines = [*shown[: last - 2], *shown[last:]]
    return Corrupted(problem.prompt, written(lines), {"label that skips": first, "wrong total": first + 1})


def draw_slip(totals: Sequence[int], lines: Sequence[int], rng: random.Random) -> tuple[int, int]:
    """One of the lines, and one to three too many or too few from there on, such that all totals stay in range."""
    slips = {
        line: [s for s in range(-3, 4) if s and min(totals[line:]) + s >= 0 and max(totals[line:]) + s <= TOP]
        for line in lines
    }
    line = rng.choice([line for line, possible in slips.items() if possible])
    return line, rng.choice(slips[line])


def credits_of(config: InsightsConfig, made: Sequence[Corrupted]) -> list[AnswerCredits]:
    """The credits of each solution under the DPO policy beside the model that it started from."""
    tokenizer = load_tokenizer(config.run / "dpo")
    policy, reference = (load_policy(config.run / name, dtype=torch.float32).eval() for name in ("dpo", "sft"))
    networks = Networks(policy, reference, value_model=None)
    rows = [
        as_trajectory(item.prompt, item.completion, where=f"corrupted:{n}", task_id=str(n), reward=0.0)
        for n, item in enumerate(made, start=1)
    ]
    return [
        answer_credits(
            encode_trajectory(row, tokenizer, 0, step_delimiters=()),
            networks,
            tokenizer,
            beta=BETA,
            where=row.where,
            is_rewarded=True,
        )
        for row in rows
    ]


def rank_all(made: Sequence[Corrupted], answers: Sequence[AnswerCredits]) -> dict[str, Any]:
    """For each bad token and each number, how many tokens of the answer lie below it: 0 where it is the lowest."""
    lengths = {len(answer.credits) for answer in answers}
    if len(lengths) > 1:
        raise ValueError(f"the solutions have {sorted(lengths)} tokens, needed one length: chance would differ")
    ranks = {
        f"{token}, {name}": [
            sum(number(credit) < number(answer.credits[item.places[token]]) for credit in answer.credits)
            for item, answer in zip(made, answers, strict=True)
        ]
        for token in made[0].places
        for name, number in NUMBERS.items()
    }
    return {"n_tokens": lengths.pop(), "ranks": ranks}


def last_rewards(metrics: Path) -> str:
    """The implicit rewards at the end of training, as text."""
    last = [row for row in read_metrics(metrics) if "rewards/chosen" in row][-1]
    return ", ".join(f"{name} {last[f'rewards/{name}']:+.3f}" for name in REWARDS)


if __name__ == "__main__":
    raise SystemExit(run_script(run_insights, InsightsConfig, path=__file__, summary=(__doc__ or "").splitlines()[0]))
