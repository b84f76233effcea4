"""What lm-eval's own gsm8k task says of 1,388 completions, recorded.

    POSTTRAIN_DATA=... python -m tests.rewards.lm_eval_verdicts

writes the record beside this file, in an environment with lm-eval 0.4.13 (it installs beside constraints.txt) and the
GSM8K test file. Completions are the end of gold solutions, spelled, broken and cut in ways that models do, and answers
of a small model from evals/.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("lm_eval_verdicts.jsonl.gz")
N_PERTURBED = 1000
RECORDED_ANSWERS = ("evals/smollm2/answers.jsonl", "evals/gsm8k_smollm2/answers.jsonl")
STRICT, FLEXIBLE = "strict-match", "flexible-extract"  # lm-eval's names

# How an answer n, whose working is w, is written; {m} is another number.
SPELLINGS = (
    "{w}\n#### {n}",
    "{w}\n#### {n}.",
    "{w}\n#### ${n}",
    "{w}\n#### {n}.00",
    "{w}\n####{n}",
    "{w}\n### {n}",
    "{w}\n#### {n} dollars",
    "{w}\n#### {n}%",
    "{w}\nThe answer is {n}.",
    "{w}\nThe answer is ${n}...",
    "{w} = {n}",
    "{w}\n#### {m}",
    "{w}\n#### {n}\n#### {m}",
    "{w}\n#### {m}\n#### {n}",
    "{w}\n#### {n}\n\nQuestion: {m} more?",
    "{w}\n#### -{n}",
    "{w}\n#### \u2212{n}",
    "{w}\n#### {n:,}",
    "{w}\n#### ,{n}",
    "{w}\n#### {n},",
    "{w}\n####  {n}",
    "{w}\n#### x = {n}",
    "**{n}**",
    "\\boxed{{{n}}}",
    "#### \uff11\uff18 or {n}",
    "#### ..",
    "####",
    "",
    "no number",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One completion, its gold solution, and lm-eval's score and extracted answer by both filters."""

    solution: str
    completion: str
    strict: bool
    strict_answer: str
    flexible: bool
    flexible_answer: str


def read_verdicts() -> list[Verdict]:
    with gzip.open(RECORD, "rt", encoding="utf-8") as file:
        return [Verdict(**json.loads(line)) for line in file]


def gold_solutions(path: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


def completions(solutions: list[str]) -> Iterator[tuple[str, str]]:
    """(gold solution, completion): perturbed gold solutions, then recorded answers."""
    for index in range(N_PERTURBED):
        solution = solutions[index % len(solutions)]
        working, _, number = solution.rpartition("\n#### ")
        n = int(number.replace(",", ""))
        spelling = SPELLINGS[index % len(SPELLINGS)]
        yield solution, spelling.format(w=working.splitlines()[-1], n=n, m=n + 1)
    for name in RECORDED_ANSWERS:
        for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["task_id"].startswith("gsm8k/test/"):
                yield solutions[int(row["task_id"].rpartition("/")[2]) - 1], row["text"]


def judge(pairs: list[tuple[str, str]]) -> list[Verdict]:
    """lm-eval's verdicts, by the filters and the metric that its own task file configures."""
    import yaml
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8")
    task: dict[str, Any] = yaml.safe_load(text)
    (metric,) = task["metric_list"]
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    answers: dict[str, list[str]] = {}
    for entry in task["filter_list"]:
        regex, take_first = entry["filter"]
        assert (regex.pop("function"), take_first["function"]) == ("regex", "take_first")
        extracted = RegexFilter(**regex).apply([[completion] for _, completion in pairs], [{}] * len(pairs))
        answers[entry["name"]] = [first for first, *_ in extracted]

    def is_match(answer: str, solution: str) -> bool:
        score = exact_match_hf_evaluate(predictions=[answer], references=[solution], **options)
        return bool(score["exact_match"] == 1.0)

    return [
        Verdict(solution, completion, is_match(s, solution), s, is_match(f, solution), f)
        for (solution, completion), s, f in zip(pairs, answers[STRICT], answers[FLEXIBLE], strict=True)
    ]


def main() -> None:
    from posttrain.data.problems import find_data

    verdicts = judge(list(completions(gold_solutions(Path(find_data("gsm8k/test.jsonl"))))))
    lines = "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)
    RECORD.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{len(verdicts)} verdicts, {RECORD.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
