"""Tables for README files and for the page."""

import pytest

from posttrain.evaluation.records import group_records
from posttrain.evaluation.tables import Table, comparison_table, markdown_table, over_seeds, paired_comparisons
from posttrain.schema import AnswerRecord, FinishReason, Grade


def answers(method, letters, *, seed=0, budget=1):
    return [
        AnswerRecord(
            task_id=f"p-{i}",
            method=method,
            seed=seed,
            budget=budget,
            text="",
            grade={"c": Grade.CORRECT, "w": Grade.WRONG, "t": Grade.TIMEOUT}[letter],
            finish_reason=FinishReason.STOP,
            n_generated_tokens=10 * budget,
            value=None,
        )
        for i, letter in enumerate(letters)
    ]


def test_markdown_table_starts_with_the_start_and_gives_intervals_and_differences():
    records = answers("oreo/beam", "cccc", budget=4) + answers("oreo/greedy", "cccc") + answers("sft/greedy", "cccc")
    # Wilson for 4 of 4: low = 1 / (1 + 1.96^2 / 4) = 0.510; equal answers differ by exactly 0.
    assert markdown_table(records).splitlines() == [
        "| method | samples | problems | seeds | accuracy %, 95 % interval | tokens per answer "
        "| points over sft/greedy | unparsed % | cut % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| sft/greedy | 1 | 4 | 1 | 100.0 [51.0, 100.0] | 10.0 | – | 0.0 | 0.0 |",
        "| oreo/greedy | 1 | 4 | 1 | 100.0 [51.0, 100.0] | 10.0 | 0.0, the same problems solved | 0.0 | 0.0 |",
        "| oreo/beam | 4 | 4 | 1 | 100.0 [51.0, 100.0] | 40.0 | 0.0, the same problems solved | 0.0 | 0.0 |",
    ]


def test_markdown_table_with_timeouts_has_a_column_for_them():
    header, _, row = markdown_table(answers("sft/greedy", "cwwt")).splitlines()
    assert header.endswith("| unparsed % | timeout % | cut % |")
    assert row.endswith("| 0.0 | 25.0 | 0.0 |")


def test_markdown_table_of_two_seeds_has_the_interval_over_seeds():
    records = answers("sft/greedy", "cw", seed=0) + answers("sft/greedy", "cw", seed=1)
    header, _, row = markdown_table(records).splitlines()
    assert "interval over seeds (t)" in header
    assert "| 2 | 50.0 [" in row
    assert "| [50.0, 50.0] |" in row


def test_paired_comparisons_hold_greedy_pairs_searches_against_greedy_and_searches_at_their_largest_shared_budget():
    records = [record for policy in ("sft", "oreo", "dpo") for record in answers(f"{policy}/greedy", "cwc")]
    for decoding, budgets in (("beam", (4, 8)), ("best_of_n", (2, 4, 8, 16)), ("sample", (1,))):
        records += [record for budget in budgets for record in answers(f"oreo/{decoding}", "ccw", budget=budget)]
    comparisons, problems = paired_comparisons(group_records(records))
    assert problems == ()
    assert [(c.a, c.b) for c in comparisons] == [
        (("oreo/greedy", 1), ("dpo/greedy", 1)),
        (("oreo/greedy", 1), ("sft/greedy", 1)),
        (("dpo/greedy", 1), ("sft/greedy", 1)),
        (("oreo/beam", 8), ("oreo/greedy", 1)),
        (("oreo/best_of_n", 16), ("oreo/greedy", 1)),
        (("oreo/beam", 8), ("oreo/best_of_n", 8)),
    ]


def test_comparisons_that_cannot_be_made_are_told_and_the_others_stay():
    records = answers("sft/greedy", "cw") + answers("dpo/greedy", "cw") + answers("oreo/greedy", "c")
    comparisons, problems = paired_comparisons(group_records(records))
    assert [(c.a[0], c.b[0]) for c in comparisons] == [("dpo/greedy", "sft/greedy")]
    assert len(problems) == 2
    assert "oreo/greedy (budget 1) lacks 1 problems that dpo/greedy (budget 1) answered: 'p-1' (seed 0)" in problems[0]


def test_comparison_table_lists_each_seed():
    records = [
        *answers("oreo/greedy", "ccc", seed=0),
        *answers("oreo/greedy", "cww", seed=1),
        *answers("sft/greedy", "cww", seed=0),
        *answers("sft/greedy", "wwc", seed=1),
    ]
    comparisons, _ = paired_comparisons(group_records(records))
    row = comparison_table(comparisons).rows[0]
    # Seed 0: two more solved, 2 * (1/2)^2 = 0.5.  Seed 1: one each way, p = 1.
    assert row[0] == "oreo/greedy against sft/greedy"
    assert row[4:] == ("+66.7; +0.0", "2 : 0; 1 : 1", "0.50; 1.00")


def test_methods_that_solve_the_same_problems_are_told_in_words_and_one_difference_brings_the_interval_back():
    records = [
        answer
        for method in ("oreo/greedy", "sft/greedy")
        for seed in (0, 1)
        for answer in answers(method, "cwc", seed=seed)
    ]
    [same], _ = paired_comparisons(group_records(records))
    [row] = comparison_table([same]).rows
    assert row[2:] == ("0.0, the same problems solved", "–", "+0.0; +0.0", "0 : 0; 0 : 0", "1.00; 1.00")
    # One problem each way: the difference is 0 again, but another draw of problems may give -1/3 or +1/3 and more.
    records = answers("oreo/greedy", "cwc") + answers("sft/greedy", "wcc")
    [traded], _ = paired_comparisons(group_records(records))
    assert comparison_table([traded]).rows[0][2].startswith("+0.0 [-")


def test_html_tables_escape_their_text_and_break_only_between_seeds():
    html = Table(("name", "x"), (("<b>", "1.0 [0.5, 2.0]; <0.1"),)).to_html("a & b")
    assert '<th scope="row">&lt;b&gt;</th><td>1.0&nbsp;[0.5,&nbsp;2.0]; &lt;0.1</td>' in html
    assert "<caption>a &amp; b</caption>" in html


@pytest.mark.parametrize("letters", ["", "c"])
def test_markdown_table_leaves_differences_out_when_the_start_was_not_run(letters):
    lines = markdown_table(answers("oreo/greedy", letters)).splitlines()
    assert [line.split("|")[7].strip() for line in lines[2:]] == ["–"] * len(letters)


def test_cell_of_numbers_by_seed_has_students_interval_cut_at_what_cannot_be_passed():
    half = 4.302652729911275 / 3**0.5  # 97.5 % quantile of t with 2 degrees of freedom; the deviation of 1, 2, 3 is 1
    assert over_seeds([1000.0, 2000.0, 3000.0], 0) == f"2,000 [{2000 - 1000 * half:,.0f}, {2000 + 1000 * half:,.0f}]"
    assert over_seeds([1.0, 2.0, 3.0], 2) == "2.00 [-0.48, 4.48]"
    assert over_seeds([1.0, 2.0, 3.0], 2, lowest=0) == "2.00 [0.00, 4.48]"
    assert (over_seeds([1.5], 1), over_seeds([], 1)) == ("1.5", "–")
