from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.fields import RowError
from posttrain.data.sources import RowsError
from posttrain.training.kto import KtoBaselineConfig, build_kto_trainer, read_labelled, train_kto
from posttrain.training.metrics import METRICS, read_metrics
from tests.training.char_model import PAIR_ID, ids_of, write_char_model

EOS = 1
BETA = 0.5


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_char_model(tmp_path_factory.mktemp("char_model"))


def _config(model: Path, data: Path, run_dir: Path, **changes: Any) -> KtoBaselineConfig:
    settings = {
        "model": str(model),
        "train_data": [str(data)],
        "output_dir": str(run_dir),
        "beta": BETA,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return KtoBaselineConfig(**(settings | changes))


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _sampled(task: str, reward: float, answer: list[int]) -> dict[str, Any]:
    ids = [*ids_of(task), *answer]
    row = {"task_id": task, "prompt": task, "reward": reward, "finish_reason": "stop"}
    return row | {"input_ids": ids, "action_spans": [[len(task), len(ids)]]}


ROWS = (
    _sampled("6+6=", 1.0, [PAIR_ID, EOS]),  # "12" as one token, which re-tokenising would split
    _sampled("6+6=", 0.0, [*ids_of("13"), EOS]),
    _sampled("1+1=", 1.0, [*ids_of("2"), EOS]),
    _sampled("1+2=", 0.0, [*ids_of("2 2 2"), EOS]),
)


def _logp(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    """log π(answer | prompt), one position at a time."""
    ids = [*prompt, *answer]
    with torch.no_grad():
        logits = [model(torch.tensor([ids[:at]])).logits[0, -1].double() for at in range(len(prompt), len(ids))]
    return sum(torch.log_softmax(row, -1)[token].item() for row, token in zip(logits, ids[len(prompt) :], strict=True))


def test_ids_are_the_recorded_ones_and_labels_follow_the_reward(char_model: Path, tmp_path: Path) -> None:
    config = _config(char_model, _write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "run")
    answers, _ = read_labelled(config, AutoTokenizer.from_pretrained(char_model))
    read = {(*row["prompt_ids"], *row["completion_ids"]): row["label"] for row in answers}
    assert read == {tuple(row["input_ids"]): row["reward"] == 1.0 for row in ROWS}
    assert {len(row["prompt_ids"]) for row in answers} == {4}


def test_loss_is_that_of_the_paper_when_the_reference_differs(char_model: Path, tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(char_model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    reference.save_pretrained(tmp_path / "reference")
    data = _write(tmp_path / "rows.jsonl", *ROWS)
    config = _config(char_model, data, tmp_path / "run", reference=str(tmp_path / "reference"))
    policy = AutoModelForCausalLM.from_pretrained(char_model)
    answers, _ = read_labelled(config, AutoTokenizer.from_pretrained(char_model))

    def ratio(prompt: list[int], answer: list[int]) -> float:
        return _logp(policy, prompt, answer) - _logp(reference, prompt, answer)

    # The whole data set is one batch in the order of `answers`: prompt i meets the answer to prompt i − 1.
    shifted = [answers[i - 1]["completion_ids"] for i in range(len(answers))]
    mismatched = [ratio(row["prompt_ids"], other) for row, other in zip(answers, shifted, strict=True)]
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    # arXiv 2402.01306, Eqs. 7 and 8 with both weights 1: 1 − σ(±β (ratio − z0)), + for good answers.
    losses = [
        1 / (1 + math.exp((1 if row["label"] else -1) * BETA * (ratio(row["prompt_ids"], row["completion_ids"]) - z0)))
        for row in answers
    ]
    first = read_metrics(train_kto(config) / METRICS)[0]
    expected = sum(losses) / len(losses)
    assert abs(expected - 0.5) > 1e-3  # at the reference every loss is 1/2: else the test could not tell
    assert first["loss"] == pytest.approx(expected, abs=2e-6)  # float32 against float64


def test_good_answers_gain_and_bad_ones_lose_when_trained(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", *ROWS)
    run_dir = train_kto(_config(char_model, data, tmp_path / "run", max_steps=30, learning_rate=3e-3))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (char_model, run_dir))
    for row in ROWS:
        prompt, answer = row["input_ids"][:4], row["input_ids"][4:]
        gain = _logp(after, prompt, answer) - _logp(before, prompt, answer)
        assert gain > 0.5 if row["reward"] else gain < -0.5


def test_trl_rows_with_a_label_are_answers_of_their_own(char_model: Path, tmp_path: Path) -> None:
    good, bad = {"completion": "2", "label": True}, {"completion": "3", "label": False}
    rows = ({"prompt": "1+1="} | good, {"prompt": "1+1="} | bad)
    config = _config(char_model, _write(tmp_path / "rows.jsonl", *rows), tmp_path / "run")
    answers, _ = read_labelled(config, AutoTokenizer.from_pretrained(char_model))
    two, three = ([token, EOS] for token in ids_of("23"))
    assert {tuple(row["completion_ids"]): row["label"] for row in answers} == {tuple(two): True, tuple(three): False}


@pytest.mark.parametrize(("rewards", "n_good"), [((1.0, 1.0), 2), ((0.0, 0.5), 0)])
def test_reading_stops_when_all_answers_are_alike(
    char_model: Path, tmp_path: Path, rewards: tuple[float, float], n_good: int
) -> None:
    rows = (_sampled("1+1=", rewards[0], ids_of("2")), _sampled("1+1=", rewards[1], ids_of("3")))
    config = _config(char_model, _write(tmp_path / "rows.jsonl", *rows), tmp_path / "run")
    with pytest.raises(RowsError, match=rf"{n_good} of 2 answers have a reward of min_reward=1\.0 or more; KTO needs"):
        read_labelled(config, AutoTokenizer.from_pretrained(char_model))


def test_an_answer_of_two_turns_is_refused_by_file_and_line(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", ROWS[0] | {"action_spans": [[4, 5]]}, ROWS[1])
    with pytest.raises(RowError, match=r"rows\.jsonl:1: action_spans: has tokens after or between its actions"):
        read_labelled(_config(char_model, data, tmp_path / "run"), AutoTokenizer.from_pretrained(char_model))


def test_mismatched_answers_come_from_the_same_batch(char_model: Path, tmp_path: Path) -> None:
    config = _config(
        char_model, _write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "run", per_device_train_batch_size=2
    )
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    answers, _ = read_labelled(config, tokenizer)
    rows = build_kto_trainer(config, answers, tokenizer).train_dataset
    completions = [row["completion_ids"] for row in rows]
    expected = [completions[i] for i in (1, 0, 3, 2)]  # rotated within batches of 2
    assert [row["KL_completion_ids"] for row in rows] == expected
