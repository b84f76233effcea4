"""Labels to rewards, rewards to pairs."""

from __future__ import annotations

import random

import pytest

from posttrain.data.preferences import parse_unpaired_preference, preference_pairs
from posttrain.data.rows import RowError, parse_trajectory
from posttrain.schema import Message


def answer(task: str, text: str, reward: float, prompt: str | None = None):
    obj = {"task_id": task, "prompt": prompt or task, "completion": text, "reward": reward, "finish_reason": "stop"}
    return parse_trajectory(obj, f"f:{text}")


def test_pairs_are_drawn_without_replacement_up_to_the_limit():
    # 3 right and 2 wrong answers span a grid of 6; 4 of them are drawn, all different, right before wrong.
    rows = [answer("t", text, float(text.startswith("r"))) for text in ("r1", "w1", "r2", "w2", "r3")]
    pairs = preference_pairs(rows, max_pairs=4, rng=random.Random(0))
    drawn = {(pair.chosen, pair.rejected) for pair in pairs}
    assert len(pairs) == len(drawn) == 4
    assert drawn < {(r, w) for r in ("r1", "r2", "r3") for w in ("w1", "w2")}


def test_whole_grid_comes_when_the_limit_is_above_it_and_one_sided_tasks_give_none():
    rows = [answer("t", "r", 1), answer("t", "w", 0), answer("u", "r1", 1), answer("u", "r2", 1)]
    pairs = preference_pairs(rows, max_pairs=9, rng=random.Random(0))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [("t", "r", "w")]


def test_equal_texts_with_unequal_rewards_are_not_paired():
    assert preference_pairs([answer("t", "x", 1), answer("t", "x", 0)], max_pairs=9, rng=random.Random(0)) == []


def test_same_seed_gives_the_same_pairs():
    rows = [answer("t", f"{i}", float(i % 2)) for i in range(12)]
    first, second = (preference_pairs(rows, max_pairs=5, rng=random.Random(3)) for _ in range(2))
    assert first == second


def test_one_task_with_two_prompts_is_an_error():
    rows = [answer("t", "r", 1), answer("t", "w", 0, prompt="other")]
    with pytest.raises(RowError, match="f:w: prompt: has the task_id 't' of f:r, but another prompt"):
        preference_pairs(rows, max_pairs=1, rng=random.Random(0))


def test_label_becomes_the_reward_and_equal_prompts_share_a_task():
    good, bad, other = (
        parse_unpaired_preference({"prompt": prompt, "completion": "a", "label": label}, "f:1")
        for prompt, label in (("q", True), ("q", False), ("p", True))
    )
    assert (good.reward, bad.reward) == (1.0, 0.0)
    assert good.task_id == bad.task_id != other.task_id


def test_conversational_completion_becomes_the_text_after_its_prompt():
    obj = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
        "label": False,
    }
    row = parse_unpaired_preference(obj, "f:1")
    assert (row.prompt, row.completion) == ((Message("user", "q"),), "a")


def test_label_that_is_no_boolean_is_a_fault():
    with pytest.raises(RowError, match=r"f:1: label: got 1 \(an integer\), expected true or false"):
        parse_unpaired_preference({"prompt": "q", "completion": "a", "label": 1}, "f:1")
