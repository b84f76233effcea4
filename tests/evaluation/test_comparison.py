"""Method summaries and paired comparisons on records whose numbers can be counted by hand."""

from itertools import product

import pytest

from posttrain.evaluation.comparison import ComparisonError, compare, summarise
from posttrain.evaluation.statistics import mcnemar_p, seed_interval, wilson_interval
from posttrain.schema import AnswerRecord, FinishReason, Grade


def answers(method, grades, *, seed=0, budget=1, n_tokens=10):
    """One record per letter: c correct, w wrong, u unparsed and cut."""
    grade = {"c": Grade.CORRECT, "w": Grade.WRONG, "u": Grade.UNPARSED}
    return [
        AnswerRecord(
            task_id=f"p-{i}",
            method=method,
            seed=seed,
            budget=budget,
            text="",
            grade=grade[letter],
            finish_reason=FinishReason.LENGTH if letter == "u" else FinishReason.STOP,
            n_generated_tokens=n_tokens + i,
            value=None,
        )
        for i, letter in enumerate(grades)
    ]


def test_summary_counts_correct_unparsed_and_cut_answers_and_tokens():
    summary = summarise(answers("oreo/greedy", "ccwu"))
    assert summary.accuracy == wilson_interval(2, 4)
    assert (summary.n_problems, summary.n_answers, summary.n_unparsed, summary.n_cut) == (4, 4, 1, 1)
    assert summary.tokens_per_answer == 11.5
    assert summary.over_seeds is None


def test_summary_of_several_seeds_lists_each_and_gives_the_t_interval_over_them():
    records = answers("oreo/greedy", "ccww", seed=0) + answers("oreo/greedy", "cccw", seed=1)
    summary = summarise(records)
    assert summary.by_seed == ((0, 0.5), (1, 0.75))
    assert summary.over_seeds == seed_interval([0.5, 0.75])
    assert summary.accuracy.estimate == 5 / 8
    assert (summary.n_problems, summary.n_answers) == (4, 8)


def test_summary_of_several_seeds_treats_a_problem_as_one_cluster():
    # 25 solved and 25 failed problems, alike under three seeds: the interval is that of 50 answers, not of 150.
    grades = "c" * 25 + "w" * 25
    records = [r for seed in range(3) for r in answers("oreo/greedy", grades, seed=seed)]
    accuracy = summarise(records).accuracy
    one_seed = wilson_interval(25, 50)
    assert accuracy.high - accuracy.low == pytest.approx(one_seed.high - one_seed.low, abs=0.03)


def test_compare_counts_the_discordant_problems_and_subtracts():
    result = compare(answers("oreo/greedy", "cccccwwc"), answers("sft/greedy", "ccwwwwcw"))
    # Only a: problems 2, 3, 4, 7; only b: 6.  (4 - 1) / 8.
    only = result.by_seed[0]
    assert (only.n_only_a, only.n_only_b, only.difference) == (4, 1, 3 / 8)
    assert only.mcnemar_p == mcnemar_p(4, 1)
    assert result.difference.estimate == 3 / 8
    assert result.difference.low < 3 / 8 < result.difference.high
    assert result.over_seeds is None


def test_compare_is_antisymmetric_in_the_estimate_and_each_seed():
    a, b = answers("oreo/greedy", "ccwcw"), answers("sft/greedy", "cwwwc")
    there, back = compare(a, b), compare(b, a)
    assert there.difference.estimate == -back.difference.estimate
    assert (there.by_seed[0].n_only_a, there.by_seed[0].n_only_b) == (
        back.by_seed[0].n_only_b,
        back.by_seed[0].n_only_a,
    )


def test_pairing_narrows_the_interval_when_both_methods_solve_the_same_problems():
    # 100 problems, 50 hard for both; the methods differ on 4 of them, all in one direction.
    a = answers("oreo/greedy", "c" * 54 + "w" * 46)
    b = answers("sft/greedy", "c" * 50 + "w" * 50)
    paired = compare(a, b).difference
    unpaired_width = 2 * 1.96 * (0.54 * 0.46 / 100 + 0.5 * 0.5 / 100) ** 0.5  # 0.277
    assert paired.high - paired.low < unpaired_width / 3


def test_compare_lists_each_seeds_difference_and_the_interval_over_seeds():
    a = answers("oreo/greedy", "cccw", seed=3) + answers("oreo/greedy", "ccww", seed=1)
    b = answers("sft/greedy", "cwww", seed=1) + answers("sft/greedy", "cwww", seed=3)
    result = compare(a, b)
    assert [(s.seed, s.difference) for s in result.by_seed] == [(1, 0.25), (3, 0.5)]
    assert result.over_seeds == seed_interval([0.25, 0.5])
    assert result.difference.estimate == 3 / 8


def test_compare_names_the_problems_that_only_one_method_answered():
    with pytest.raises(ComparisonError) as error:
        compare(answers("oreo/beam", "cccccc", budget=8), answers("sft/greedy", "cw"))
    assert "sft/greedy (budget 1) lacks 4 problems that oreo/beam (budget 8) answered" in str(error.value)
    assert "'p-2' (seed 0), 'p-3' (seed 0), 'p-4' (seed 0) and 1 more" in str(error.value)


def test_compare_names_the_seeds_that_differ():
    with pytest.raises(ComparisonError, match=r"oreo/greedy \(budget 1\) has seeds \[0\], sft/greedy .* seeds \[2\]"):
        compare(answers("oreo/greedy", "c"), answers("sft/greedy", "c", seed=2))


def test_compare_refuses_samples_with_several_answers_per_problem():
    with pytest.raises(ComparisonError, match="answers 'p-0' twice under seed 0"):
        compare(answers("oreo/sample", "c") * 2, answers("sft/greedy", "c"))


def test_compare_refuses_a_mixture_of_budgets():
    mixed = answers("oreo/beam", "c", budget=4) + answers("oreo/beam", "c", budget=8)
    with pytest.raises(ComparisonError, match="expected the records of one method at one budget"):
        compare(mixed, answers("sft/greedy", "c"))


def test_the_paired_interval_holds_the_true_difference_for_a_method_compared_with_itself():
    for grades in map("".join, product("cw", repeat=3)):
        result = compare(answers("oreo/greedy", grades), answers("sft/greedy", grades))
        assert (result.difference.estimate, result.difference.low, result.difference.high) == (0, 0, 0)
