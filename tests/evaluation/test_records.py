"""Results files: what is written is read back, and what is wrong is named by its line."""

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest

from posttrain.evaluation.records import (
    ANSWERS,
    RecordError,
    answers_file,
    append_records,
    format_record,
    load_run_records,
    parse_record,
    read_records,
    record_key,
    split_method,
    write_packed_records,
)
from posttrain.schema import AnswerRecord, FinishReason, Grade

RECORD = AnswerRecord(
    task_id="p-1",
    method="oreo/greedy",
    seed=0,
    budget=1,
    text="1 + 2 = 3\n#### 3 \u2028",
    grade=Grade.CORRECT,
    finish_reason=FinishReason.STOP,
    n_generated_tokens=9,
    value=0.75,
)


def line_with(**changes):
    return json.dumps(asdict(RECORD) | changes)


def test_records_come_back_equal_from_a_file_written_in_two_goes(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    second = replace(RECORD, task_id="p-2", grade=Grade.UNPARSED, finish_reason=FinishReason.LENGTH, value=None)
    append_records(path, [RECORD])
    append_records(path, [second])
    assert read_records(path) == (RECORD, second)


def test_a_packed_file_gives_the_records_and_is_the_same_bytes_each_time(tmp_path):
    records = (RECORD, replace(RECORD, task_id="p-2"))
    paths = [tmp_path / name / f"{ANSWERS}.gz" for name in ("one", "two")]
    for path in paths:
        write_packed_records(path, records)
    assert read_records(paths[0]) == records
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[:2] == b"\x1f\x8b"  # gzip's mark


def test_a_folder_is_read_from_its_packed_answers_where_there_are_no_plain_ones(tmp_path):
    assert answers_file(tmp_path) == tmp_path / ANSWERS  # for a message that names what is absent
    write_packed_records(tmp_path / f"{ANSWERS}.gz", [RECORD])
    assert load_run_records([tmp_path]) == {("oreo/greedy", 1): (RECORD,)}
    append_records(tmp_path / ANSWERS, [replace(RECORD, task_id="p-2")])
    assert [record.task_id for record in load_run_records([tmp_path])["oreo/greedy", 1]] == ["p-2"]


def test_every_schema_field_is_on_the_line_and_those_that_are_empty_by_default_only_where_they_say_something():
    names = [field.name for field in fields(AnswerRecord)]
    assert list(json.loads(format_record(RECORD))) == names[:-7]
    full = replace(RECORD, key="k/greedy:1/0", grades=(("boxed", Grade.WRONG),), tags=(("level", "5"),))
    full = replace(full, n_value_calls=7, answer="12", n_steps=3, tree='{"nodes": []}')
    line = json.loads(format_record(full))
    assert list(line) == names
    assert (line["grades"], line["tags"]) == ({"boxed": "wrong"}, {"level": "5"})
    assert parse_record(json.dumps(line), where="here") == full


def test_append_cuts_off_the_half_line_of_an_interrupted_write(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_records(path, [RECORD])
    with path.open("a") as file:
        file.write(format_record(replace(RECORD, task_id="p-2"))[:40])
    with pytest.raises(RecordError, match=r"answers.jsonl:2: not JSON.*was the writer interrupted\?"):
        read_records(path)
    append_records(path, [replace(RECORD, task_id="p-3")])
    assert [record.task_id for record in read_records(path)] == ["p-1", "p-3"]


APPEND = """
import sys
from dataclasses import replace
from pathlib import Path
from posttrain.evaluation.records import append_records, read_records
from tests.evaluation.test_records import RECORD
path, name = Path(sys.argv[1]), sys.argv[2]
for i in range(25):
    append_records(path, [replace(RECORD, task_id=f"{name}-{i}-{j}", text="x" * 5_000) for j in range(3)])
    read_records(path)
"""


def test_no_record_is_lost_or_torn_when_three_processes_append_to_one_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    ids = [record.task_id for record in read_records(path)]
    assert sorted(ids) == sorted(f"{name}-{i}-{j}" for name in "abc" for i in range(25) for j in range(3))
    for name in "abc":  # each writer's records stand in its own order, three by three
        own = [task_id for task_id in ids if task_id.startswith(name)]
        assert own == [f"{name}-{i}-{j}" for i in range(25) for j in range(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade": "right"}, 'answers.jsonl:4: grade: got "right", expected one of correct, wrong, unparsed'),
        ({"budget": 0}, "budget: got 0, expected an integer, 1 or more"),
        ({"budget": True}, "budget: got true, expected an integer, 1 or more"),
        ({"seed": 1.0}, "seed: got 1.0, expected an integer, 0 or more"),
        ({"value": float("nan")}, "value: got NaN, expected a finite number or null"),
        ({"method": "oreo"}, 'method: got "oreo", expected <policy>/<decoding>'),
        ({"finish_reason": None}, "finish_reason: got null, expected one of stop, length"),
        ({"task_id": ""}, 'task_id: got "", expected a string that is not empty'),
        ({"n_tokens": 3}, "unknown key 'n_tokens'; did you mean 'n_generated_tokens'?"),
    ],
)
def test_a_bad_field_is_named_with_file_line_what_came_and_what_was_expected(changes, message):
    with pytest.raises(RecordError) as error:
        parse_record(line_with(**changes), where="answers.jsonl:4")
    assert message in str(error.value)
    assert str(error.value).startswith("answers.jsonl:4: ")


def test_missing_keys_are_all_named():
    row = asdict(RECORD)
    del row["text"], row["seed"]
    with pytest.raises(RecordError, match="a:1: seed, text: missing"):
        parse_record(json.dumps(row), where="a:1")


def test_bad_lines_are_reported_together_and_counted_beyond_twenty(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("[]\n" * 23)
    with pytest.raises(RecordError) as error:
        read_records(path)
    lines = str(error.value).splitlines()
    assert lines[0] == "answers.jsonl:1: expected a JSON object, got list"
    assert lines[19].startswith("answers.jsonl:20:")
    assert lines[20:] == ["... and 3 more"]


def test_a_second_answer_to_a_task_is_refused_but_samples_may_repeat(tmp_path):
    path = tmp_path / "answers.jsonl"
    sample = replace(RECORD, method="oreo/sample")
    append_records(path, [RECORD, sample, sample])
    assert len(read_records(path)) == 3
    append_records(path, [RECORD])
    with pytest.raises(RecordError, match=r"answers.jsonl:4: 'oreo/greedy' answered task 'p-1' before .*line 1"):
        read_records(path)


def test_run_records_of_two_seed_folders_are_grouped_by_method_and_budget(tmp_path):
    beam = replace(RECORD, method="oreo/beam", budget=8)
    append_records(tmp_path / "seed-0" / "answers.jsonl", [RECORD, beam])
    append_records(tmp_path / "seed-1" / "answers.jsonl", [replace(RECORD, seed=1)])
    groups = load_run_records([tmp_path / "seed-0", tmp_path / "seed-1"])
    assert {key: [r.seed for r in group] for key, group in groups.items()} == {
        ("oreo/beam", 8): [0],
        ("oreo/greedy", 1): [0, 1],
    }


def test_run_records_refuse_one_seed_in_two_folders(tmp_path):
    append_records(tmp_path / "seed-0" / "answers.jsonl", [RECORD])
    append_records(tmp_path / "seed-1" / "answers.jsonl", [RECORD])
    with pytest.raises(RecordError, match="seed-1 and seed-0 both answer 'p-1' with 'oreo/greedy', seed 0"):
        load_run_records([tmp_path / "seed-0", tmp_path / "seed-1"])


def test_method_names_split_at_the_last_slash():
    assert split_method("oreo/step/best_of_n") == ("oreo/step", "best_of_n")
    with pytest.raises(ValueError, match="expected <policy>/<decoding>"):
        split_method("greedy")


def test_record_key_tells_methods_seeds_budgets_and_tasks_apart():
    others = [
        replace(RECORD, **{name: "o/x" if name in ("task_id", "method") else 5})
        for name in ("task_id", "method", "seed", "budget")
    ]
    assert len({record_key(r) for r in [RECORD, replace(RECORD, text="other"), *others]}) == 5
