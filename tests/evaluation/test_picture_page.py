"""The page of answers to picture problems: which are shown, and whether their values are those of the value model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.data.picture_problems import PictureProblemsConfig, write_picture_problems
from posttrain.evaluation.picture_page import PicturePageConfig, write_picture_page
from posttrain.evaluation.records import append_records
from posttrain.models.picture_policy import PicturePolicyConfig, write_picture_policy
from posttrain.models.value import load_value_model, value_model_from_policy
from posttrain.pretrained import load_tokenizer
from posttrain.schema import AnswerRecord, FinishReason, Grade
from posttrain.search.scorer import ReencodingScorer
from posttrain.vision.image_records import image_of, read_image_records
from posttrain.vision.visual_text import visual_ids
from tests.vision.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A tokenizer, its held-out problems, and three answers to each of the first two of every family."""
    tiny_tokenizer().save(tmp_path / "tokenizer")
    problems = tmp_path / "held_out.jsonl"
    write_picture_problems(PictureProblemsConfig(visual_tokenizer=tmp_path / "tokenizer", output=problems))
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        for place, method in enumerate(("sft/sample", "sft/sample", "pg/sample")):
            codes = torch.randint(32, (9,), generator=generator).tolist()
            text = "a ring" if place == 1 else " ".join(f"<v{code}>" for code in codes)
            record = AnswerRecord(
                row["task_id"], method, 0, 1, text, Grade.WRONG, FinishReason.LENGTH, 9, None, key=f"{method}{place}"
            )
            append_records(tmp_path / "answers.jsonl", [record])
    return tmp_path


def write_value_model(folder: Path) -> Path:
    """A value model with a head of random weights."""
    policy, value = folder / "policy", folder / "value"
    write_picture_policy(PicturePolicyConfig(visual_tokenizer=folder / "tokenizer", output=policy))
    model = value_model_from_policy(policy, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(value)
    load_tokenizer(policy).save_pretrained(value)
    return value


def page_of(folder: Path, **changes: object) -> Path:
    config = PicturePageConfig(
        answers=[folder / "answers.jsonl"], problems=folder / "held_out.jsonl", output=folder / "page.html", **changes
    )  # type: ignore[arg-type]
    return write_picture_page(config)


def test_page_shows_the_first_prompts_of_each_family_and_only_pictures(answered: Path) -> None:
    page = page_of(answered, prompts_per_family=2).read_text()
    records = read_image_records(answered / "page.jsonl")
    # Three held-out families, two prompts of each, one picture of each method: the text answer is no picture.
    assert len(records) == 3 * 2 * 2
    assert {record.method for record in records} == {"sft/sample", "pg/sample"}
    assert page.count("<img ") == 12 and all(record.prompt in page for record in records)
    tokenizer = tiny_tokenizer()
    drawn = tokenizer.decode(torch.tensor([records[0].tokens]))[0]
    assert torch.allclose(image_of(records[0].png), drawn, atol=1 / 127)  # 8 bits a channel


def test_values_are_those_of_the_states_before_each_token(answered: Path) -> None:
    value = write_value_model(answered)
    page_of(answered, prompts_per_family=1, method=("pg/sample",), value_model=str(value))
    record = read_image_records(answered / "page.jsonl")[0]
    tokenizer = load_tokenizer(value)
    ids = [tokenizer.get_vocab()[word] for word in (*record.prompt.split(), "<bov>")]
    visual = visual_ids(tokenizer).to_tokens(torch.tensor(record.tokens)).tolist()
    scorer = ReencodingScorer(load_value_model(value, dtype=torch.float32), batch_size=4)
    expected = scorer.score([ids + visual[:k] for k in range(9)])
    assert record.values == pytest.approx(expected, rel=1e-5, abs=1e-5)  # float32
    assert record.advantages is not None and record.values is not None
    assert sum(record.advantages) == pytest.approx(record.grade.strict - record.values[0], abs=1e-4)


def test_methods_without_pictures_are_refused_with_those_that_are_there(answered: Path) -> None:
    with pytest.raises(ValueError, match="no picture among the answers of oreo/sample; there: pg/sample, sft/sample"):
        page_of(answered, method=("oreo/sample",))


def test_problems_without_pictures_are_refused(answered: Path) -> None:
    row = {"task_id": "1", "prompt": "1+1=", "answer": "2", "grader": "final_number"}
    (answered / "held_out.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="was it written by posttrain vision problems"):
        page_of(answered)
