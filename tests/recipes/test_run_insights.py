"""The recipe of the three insights: its corrupted solutions, its pairs, its ranks, and the tables made of them."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from posttrain.data.remainders import LABELS, N_OPERATIONS, TOP, chain_sums, graded_problems
from posttrain.data.rows import problem_to_json
from posttrain.evaluation.credit import AnswerCredits, TokenCredit
from posttrain.evaluation.records import append_records
from posttrain.schema import AnswerRecord, FinishReason, Grade, Problem

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def module_at(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


recipe = module_at("recipes/dpo/run_insights.py")
record = module_at("evals/record_insights.py")


def problem(start: int, *operations: int) -> Problem:
    entry = json.dumps({"start": start, "operations": operations})
    return Problem("made:1", "made/1", "made \n", "0", "final_number", entry)


def lines_of(completion: str) -> list[tuple[str, int]]:
    """Label and total of each line."""
    return [(label, int(total)) for label, total in (line.split() for line in completion.split("\n")[:-1])]


def broken_lines(item: Problem, completion: str) -> list[int]:
    """The lines whose total does not follow from the line before and the operations up to their label."""
    entry = json.loads(item.entry or "")
    so_far, done, broken = entry["start"], 0, []
    for n, (label, total) in enumerate(lines_of(completion)):
        upto = LABELS.index(label) + 1
        if total != so_far + sum(entry["operations"][done:upto]):
            broken.append(n)
        so_far, done = total, upto
    return broken


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    pytest.importorskip("reasoning_gym")
    return graded_problems(chain_sums(100, n_operations=N_OPERATIONS, seed=5), split="made")


def test_a_slip_breaks_one_line_of_a_careful_solution_and_the_others_go_on_from_it(problems):
    rng = random.Random(0)
    lines_hit = set()
    for item in problems:
        made = recipe.slip(item, rng)
        assert [label for label, _ in lines_of(made.completion)] == list(LABELS[:N_OPERATIONS])
        [wrong] = broken_lines(item, made.completion)
        assert made.places == {"wrong total": 3 * wrong + 1}
        tokens = made.completion.split(" ")
        assert tokens[made.places["wrong total"]] == str(lines_of(made.completion)[wrong][1])
        assert tokens[-2:] == ["####", str(lines_of(made.completion)[-1][1] % 4)]
        assert all(0 <= total <= TOP for _, total in lines_of(made.completion))
        lines_hit.add(wrong)
    assert lines_hit == set(range(N_OPERATIONS))


def test_a_hurried_line_skips_two_labels_and_is_the_only_wrong_one(problems):
    rng = random.Random(0)
    skipped = set()
    for item in problems:
        made = recipe.hurry(item, rng)
        lines = lines_of(made.completion)
        [wrong] = broken_lines(item, made.completion)
        labels = [label for label, _ in lines]
        assert labels == [x for x in LABELS[:N_OPERATIONS] if x not in LABELS[wrong : wrong + 2]]
        assert made.places == {"label that skips": 3 * wrong, "wrong total": 3 * wrong + 1}
        assert made.completion.split(" ")[3 * wrong] == LABELS[wrong + 2]
        assert all(0 <= total <= TOP for _, total in lines)
        skipped.add(wrong)
    assert skipped == set(range(N_OPERATIONS - 2))


def test_a_slip_is_made_only_where_all_later_totals_stay_in_range():
    # Totals 0, 20: no slip at line 0 keeps both in range, and line 1 can only be too small.
    made = {recipe.slip(problem(5, -5, 20), random.Random(seed)).completion for seed in range(30)}
    assert made == {f"a 0 \n b {total} \n #### {total % 4}" for total in (17, 18, 19)}


def test_a_written_pair_prefers_the_careful_solution_to_the_first_wrong_sample(tmp_path):
    problems = [
        Problem("p:1", "p/1", "3 a +4 b -1 \n", "2", "final_number", json.dumps({"start": 3, "operations": [4, -1]})),
        Problem("p:2", "p/2", "1 a +1 b +1 \n", "3", "final_number", json.dumps({"start": 1, "operations": [1, 1]})),
    ]
    (tmp_path / "train_problems.jsonl").write_text("".join(json.dumps(problem_to_json(p)) + "\n" for p in problems))

    def sample(task: str, completion: str, reward: float, reason: str = "stop") -> dict:
        prompt = next(p.prompt for p in problems if p.task_id == task)
        return {"task_id": task, "prompt": prompt, "completion": completion, "reward": reward, "finish_reason": reason}

    rows = [
        sample("p/1", "b 6 \n #### 2", 1.0),
        sample("p/1", "b 5", 0.0, "length"),  # a cut answer is no answer
        sample("p/1", "b 5 \n #### 1", 0.0),
        sample("p/1", "b 7 \n #### 3", 0.0),
        sample("p/2", "b 3 \n #### 3", 1.0),  # never wrong: no pair
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recipe.written_pairs(tmp_path) == [
        {"prompt": "3 a +4 b -1 \n", "chosen": "a 7 \n b 6 \n #### 2", "rejected": "b 5 \n #### 1"}
    ]


def test_a_rank_counts_the_tokens_below_the_corrupted_one():
    def answer(*implicit: float) -> AnswerCredits:
        credits = tuple(TokenCredit(n, -x, 0.0, x, None, None) for n, x in enumerate(implicit))
        return AnswerCredits("made", ("t",) * len(implicit), credits, 0.3, sum(implicit), 0.0)

    made = [recipe.Corrupted("", "", {"slip": place}) for place in (1, 2)]
    found = recipe.rank_all(made, [answer(0.3, -0.5, 0.1), answer(0.3, -0.5, 0.1)])
    assert found["n_tokens"] == 3
    # log pi is the negative here, so that its order is the reverse; all of log pi_ref tie, and none lies below.
    expected = {"slip, implicit advantage": [0, 1], "slip, log pi": [2, 1], "slip, log pi_ref": [0, 0]}
    assert found["ranks"] == expected
    with pytest.raises(ValueError, match=r"the solutions have \[2, 3\] tokens, needed one length"):
        recipe.rank_all(made, [answer(0.3, -0.5, 0.1), answer(0.3, -0.5)])


def write_kept(folder: Path, *, seed: int, chosen: float, n_lowest: int) -> None:
    """What one recorded seed holds."""
    answers = [
        AnswerRecord(f"t{n}", f"dpo/{how}", seed, budget, "#### 1", grade, FinishReason.STOP, 5, None)
        for how, budget, grade in (("greedy", 1, Grade.CORRECT), ("log_ratio", 5, Grade.WRONG))
        for n in range(4)
    ]
    append_records(folder / "answers.jsonl", answers)
    rewards = {f"rewards/{name}": chosen for name in record.REWARDS}
    for name in record.TRAININGS:
        own = {"rewards/chosen": chosen, "rewards/rejected": -1.0} if name == "own_pairs" else rewards
        lines = [{"step": 10, "rewards/chosen": 9.0, "rewards/rejected": 9.0}, {"step": 20, **own}]
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ranks = {"wrong total, implicit advantage": [0] * n_lowest + [3] * (10 - n_lowest)}
    (folder / "credit.json").write_text(json.dumps({"slip": {"n_tokens": 20, "ranks": ranks}}))


def test_tables_hold_the_recorded_numbers_by_seed_with_their_interval(tmp_path):
    for seed, (chosen, n_lowest) in enumerate(((-0.2, 8), (-0.4, 9), (-0.6, 10))):
        write_kept(tmp_path / f"seed-{seed}", seed=seed, chosen=chosen, n_lowest=n_lowest)
    tables = record.insights_tables(tmp_path)
    # Student's t with 2 degrees of freedom: 4.303. Mean -0.4, deviation 0.2: half width 4.303 * 0.2 / sqrt(3) = 0.497.
    shown = "-0.200 | -0.400 | -0.600 | -0.400 [-0.897, 0.097]"
    assert f"| written pairs, reference tuned on the chosen: chosen answers | {shown} |" in tables
    assert f"| own pairs, reference not tuned: chosen answers | {shown} |" in tables
    assert "own pairs, reference not tuned: fresh samples" not in tables
    # Wilson at 8 of 10: 49.0 to 94.3 %. Rates 80, 90, 100: half width 4.303 * 10 / sqrt(3) = 24.8.
    assert "| slip: wrong total, implicit advantage | 80.0 [49.0, 94.3] |" in tables
    assert "| 90.0 [65.2, 114.8] |" in tables
    assert "| slip: chance | 5.0 | 5.0 | 5.0 | 5.0 |" in tables
    assert "| dpo/log_ratio | 5 | 4 | 3 | 0.0 [" in tables


def test_a_folder_that_is_no_finished_run_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "sft").mkdir()
    config = recipe.InsightsConfig(run=tmp_path, output=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"lacks dpo, samples\.jsonl, train_problems\.jsonl, test_problems"):
        recipe.run_insights(config)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.jsonl").write_text("")
    with pytest.raises(FileExistsError, match="is not empty: name another --output"):
        recipe.run_insights(config)
