"""The order in which prompts are sampled."""

from __future__ import annotations

from collections import Counter

import pytest

from posttrain.training.online_prompts import OnlinePrompt, PromptOrder, StepSlots

PROMPTS = [OnlinePrompt(f"a{i}", "a") for i in range(2)] + [OnlinePrompt(f"b{i}", "b") for i in range(5)]


def test_kinds_take_turns_and_each_prompt_of_a_kind_comes_once_before_any_comes_again():
    order = PromptOrder(PROMPTS, seed=3)
    found = [order.at(slot) for slot in range(20)]
    assert [PROMPTS[i].kind for i in found] == ["a", "b"] * 10
    assert Counter(found[1::2]) == dict.fromkeys(range(2, 7), 2)
    for cycle in range(5):
        assert sorted(found[0::2][2 * cycle : 2 * cycle + 2]) == [0, 1]
    assert found[1:10:2] != found[11:20:2]  # shuffled anew


def test_order_hangs_on_the_seed_and_not_on_what_was_asked_before():
    forwards = [PromptOrder(PROMPTS, seed=3).at(slot) for slot in range(40)]
    order = PromptOrder(PROMPTS, seed=3)
    assert [order.at(slot) for slot in reversed(range(40))][::-1] == forwards
    assert [PromptOrder(PROMPTS, seed=4).at(slot) for slot in range(40)] != forwards


def test_updates_of_a_round_see_its_slots_again():
    slots = StepSlots(n_rounds=2, prompts_per_round=3, updates_per_round=2)
    assert [slots[i] for i in range(len(slots))] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_a_run_without_prompts_is_refused():
    with pytest.raises(ValueError, match="there are no prompts to sample from"):
        PromptOrder([], seed=0)
