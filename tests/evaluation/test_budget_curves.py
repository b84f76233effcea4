"""Accuracy against compute: exact curves from samples, against numbers counted over all subsets."""

import pytest

from posttrain.evaluation.budget_curves import budget_points, exact_points
from posttrain.evaluation.comparison import summarise
from posttrain.evaluation.records import group_records
from posttrain.schema import AnswerRecord, FinishReason, Grade


def answer(task_id, method, budget, is_correct, value=None, n_tokens=10, finish_reason=FinishReason.STOP):
    grade = Grade.CORRECT if is_correct else Grade.WRONG
    return AnswerRecord(task_id, method, 0, budget, "", grade, finish_reason, n_tokens, value)


# Problem a: values 0.9 right, 0.5 wrong, 0.3 wrong, 0.1 right.  Problem b: never right.
SAMPLES = [
    *(answer("a", "oreo/sample", 1, c, v) for v, c in ((0.5, False), (0.9, True), (0.1, True), (0.3, False))),
    *(answer("b", "oreo/sample", 1, False, v) for v in (0.2, 0.4, 0.6, 0.8)),
]


def test_exact_points_average_over_problems_for_each_power_of_two():
    points = {(p.label, p.budget): p for p in exact_points(group_records(SAMPLES))}
    # a alone: pass@1 = 1/2, pass@2 = 1 - 1/6, pass@4 = 1; halved because b has none.
    assert [points["oreo/pass@n (exact)", n].accuracy.estimate for n in (1, 2, 4)] == pytest.approx(
        [1 / 4, 5 / 12, 1 / 2]
    )
    # a alone by value: 2 of 4; of the 6 pairs the 3 with the 0.9 win; all 4 hold the 0.9.
    best = [points["oreo/best_of_n (exact)", n].accuracy.estimate for n in (1, 2, 4)]
    assert best == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert [points["oreo/best_of_n (exact)", n].tokens for n in (1, 2, 4)] == [10, 20, 40]


def test_exact_best_of_n_takes_a_cut_answer_only_when_none_ended():
    pool = [
        answer("a", "oreo/sample", 1, False, 0.9, finish_reason=FinishReason.LENGTH),
        answer("a", "oreo/sample", 1, True, 0.1),
    ]
    best = {p.budget: p.accuracy.estimate for p in exact_points(group_records(pool)) if "best_of_n" in p.label}
    # One sample: either, 1/2.  Two: the one that ended, though its value is lower.
    assert best == {1: 0.5, 2: 1.0}


def test_exact_points_stop_at_the_problem_with_the_fewest_samples():
    points = exact_points(group_records(SAMPLES[:-1]))
    assert max(p.budget for p in points) == 2


def test_single_samples_give_no_exact_point():
    assert exact_points(group_records([SAMPLES[0], SAMPLES[4]])) == ()


def test_exact_points_have_no_best_of_n_when_a_sample_lacks_its_value():
    without = [*SAMPLES[:-1], answer("b", "oreo/sample", 1, False, None)]
    assert {p.label for p in exact_points(group_records(without))} == {"oreo/pass@n (exact)"}


@pytest.mark.parametrize(("budget", "is_kept"), [(4, False), (8, True)])
def test_a_measured_best_of_n_gives_way_to_an_exact_one_that_reaches_as_far(budget, is_kept):
    records = [*SAMPLES, *(answer(task, "oreo/best_of_n", budget, True, 0.9, 10 * budget) for task in "ab")]
    answers = group_records(records)
    labels = {p.label for p in budget_points([summarise(group) for group in answers.values()], answers)}
    assert ("oreo/best_of_n" in labels) == is_kept
    assert "oreo/best_of_n (exact)" in labels
    assert "oreo/sample" not in labels
