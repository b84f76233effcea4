"""`posttrain search` with a real policy and value model: its records against `eval run` and against its own trees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import group_records, read_records
from posttrain.evaluation.run import evaluate
from posttrain.evaluation.search_files import SearchConfig, compute_table, search
from posttrain.rewards.grade import final_answer
from posttrain.schema import AnswerRecord, FinishReason, Grade
from tests.evaluation.tiny_policy import STARTS, write_policy, write_problems, write_value_model

ALGORITHMS = ("greedy", "best_of_n:8", "majority:8", "weighted_majority:8", "beam:2x3", "dvts:2x3", "value_rerank:2x3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_value_model(folder / "value", write_policy(folder / "policy"))
    write_problems(folder / "problems.jsonl")
    return folder


def settings(folder: Path, output: Path, **changes) -> dict:
    own = {
        "problems": str(folder / "problems.jsonl"),
        "model": str(folder / "policy"),
        "value_model": str(folder / "value"),
        "output": str(output),
        "name": "tiny",
        "max_new_tokens": 10,
        "max_steps": 4,
        "seed": 5,
        "device": "cpu",
    }
    return own | changes


@pytest.fixture(scope="module")
def records(folder):
    output = folder / "found.jsonl"
    search(SearchConfig(**settings(folder, output, algorithm=ALGORITHMS, trees=True)))
    return group_records(read_records(output))


def test_every_problem_has_one_record_of_each_algorithm_with_its_answer_and_its_cost(records):
    keys = {("tiny/" + name.split(":")[0], n) for name, n in zip(ALGORITHMS, (1, 8, 8, 8, 6, 6, 2), strict=True)}
    assert set(records) == keys
    for (method, _), group in records.items():
        assert [record.task_id for record in group] == [f"sum/{i}" for i in range(len(STARTS))]
        for record in group:
            assert record.answer == final_answer(record.text)
            assert (record.n_value_calls == 0) == (method in ("tiny/greedy", "tiny/majority"))


def test_the_tree_of_a_record_holds_its_answer_and_all_tokens_that_it_paid_for(records):
    for group in records.values():
        for record in group:
            tree = json.loads(record.tree)
            nodes, path = tree["nodes"], []
            at = nodes[tree["answer"]]
            assert at["state"] == ("answer" if record.finish_reason is FinishReason.STOP else "cut")
            assert at["value"] == record.value
            while at["parent"] is not None:
                path.append(at)
                at = nodes[at["parent"]]
            assert " ".join(node["text"] for node in path[::-1]).split() == record.text.split()
            assert len(path) == record.n_steps
            paid = sum(len(node["token_ids"]) * node["n_merged"] for node in nodes)
            # A step that would make an answer too long is cut where the answer must end, and was paid for whole.
            is_cut = any(node["state"] == "cut" for node in nodes)
            assert record.n_generated_tokens == tree["n_generated_tokens"] >= paid
            assert is_cut or paid == record.n_generated_tokens
            assert record.n_value_calls == tree["n_value_calls"]


@pytest.fixture(scope="module")
def evaluated(folder):
    output = folder / "evaluated.jsonl"
    evaluate(EvalConfig(**settings(folder, output, decoding=("greedy", "sample:8"))))
    return group_records(read_records(output))


@pytest.mark.parametrize("m", [2, 4, 8])
def test_weighted_majority_is_the_first_sample_of_the_answer_with_the_largest_sum_of_values_above_0(evaluated, m):
    for record in evaluated["tiny/weighted_majority", m]:
        first = [sample for sample in evaluated["tiny/sample", 1] if sample.task_id == record.task_id][:m]
        weight = Counter()
        for sample in first:
            weight[final_answer(sample.text)] += max(sample.value, 0.0)
        weight[None] = 0.0  # what cannot be read has no vote
        expected = next(s for s in first if weight[final_answer(s.text)] == max(weight.values()))
        assert (record.text, record.value) == (expected.text, expected.value)
        assert record.n_generated_tokens == sum(sample.n_generated_tokens for sample in first)


def test_whole_answers_and_greedy_ones_are_those_of_eval_run(records, evaluated):
    for method, n in (("greedy", 1), ("majority", 8), ("weighted_majority", 8), ("best_of_n", 8)):
        one, other = evaluated[f"tiny/{method}", n], records[f"tiny/{method}", n]
        assert [(r.text, r.grade, r.finish_reason, r.n_generated_tokens) for r in one] == [
            (r.text, r.grade, r.finish_reason, r.n_generated_tokens) for r in other
        ]


def test_a_problems_answer_does_not_hang_on_the_problems_beside_it_nor_on_the_batch(folder, records, tmp_path):
    output = tmp_path / "found.jsonl"
    algorithms = ("best_of_n:8", "beam:2x3", "dvts:2x3")
    config = settings(folder, output, algorithm=algorithms, problems_per_chunk=1, batch_size=5)
    search(SearchConfig(**config, cached_value_tokens=512))  # nor on whether the value model remembers what it read
    for key, group in group_records(read_records(output)).items():
        assert [record.text for record in group] == [record.text for record in records[key]]


def test_a_search_that_was_torn_goes_on_and_ends_with_the_same_records(folder, records, tmp_path):
    output = tmp_path / "found.jsonl"
    config = SearchConfig(**settings(folder, output, algorithm=("beam:2x3",), trees=True, problems_per_chunk=2))
    search(config)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # inside the second chunk, and inside a line
    search(config)
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert [r.text for r in read_records(output)] == [r.text for r in records["tiny/beam", 6]]


def test_rows_without_an_answer_are_searched_and_not_graded(folder, records, tmp_path, capsys):
    open_problems, output = tmp_path / "open.jsonl", tmp_path / "found.jsonl"
    rows = [{"prompt": f"{STARTS[0]} \n"}, {"question": STARTS[1] + " "}]
    open_problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["search", str(open_problems), "--model", str(folder / "policy"), "--value_model", str(folder / "value")]
    words += [
        "--algorithm",
        "beam:2x3",
        "majority:8",
        "--output",
        str(output),
        "--max_new_tokens",
        "10",
        "--seed",
        "5",
    ]
    assert main([*words, "--max_steps", "4", "--template", "bare", "--name", "tiny", "--device", "cpu"]) == 0
    found = group_records(read_records(output))
    for key in (("tiny/beam", 6), ("tiny/majority", 8)):
        assert {record.grade for record in found[key]} == {Grade.UNGRADED}
        assert [record.task_id for record in found[key]] == ["open/1", "open/2"]
        # The same prompts at the same places as the first two problems that have answers.
        assert [record.text for record in found[key]] == [record.text for record in records[key][:2]]
        assert [record.answer for record in found[key]] == [record.answer for record in records[key][:2]]
    shown = capsys.readouterr().out
    assert "| majority, n = 8 | 2 | – |" in shown
    assert "0.0%" not in shown
    assert main(["eval", "run", str(open_problems), "--model", str(folder / "policy"), "--device", "cpu"]) == 2


def test_many_answers_to_one_problem_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="sample:4 draws many answers, a search gives one"):
        search(SearchConfig(**settings(folder, tmp_path / "x.jsonl", algorithm=("sample:4",))))


def test_the_table_has_one_row_per_algorithm_with_means_per_problem_cheapest_first():
    def record(task, method, budget, grade, tokens, calls, reason=FinishReason.STOP):
        return AnswerRecord(
            task, f"p/{method}", 0, budget, "", grade, reason, tokens, None, n_value_calls=calls, n_steps=tokens // 2
        )

    table = compute_table(
        [
            record("a", "beam", 4, Grade.CORRECT, 40, 12),
            record("b", "beam", 4, Grade.WRONG, 60, 16, FinishReason.LENGTH),
            record("a", "greedy", 1, Grade.UNGRADED, 8, 0),
            record("b", "greedy", 1, Grade.UNGRADED, 9, 0),
        ]
    )
    # Wilson's interval of 1 of 2 is 9.5 to 90.5 %.
    assert table.rows == (
        ("greedy, n = 1", "2", "–", "8.5", "0.0", "4.0", "0.0"),
        ("beam, n = 4", "2", "50.0 [9.5, 90.5]", "50.0", "14.0", "25.0", "50.0"),
    )
