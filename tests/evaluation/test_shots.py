"""Shots: the exact text before a question, the pool it is drawn from, and lm-eval's own prompts beside ours."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from posttrain.data.problems import find_data, plain_prompt, read_problems
from posttrain.data.sources import write_jsonl
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.protocols import PROTOCOLS, protocol_named
from posttrain.evaluation.run import evaluate
from posttrain.evaluation.shots import Shots, pool_sha256, with_shots
from posttrain.schema import Problem
from tests.evaluation.lm_eval_prompts import RECORDED, lm_eval_prompts, prompts_sha256

POOL = [("1+1?", "<<1+1=2>>2\n#### 2"), ("1+2?", "3\n#### 3"), ("1+3?", "4\n#### 4")]
OF_LM_EVAL = [protocol for protocol in PROTOCOLS.values() if protocol.shots is not None]

pytestmark = pytest.mark.filterwarnings("ignore::posttrain.data.known_splits.SplitDiffersWarning")


@pytest.fixture
def train(tmp_path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", [{"question": q, "answer": a} for q, a in POOL])
    return tmp_path / "train.jsonl"


def shots_of(source: Path, *, n: int = 3, seed: int = 0) -> Shots:
    return Shots(n=n, sources=(str(source),), sha256=pool_sha256(POOL), seed=seed)


def asked(question: str, number: int = 1) -> Problem:
    return Problem(f"test.jsonl:{number}", f"t/{number}", plain_prompt(question), "0", "final_number")


def test_a_shot_is_its_prompt_a_space_its_answer_with_marks_and_an_empty_line(train):
    (problem,) = with_shots([asked("2+2?")], shots_of(train), plain_prompt)
    *shots, last = problem.prompt.split("\n\n")
    assert last == "Question: 2+2?\nAnswer:"
    assert sorted(shots) == [f"Question: {question}\nAnswer: {answer}" for question, answer in POOL]


def test_every_question_has_shots_of_its_own_which_the_seed_and_its_place_decide(train):
    problems = [asked(f"{n}+5?", n) for n in range(20)]
    first = with_shots(problems, shots_of(train, n=1), plain_prompt)
    assert first == with_shots(problems, shots_of(train, n=1), plain_prompt)
    assert first[:7] == with_shots(problems[:7], shots_of(train, n=1), plain_prompt)
    assert first != with_shots(problems, shots_of(train, n=1, seed=1), plain_prompt)
    # Twenty draws of one of three: all three turn up (a chance below 1e-3 that one would not).
    assert len({problem.prompt.partition("\n\n")[0] for problem in first}) == 3


def test_a_pool_of_other_rows_is_refused_and_so_is_a_problem_that_is_its_own_shot(train, tmp_path):
    with pytest.raises(ValueError, match=r"test\.jsonl:1 is among its own shots"):
        with_shots([asked("1+1?")], shots_of(train), plain_prompt)
    write_jsonl(tmp_path / "other.jsonl", [{"question": "1+1?", "answer": "2"}])
    with pytest.raises(ValueError, match=rf"other\.jsonl holds 1 rows.*rows that hash to {pool_sha256(POOL)[:12]}"):
        with_shots([asked("2+2?")], shots_of(tmp_path / "other.jsonl"), plain_prompt)


def test_a_pool_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"3 shots come from a training split \(.*gone\.jsonl\).*POSTTRAIN_DATA"):
        with_shots([asked("2+2?")], shots_of(tmp_path / "gone.jsonl"), plain_prompt)


def test_shots_belong_to_the_hash_of_a_protocol_and_protocols_without_them_keep_theirs():
    protocol = protocol_named("lm-eval-strict-5shot")
    assert protocol.shots is not None
    changes = ({"n": 4}, {"seed": 0}, {"sha256": "0" * 64})
    changed = [replace(protocol, shots=replace(protocol.shots, **change)) for change in changes]
    hashes = {one.hash() for one in (protocol, replace(protocol, shots=None), *changed)}
    assert len(hashes) == 2 + len(changes)
    assert protocol_named("gsm8k-chat").hash() == "b23aa70cc4b4"  # as recorded in evals/smollm2_zero_shot
    with pytest.raises(ValueError, match="gsm8k-chat is a conversation and has shots"):
        replace(protocol_named("gsm8k-chat"), shots=protocol.shots)


def need_gsm8k() -> None:
    for split in ("gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        if not Path(find_data(split)).is_file():
            pytest.skip(f"{split} is not at hand: point POSTTRAIN_DATA at a folder that has it")


@pytest.mark.parametrize("protocol", OF_LM_EVAL, ids=lambda protocol: protocol.name)
def test_all_prompts_are_those_of_lm_eval_byte_by_byte(protocol):
    need_gsm8k()
    problems = read_problems("gsm8k/test.jsonl", limit=None, template=protocol.as_text)
    prompts = [problem.prompt for problem in with_shots(problems, protocol.shots, protocol.as_text)]
    assert len(prompts) == 1319
    assert prompts_sha256(prompts) == RECORDED


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install lm-eval==0.4.13")
def test_the_recorded_hash_is_that_of_the_installed_lm_eval():
    need_gsm8k()
    assert prompts_sha256(lm_eval_prompts()) == RECORDED


def test_show_prompt_prints_the_shots_too(tmp_path, capsys):
    need_gsm8k()
    config = EvalConfig(
        problems="gsm8k",
        model="any",
        engine="url",
        url="http://127.0.0.1:9/v1",
        output=str(tmp_path / "answers.jsonl"),
        protocol="lm-eval-strict-5shot",
        show_prompt=True,
    )
    evaluate(config)
    shown = capsys.readouterr().out
    assert shown.count("Question: ") == 6 and shown.count("#### ") == 5
    assert shown.endswith("at the farmers' market?\nAnswer:\n")
