from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.fields import RowError
from posttrain.data.sources import RowsError
from posttrain.training.metrics import METRICS, SUPERSEDED, read_metrics
from posttrain.training.sft import SftConfig, build_sft_trainer, parse_demonstration, read_demonstrations, train_sft
from tests.training.char_model import PAIR_ID, ids_of, write_char_model

EOS = 1
TIMING = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_char_model(tmp_path_factory.mktemp("char_model"))


def _config(model: Path, data: Path, run_dir: Path, **changes: Any) -> SftConfig:
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
    return SftConfig(**(settings | changes))


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _trajectory(task: str, reward: float, **changes: Any) -> dict[str, Any]:
    row = {"task_id": task, "prompt": "1+1=", "completion": "2", "reward": reward, "finish_reason": "stop"}
    return row | changes


def _nll(model: torch.nn.Module, ids: list[int], first_action: int) -> list[float]:
    """−log p of each completion token, one position at a time."""
    losses = []
    for position in range(first_action, len(ids)):
        logits = model(torch.tensor([ids[:position]])).logits[0, -1].double()
        losses.append(-torch.log_softmax(logits, -1)[ids[position]].item())
    return losses


def test_loss_is_the_mean_over_completion_tokens_when_rows_differ_in_length(char_model: Path, tmp_path: Path) -> None:
    data = _write(
        tmp_path / "rows.jsonl",
        {"prompt": "1+1=", "completion": "2"},
        {"prompt": "40+2=", "completion": "12 + 30 = 42"},
    )
    run_dir = train_sft(_config(char_model, data, tmp_path / "run"))
    model = AutoModelForCausalLM.from_pretrained(char_model)
    # Tokenised apart and ended by EOS: 2 and 13 tokens with loss; prompts and padding have none.
    losses = _nll(model, [*ids_of("1+1=2"), EOS], 4) + _nll(model, [*ids_of("40+2=12 + 30 = 42"), EOS], 5)
    assert len(losses) == 15
    first = read_metrics(run_dir / METRICS)[0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(sum(losses) / 15, abs=2e-6)  # float32 against float64


def test_recorded_ids_are_trained_on_when_the_text_would_be_tokenised_otherwise(
    char_model: Path, tmp_path: Path
) -> None:
    prompt = ids_of("6+6=")
    sampled = [*prompt, PAIR_ID, EOS]  # "12" as one token; the tokenizer would make two of it
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    assert tokenizer("12")["input_ids"] == ids_of("12") != [PAIR_ID]
    row = _trajectory("a", 1.0, prompt="6+6=", completion="12", input_ids=sampled, action_spans=[[4, 6]])
    config = _config(char_model, _write(tmp_path / "rows.jsonl", row), tmp_path / "run")
    encoded, _ = read_demonstrations(config, tokenizer)
    [batch] = build_sft_trainer(config, encoded, tokenizer).get_train_dataloader()
    assert batch["input_ids"].tolist() == [sampled]
    assert batch["labels"].tolist() == [[-100] * 4 + [PAIR_ID, EOS]]


def test_only_actions_carry_loss_when_an_episode_has_several_spans(char_model: Path, tmp_path: Path) -> None:
    ids = ids_of("1+2=3\n4+5=9")
    row = _trajectory("a", 1.0, prompt="1+2=", completion=None, input_ids=ids, action_spans=[[4, 5], [10, 11]])
    config = _config(char_model, _write(tmp_path / "rows.jsonl", row), tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    encoded, _ = read_demonstrations(config, tokenizer)
    [batch] = build_sft_trainer(config, encoded, tokenizer).get_train_dataloader()
    expected = [token if index in (4, 10) else -100 for index, token in enumerate(ids)]
    assert batch["labels"].tolist() == [expected]


def test_rows_below_the_reward_are_left_out_when_min_reward_is_set(char_model: Path, tmp_path: Path) -> None:
    data = _write(
        tmp_path / "rows.jsonl",
        _trajectory("a", 0.0, completion="3"),
        _trajectory("a", 1.0, completion="2"),
        _trajectory("b", 0.5, completion="4"),
    )
    config = _config(char_model, data, tmp_path / "run", min_reward=0.5)
    encoded, sha256 = read_demonstrations(config, AutoTokenizer.from_pretrained(char_model))
    assert [row.input_ids[4] for row in encoded] == ids_of("24")
    assert list(sha256) == [str(data)]
    with pytest.raises(RowsError, match=r"no row has a reward of min_reward=2\.0 or more; the best has 1\.0"):
        read_demonstrations(
            _config(char_model, data, tmp_path / "run", min_reward=2.0), AutoTokenizer.from_pretrained(char_model)
        )


def test_min_reward_is_refused_when_rows_have_no_reward(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", {"prompt": "1+1=", "completion": "2"})
    config = _config(char_model, data, tmp_path / "run", min_reward=1.0)
    with pytest.raises(RowsError, match=r"rows\.jsonl:1: has no reward, but min_reward=1\.0 was asked for"):
        read_demonstrations(config, AutoTokenizer.from_pretrained(char_model))


def test_completion_of_several_turns_is_refused_when_nothing_says_which_are_actions() -> None:
    turns = [{"role": role, "content": "1"} for role in ("assistant", "user", "assistant")]
    with pytest.raises(RowError, match="f:1: completion: holds the turns assistant, user, assistant; expected"):
        parse_demonstration({"prompt": [{"role": "user", "content": "0"}], "completion": turns}, "f:1")


def test_run_folder_is_a_model_that_has_learned_its_row_when_training_ends(char_model: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "rows.jsonl", {"prompt": "1+1=", "completion": "2 = 2"})
    config = _config(char_model, data, tmp_path / "run", max_steps=60, learning_rate=3e-2, seed=11)
    run_dir = train_sft(config)
    model = AutoModelForCausalLM.from_pretrained(run_dir)
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    prompt = tokenizer("1+1=", return_tensors="pt")["input_ids"]
    written = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert written.tolist() == [*ids_of("2 = 2"), EOS]
    card = json.loads((run_dir / "run.json").read_text())
    assert card["config"]["learning_rate"] == 3e-2
    assert card["seeds"]["seed"] == 11
    assert len(card["data_sha256"][str(data)]) == 64
    assert [row["step"] for row in read_metrics(run_dir / METRICS)] == [*range(1, 61), 60]
    assert not [path for path in run_dir.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_resumed_run_equals_unbroken_run_when_stopped_between_two_logs(char_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(10)]
    data = _write(tmp_path / "rows.jsonl", *rows)
    steps = {"max_steps": 12, "logging_steps": 5, "save_strategy": "steps", "save_steps": 7, "learning_rate": 1e-3}
    for name in ("unbroken", "resumed"):
        train_sft(_config(char_model, data, tmp_path / name, **steps))
    (tmp_path / "resumed/checkpoint-12/COMPLETE").unlink()  # as if killed amid the last save
    train_sft(_config(char_model, data, tmp_path / "resumed", **steps, resume_from_checkpoint="latest"))
    assert _history(tmp_path / "resumed") == _history(tmp_path / "unbroken")
    # 10 was logged, and its row with num_tokens from the start must come again; the summary at 12 too.
    assert [row["step"] for row in read_metrics(tmp_path / "resumed" / SUPERSEDED)] == [10, 12]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "resumed")]
    assert weights[0] == weights[1]


def _history(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / METRICS)
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]
