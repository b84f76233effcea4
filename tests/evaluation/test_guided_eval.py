"""Guidance in evaluations: 1 is the policy, 0 forgets the prompt, and what cannot have it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data.picture_problems import PictureProblemsConfig, write_picture_problems
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import read_records
from posttrain.evaluation.run import evaluate
from posttrain.models.picture_policy import PicturePolicyConfig, write_picture_policy
from tests.vision.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    tiny_tokenizer().save(folder / "tokenizer")
    write_picture_problems(
        PictureProblemsConfig(visual_tokenizer=folder / "tokenizer", output=folder / "held_out.jsonl")
    )
    write_picture_policy(PicturePolicyConfig(visual_tokenizer=folder / "tokenizer", output=folder / "policy"))
    return folder


def texts(folder: Path, output: str, **changes: object) -> list[str]:
    config = EvalConfig(
        problems=str(folder / "held_out.jsonl"),
        model=str(folder / "policy"),
        output=str(folder / output),
        template="bare",
        max_new_tokens=9,
        limit=12,
        device="cpu",
        **{"decoding": ("greedy", "sample:2"), **changes},  # type: ignore[arg-type]
    )
    evaluate(config)
    return [record.text for record in read_records(folder / output)]


def test_guidance_of_one_draws_the_answers_of_the_policy_itself(folder: Path) -> None:
    plain = texts(folder, "plain.jsonl")
    guided = texts(folder, "one.jsonl", guidance=1.0, unconditional="<bov>")
    assert guided == plain
    assert len(set(plain)) > 12  # the prompts make a difference


def test_guidance_of_zero_draws_one_likeliest_answer_for_every_prompt(folder: Path) -> None:
    answers = texts(folder, "zero.jsonl", decoding=("greedy",), guidance=0.0, unconditional="<bov>")
    assert len(answers) == 12 and len(set(answers)) == 1


def test_guidance_is_part_of_what_an_answer_is_known_by(folder: Path) -> None:
    texts(folder, "plain_again.jsonl", decoding=("greedy",))
    texts(folder, "two.jsonl", decoding=("greedy",), guidance=2.0, unconditional="<bov>")
    keys = [
        json.loads((folder / name).read_text().splitlines()[0])["key"] for name in ("plain_again.jsonl", "two.jsonl")
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 2.0}, "set unconditional to the prompt that asks for nothing"),
        ({"guidance": 2.0, "unconditional": "<bov>", "engine": "vllm"}, "which engine vllm does not have"),
        (
            {"guidance": 2.0, "unconditional": "<bov>", "decoding": ("likelihood:2",)},
            "likelihood:2 reads the policy itself",
        ),
    ],
)
def test_what_cannot_be_guided_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts(folder, "refused.jsonl", **changes)
