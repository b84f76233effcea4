from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.fields import RowError
from posttrain.data.sources import RowsError
from posttrain.training.dpo import DpoBaselineConfig, build_dpo_trainer, encode_pairs, read_pairs, train_dpo
from posttrain.training.metrics import METRICS, read_metrics
from tests.training.char_model import PAIR_ID, ids_of, write_char_model

EOS = 1
TIMING = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_char_model(tmp_path_factory.mktemp("char_model"))


def _config(model: Path, data: Path, run_dir: Path, **changes: Any) -> DpoBaselineConfig:
    settings = {
        "model": str(model),
        "train_data": [str(data)],
        "output_dir": str(run_dir),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DpoBaselineConfig(**(settings | changes))


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _sampled(task: str, reward: float, prompt: str, answer: list[int]) -> dict[str, Any]:
    """A row as a sampler records it, without text for the answer."""
    ids = [*ids_of(prompt), *answer]
    spans = [[len(prompt), len(ids)]]
    row = {"task_id": task, "prompt": prompt, "reward": reward, "finish_reason": "stop"}
    return row | {"input_ids": ids, "action_spans": spans}


SIX_AND_SIX = (
    _sampled("six", 1.0, "6+6=", [PAIR_ID, EOS]),  # "12" as one token, which re-tokenising would split
    _sampled("six", 0.0, "6+6=", [*ids_of("13"), EOS]),
    _sampled("one", 1.0, "1+1=", [*ids_of("2"), EOS]),
    _sampled("one", 0.0, "1+1=", [*ids_of("2 2 2"), EOS]),
)


def test_ids_are_the_recorded_ones_when_the_text_would_be_tokenised_otherwise(
    char_model: Path, tmp_path: Path
) -> None:
    config = _config(char_model, _write(tmp_path / "rows.jsonl", *SIX_AND_SIX), tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    pairs, _ = read_pairs(config, tokenizer)
    expected = {"prompt_ids": ids_of("6+6="), "chosen_ids": [PAIR_ID, EOS], "rejected_ids": [*ids_of("13"), EOS]}
    assert pairs[0] == expected
    trainer = build_dpo_trainer(config, pairs, tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["input_ids"].tolist() == [[*ids_of("6+6="), PAIR_ID, EOS, 0], [*ids_of("6+6=13"), EOS]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


def test_loss_is_log_2_when_policy_is_its_reference(char_model: Path, tmp_path: Path) -> None:
    run_dir = train_dpo(_config(char_model, _write(tmp_path / "rows.jsonl", *SIX_AND_SIX), tmp_path / "run"))
    first = read_metrics(run_dir / METRICS)[0]
    # Both log-ratios are 0 before the first update: −log σ(0) = log 2, here rounded to float32.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == 0.0


def test_loss_counts_completion_tokens_only_when_reference_differs(char_model: Path, tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(char_model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    reference.save_pretrained(tmp_path / "reference")
    data = _write(tmp_path / "rows.jsonl", *SIX_AND_SIX)
    config = _config(char_model, data, tmp_path / "run", beta=0.3, reference=str(tmp_path / "reference"))
    policy = AutoModelForCausalLM.from_pretrained(char_model)

    def margin(chosen: dict[str, Any], rejected: dict[str, Any]) -> float:
        """Σ log π/π_ref over the answer's tokens, chosen minus rejected, one position at a time."""
        return sum(
            sign * (_logp(policy, row["input_ids"], at) - _logp(reference, row["input_ids"], at))
            for sign, row in ((1, chosen), (-1, rejected))
            for at in range(4, len(row["input_ids"]))
        )

    six, six_wrong, one, one_wrong = SIX_AND_SIX
    margins = [margin(six, six_wrong), margin(one, one_wrong)]
    expected = sum(math.log1p(math.exp(-0.3 * m)) for m in margins) / 2  # −log σ(β m), averaged over pairs
    first = read_metrics(train_dpo(config) / METRICS)[0]
    assert abs(expected - math.log(2)) > 1e-3  # else the test could not tell
    assert first["loss"] == pytest.approx(expected, abs=2e-6)  # float32 against float64
    assert first["rewards/margins"] == pytest.approx(0.3 * sum(margins) / 2, abs=2e-6)


def test_preference_rows_are_pairs_of_their_own_when_given_as_text(char_model: Path, tmp_path: Path) -> None:
    data = _write(
        tmp_path / "rows.jsonl",
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": "1+1=", "chosen": "2", "rejected": "4"},
    )
    pairs, _ = read_pairs(_config(char_model, data, tmp_path / "run"), AutoTokenizer.from_pretrained(char_model))
    two, three, four = ([token, EOS] for token in ids_of("234"))
    assert [(pair["chosen_ids"], pair["rejected_ids"]) for pair in pairs] == [(two, three), (two, four)]
    assert {tuple(pair["prompt_ids"]) for pair in pairs} == {tuple(ids_of("1+1="))}


def test_pairs_per_task_are_limited_when_there_are_many_answers(char_model: Path, tmp_path: Path) -> None:
    rows = [_sampled("one", float(n % 2), "1+1=", [*ids_of(str(n)), EOS]) for n in range(8)]
    data = _write(tmp_path / "rows.jsonl", *rows)
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    pairs, _ = read_pairs(_config(char_model, data, tmp_path / "run", max_pairs_per_task=5), tokenizer)
    assert len(pairs) == 5  # of 4 x 4
    assert len({(tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"])) for pair in pairs}) == 5
    odd = {(token, EOS) for token in ids_of("1357")}
    assert {tuple(pair["chosen_ids"]) for pair in pairs} <= odd


def test_reading_stops_when_no_task_has_a_better_and_a_worse_answer(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", SIX_AND_SIX[0], SIX_AND_SIX[3])
    with pytest.raises(RowsError, match="no pair of a better and a worse answer to one task"):
        read_pairs(_config(char_model, data, tmp_path / "run"), AutoTokenizer.from_pretrained(char_model))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"action_spans": [[4, 5]]}, "rows.jsonl:1: action_spans: has tokens after or between its actions"),
        ({"input_ids": ids_of("6+7=13")}, r"rows\.jsonl:2: prompt: has the task_id 'six' of rows\.jsonl:1, but other"),
    ],
)
def test_answers_that_are_no_pair_are_refused_when_read(
    char_model: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    better = SIX_AND_SIX[0] | ({"action_spans": [[4, 6]]} | change)
    data = _write(tmp_path / "rows.jsonl", better, SIX_AND_SIX[1])
    with pytest.raises(RowError, match=complaint):
        read_pairs(_config(char_model, data, tmp_path / "run"), AutoTokenizer.from_pretrained(char_model))


def test_nothing_is_paired_when_there_are_no_rows() -> None:
    assert encode_pairs([], [], max_pairs=3, rng=random.Random(0)) == []


def test_chosen_answer_gains_on_the_rejected_when_trained(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", *SIX_AND_SIX)
    run_dir = train_dpo(_config(char_model, data, tmp_path / "run", max_steps=20, learning_rate=3e-3))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (char_model, run_dir))
    for chosen, rejected in (SIX_AND_SIX[:2], SIX_AND_SIX[2:]):
        assert _preference(after, chosen, rejected) > _preference(before, chosen, rejected) + 1.0


def test_resumed_run_equals_unbroken_run_when_stopped_between_two_logs(char_model: Path, tmp_path: Path) -> None:
    rows = [_sampled(f"{i}", float(r), f"{i}+1=", [*ids_of(str(i + r)), EOS]) for i in range(9) for r in (0, 1)]
    data = _write(tmp_path / "rows.jsonl", *rows)
    steps = {"max_steps": 9, "logging_steps": 4, "save_strategy": "steps", "save_steps": 6, "learning_rate": 1e-3}
    for name in ("unbroken", "resumed"):
        train_dpo(_config(char_model, data, tmp_path / name, **steps))
    (tmp_path / "resumed/checkpoint-9/COMPLETE").unlink()  # as if killed amid the last save
    train_dpo(_config(char_model, data, tmp_path / "resumed", **steps, resume_from_checkpoint="latest"))
    assert _history(tmp_path / "resumed") == _history(tmp_path / "unbroken")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "resumed")]
    assert weights[0] == weights[1]


def _logp(model: torch.nn.Module, ids: list[int], position: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids[:position]])).logits[0, -1].double()
    return torch.log_softmax(logits, -1)[ids[position]].item()


def _preference(model: torch.nn.Module, chosen: dict[str, Any], rejected: dict[str, Any]) -> float:
    """log π(chosen) − log π(rejected)."""
    return sum(
        sign * _logp(model, row["input_ids"], at)
        for sign, row in ((1, chosen), (-1, rejected))
        for at in range(4, len(row["input_ids"]))
    )


def _history(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / METRICS)
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def test_reference_of_another_vocabulary_is_refused_before_training(char_model: Path, tmp_path: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(char_model)
    n_tokens = policy.config.vocab_size
    policy.resize_token_embeddings(n_tokens + 8)
    policy.save_pretrained(tmp_path / "wide")
    data = _write(tmp_path / "rows.jsonl", *SIX_AND_SIX)
    config = _config(char_model, data, tmp_path / "run", reference=str(tmp_path / "wide"))
    with pytest.raises(ValueError, match=f"policy has {n_tokens} tokens, reference {n_tokens + 8}: it must be"):
        train_dpo(config)
    assert not (tmp_path / "run" / METRICS).exists()
