"""Protocols: the exact text that a policy reads, where an answer ends, and a hash that tells protocols apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.evaluation.protocols import PROTOCOLS, protocol_named, protocol_of_template
from posttrain.evaluation.tasks import TASKS, task_source
from posttrain.rewards.graders import GRADERS
from tests.evaluation.tiny_policy import word_tokenizer

QUESTION = r"What is $\frac{1}{2} + {x}$?"  # braces that are no placeholders


def test_a_question_is_put_as_the_protocol_says_braces_and_all():
    assert protocol_named("lm-eval-strict").template(word_tokenizer())(QUESTION) == f"Question: {QUESTION}\nAnswer:"
    expected = (
        f"User: {QUESTION}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n\nAssistant:"
    )
    assert protocol_named("oreo-paper").template(word_tokenizer())(QUESTION) == expected


def test_a_chat_protocol_is_rendered_by_the_models_own_template():
    tokenizer = word_tokenizer()
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    asked = protocol_named("qwen-math").template(tokenizer)(QUESTION)
    assert asked.startswith("[system]Please reason step by step") and asked.endswith(f"[user]{QUESTION}[assistant]")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 7\n#### 7\n\nQuestion: next</s>", " 7\n#### 7\n\n"),
        ("#### 7<|im_end|>Question:", "#### 7"),
        ("#### 7", "#### 7"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string_wherever_it_stands_in_the_list(text, answer):
    assert protocol_named("lm-eval-strict").answer_in(text) == answer


def test_the_hash_changes_with_every_part_that_changes_a_number_and_not_with_the_source():
    protocol = protocol_named("gsm8k-plain")
    changes = (
        {"version": 2}, {"prompt": "Q: {question}"}, {"is_chat": True}, {"system": "s"},
        {"stop": ("x",)}, {"max_new_tokens": 9}, {"graders": ("boxed",)},
    )  # fmt: skip
    assert len({protocol.hash(), *(replace(protocol, **change).hash() for change in changes)}) == 1 + len(changes)
    assert replace(protocol, source="elsewhere").hash() == protocol.hash()


def test_every_protocol_names_graders_that_there_are_and_every_task_a_protocol():
    for protocol in PROTOCOLS.values():
        assert set(protocol.graders) <= GRADERS.keys()
        assert protocol.prompt.count("{question}") == 1
    assert {task.protocol for task in TASKS.values()} <= PROTOCOLS.keys()


def test_a_template_of_ones_own_leaves_each_problem_its_grader():
    protocol = protocol_of_template("bare", "", max_new_tokens=5)
    assert protocol.template(word_tokenizer())("1 2") == "1 2\n"
    assert protocol.graders == ()
    with pytest.raises(ValueError, match="only 'chat' has a system message"):
        protocol_of_template("bare", "be brief", max_new_tokens=5)


@pytest.mark.parametrize(("word", "hint"), [("gsm8", "did you mean 'gsm8k'"), ("zzz", "tasks: gsm8k, math")])
def test_a_word_that_is_no_task_is_refused_with_the_nearest_one(word, hint):
    with pytest.raises(ValueError, match=f"'{word}' is no task and no source of problems.*{hint}"):
        task_source(word)
    with pytest.raises(ValueError, match="posttrain alfworld eval"):
        task_source("alfworld")
    with pytest.raises(ValueError, match="protocol is 'gsm8k', needs one of: gsm8k-plain"):
        protocol_named("gsm8k")


def test_a_task_is_read_from_disk_where_it_is_and_a_source_stands_for_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    assert task_source("gsm8k") == ("openai/gsm8k:main:test", "gsm8k-plain")
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").touch()
    assert task_source("gsm8k") == ("gsm8k/test.jsonl", "gsm8k-plain")
    assert task_source("own/problems.jsonl") == ("own/problems.jsonl", None)
