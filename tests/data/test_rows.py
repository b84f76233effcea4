"""Parsing of rows: what is accepted, and the exact message of what is not."""

from __future__ import annotations

import pytest

from posttrain.data.rows import (
    RowError,
    parse_completion,
    parse_preference,
    parse_problem,
    parse_trajectory,
    problem_to_json,
    trajectory_to_json,
)
from posttrain.schema import FinishReason, Message, StepReward

TEXT = {"task_id": "t", "prompt": "1+1=", "completion": "2", "reward": 1, "finish_reason": "stop"}
RECORDED = {
    "task_id": "t",
    "prompt": "1+1=",
    "input_ids": [1, 5, 6, 7, 8],
    "action_spans": [[2, 3], [4, 5]],
    "step_rewards": [{"start": 2, "end": 4, "reward": 0.25}, {"start": 4, "end": 5, "reward": -1}],
    "finish_reason": "length",
    "behavior_logp": [-0.5, 0],
    "ref_logp": [-0.25, -1.5],
}
EPISODE = {
    "task_id": "t",
    "messages": [{"role": "user", "content": "look"}, {"role": "assistant", "content": "go"}],
    "reward": 0.0,
    "finish_reason": "stop",
}


def faults(parse, obj) -> tuple[str, ...]:
    with pytest.raises(RowError) as error:
        parse(obj, "f.jsonl:7")
    return error.value.faults


def changed(base: dict, **columns: object) -> dict:
    return {**base, **columns}


def test_recorded_row_is_parsed_field_by_field():
    row = parse_trajectory(RECORDED, "f.jsonl:7")
    assert row.input_ids == (1, 5, 6, 7, 8)
    assert row.action_spans == ((2, 3), (4, 5))
    assert row.reward is None
    assert row.step_rewards == (StepReward(2, 4, 0.25), StepReward(4, 5, -1.0))
    assert row.finish_reason is FinishReason.LENGTH
    assert row.behavior_logp == (-0.5, 0.0)
    assert row.where == "f.jsonl:7"


def test_messages_are_the_prompt_of_an_episode():
    row = parse_trajectory(EPISODE, "f.jsonl:7")
    assert row.prompt == (Message("user", "look"), Message("assistant", "go"))
    assert row.completion is None


def test_null_columns_count_as_absent():
    row = parse_trajectory(changed(TEXT, input_ids=None, step_rewards=None), "f.jsonl:7")
    assert row == parse_trajectory(TEXT, "f.jsonl:7")


@pytest.mark.parametrize("obj", [TEXT, RECORDED, EPISODE], ids=["text", "recorded", "episode"])
def test_trajectory_survives_writing_and_reading(obj):
    row = parse_trajectory(obj, "f.jsonl:7")
    assert parse_trajectory(trajectory_to_json(row), "f.jsonl:7") == row


def test_all_faults_of_a_row_are_told_at_once():
    obj = {"task_id": 3, "prompt": "q", "completion": "a", "reward": "high", "finish_reason": "eos", "rewrd": 1}
    assert faults(parse_trajectory, obj) == (
        "f.jsonl:7: rewrd: unknown column; did you mean 'reward'?",
        "f.jsonl:7: task_id: got 3 (an integer), expected text that is the same for all answers to one problem",
        "f.jsonl:7: reward: got 'high' (text), expected a finite number",
        "f.jsonl:7: finish_reason: got 'eos' (text), "
        'expected "stop" (the policy ended the answer) or "length" (the token budget cut it)',
    )


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"reward": True}, "reward: got True (a boolean), expected a finite number"),
        ({"reward": float("nan")}, "reward: got nan (a number), expected a finite number"),
        (
            {"reward": 10**400},
            "reward: got 100000000000000000...0000000000000000000 (an integer), expected a finite",
        ),
        ({"prompt": "\ud800"}, "prompt: holds half of a surrogate pair"),
        ({"prompt": []}, "prompt: got an empty list, expected at least one {role, content}"),
        (
            {"prompt": [{"role": "bot", "content": ""}]},
            "prompt[0].role: got 'bot' (text), expected one of system, user",
        ),
        ({"prompt": [{"role": "user", "content": 1}]}, "prompt[0].content: got 1 (an integer), expected text"),
        ({"completion": None}, "completion: is missing, expected text (or input_ids with action_spans, or messages)"),
        ({"input_ids": [1, 2]}, "action_spans: is missing, expected it because input_ids is there"),
        ({"step_rewards": [{"start": 0, "end": 1, "reward": 1}]}, "reward: came together with step_rewards"),
        ({"ref_logp": [-1.0]}, "ref_logp: came without input_ids, expected the tokens that it scores"),
        ({"messages": []}, "messages: came together with prompt, expected a whole episode in one of them"),
    ],
)
def test_fault_of_a_text_row_is_named(columns, fault):
    assert faults(parse_trajectory, changed(TEXT, **columns))[0].startswith(f"f.jsonl:7: {fault}")


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (
            {"input_ids": [1, True, 2, 3, 4]},
            "input_ids: got True (a boolean) at index 1, expected integers of 0 or more",
        ),
        ({"input_ids": [1, -5, 2, 3, 4]}, "input_ids: got -5 (an integer) at index 1, expected integers of 0 or more"),
        (
            {"action_spans": [[0, 3], [4, 5]]},
            "action_spans: got [0, 3] (a list) at index 0, expected [start, end] with 1 <=",
        ),
        (
            {"action_spans": [[2, 4], [3, 5]]},
            "action_spans: got [3, 5] (a list) at index 1, expected [start, end] with 4 <=",
        ),
        (
            {"action_spans": [[2, 3], [4, 6]]},
            "action_spans: got [4, 6] (a list) at index 1, expected [start, end] with 3 <=",
        ),
        ({"behavior_logp": [-1.0]}, "behavior_logp: got 1 numbers, expected 2, one per action token"),
        ({"ref_logp": [-1.0, 0.5]}, "ref_logp: got 0.5 (a number) at index 1, expected a finite log-probability"),
        ({"step_rewards": [{"start": 3, "end": 4, "reward": 1}]}, "step_rewards: [3, 4) at index 0 holds no action"),
    ],
)
def test_fault_of_a_recorded_row_is_named(columns, fault):
    assert faults(parse_trajectory, changed(RECORDED, **columns))[0].startswith(f"f.jsonl:7: {fault}")


def test_conversation_without_an_assistant_turn_is_refused():
    obj = changed(EPISODE, messages=[{"role": "user", "content": "look"}])
    assert "has no assistant turn" in faults(parse_trajectory, obj)[0]


def test_trl_rows_keep_their_columns_and_ignore_others():
    row = parse_preference({"prompt": "q", "chosen": "a", "rejected": "b", "source": "x"}, "f.jsonl:7")
    assert (row.prompt, row.chosen, row.rejected) == ("q", "a", "b")
    assert parse_completion({"prompt": "q", "completion": "a", "n": 1}, "f.jsonl:7").completion == "a"


def test_missing_trl_column_names_the_near_one():
    (fault,) = faults(parse_completion, {"prompt": "q", "completions": "a"})
    assert fault.endswith(
        "completion: is missing, expected text or a list of {role, content} (there is a column 'completions')"
    )


def test_text_and_messages_do_not_mix_in_one_row():
    obj = {"prompt": [{"role": "user", "content": "q"}], "completion": "a"}
    assert faults(parse_completion, obj) == (
        "f.jsonl:7: completion: prompt is messages, completion is text; expected all text or all messages",
    )


def test_problem_survives_and_needs_its_entry_for_a_verifier():
    obj = {"task_id": "t", "prompt": "q", "answer": "3", "grader": "reasoning_gym:chain_sum", "entry": "{}"}
    assert problem_to_json(parse_problem(obj, "f.jsonl:7")) == obj
    tagged = changed(obj, tags={"subject": "Algebra", "level": "5"})
    assert problem_to_json(parse_problem(tagged, "f.jsonl:7")) == tagged
    assert "tags: got" in faults(parse_problem, changed(obj, tags={"level": 5}))[0]
    del obj["entry"]
    assert "entry: is missing" in faults(parse_problem, obj)[0]
    assert 'expected "final_number"' in faults(parse_problem, changed(obj, grader="exact"))[0]
