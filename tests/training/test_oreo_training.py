"""OREO through the trainer: identities at step 0, the value's head start, saved networks, and a run from a file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from posttrain.data.collate import StateLevel, collate
from posttrain.models.value import load_value_model, values_at_every_position
from posttrain.training.oreo import map_reward, train_oreo
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories


@pytest.mark.parametrize("level", list(StateLevel))
def test_identities_at_step_0(policy_folder: Path, tmp_path: Path, level: StateLevel) -> None:
    # O14: a zero head gives V = 0, policy = reference gives rho = 0 and KL = 0, so both losses are the mean of R^2.
    # The one-step form sees the reward in the last of the n_b states alone: the mean of R^2 / n_b.
    rows = [map_reward(row, (2.0, -0.5)) for row in trajectories(8)]  # rewards -0.5 and 1.5
    config = tiny_config(policy_folder, tmp_path, per_device_train_batch_size=8, max_steps=1, level=level)
    trainer = tiny_trainer(config, rows)
    trainer.train()
    [first] = step_logs(trainer)
    mean_square = sum(sum(row.reward) ** 2 for row in rows) / 8
    in_last_state = sum(sum(row.reward) ** 2 / sum(row.is_action) for row in rows) / 8
    policy_loss = in_last_state if level is StateLevel.ONE_STEP else mean_square
    assert first["value/mean"] == 0.0
    assert first["policy/log_ratio"] == 0.0
    assert first["loss/kl_ref"] == 0.0
    assert math.isclose(first["loss/value"], mean_square, rel_tol=1e-6)
    assert math.isclose(first["loss/policy"], policy_loss, rel_tol=1e-6)
    assert math.isclose(first["loss"], mean_square + policy_loss, rel_tol=1e-6)


def test_reward_map_scales_every_reward_and_shifts_the_row_once() -> None:
    [row] = trajectories(1)
    length = len(row.input_ids)
    mapped = map_reward(
        type(row)(0, row.input_ids, row.is_action, row.is_step_start, (0.0,) * (length - 2) + (0.5, 1.0)), (2.0, -1.0)
    )
    assert mapped.reward == (0.0,) * (length - 2) + (1.0, 1.0)  # 2 * 0.5, and 2 * 1 - 1


def test_the_policy_rests_while_the_value_warms_up(policy_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(policy_folder, tmp_path, value_warmup_steps=2, max_steps=3, per_device_train_batch_size=8)
    trainer = tiny_trainer(config, trajectories(8))
    trainer.train()
    logs = step_logs(trainer)
    assert [log["policy/log_ratio"] for log in logs] == [0.0, 0.0, 0.0]  # seen before the third step moves it
    assert all(log["value/grad_norm"] > 0 for log in logs)
    moved = trainer.model.policy.model.norm.weight - trainer.model.reference.model.norm.weight
    assert math.isclose(moved.abs().max().item(), 1e-2, rel_tol=0.6)  # one step of Adam, not three


def test_a_value_warmup_as_long_as_the_run_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path, value_warmup_steps=3, max_steps=3), trajectories(8))
    with pytest.raises(ValueError, match="starts to move at step 3 of 3: train longer or start earlier"):
        trainer.train()


def test_saved_networks_load_in_transformers_and_give_the_same_numbers(policy_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path), trajectories(12))
    trainer.train()
    trainer.save_model()
    batch = collate(trajectories(4), pad_id=0, states=StateLevel.TOKEN)
    trained = trainer.model.eval()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32).eval()
    value = load_value_model(tmp_path / "value", dtype=torch.float32).eval()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["is_token"].long()}
    with torch.no_grad():
        assert torch.equal(policy(**inputs).logits, trained.policy(**inputs).logits)
        here = values_at_every_position(value, batch["input_ids"], batch["is_token"])
        there = values_at_every_position(trained.value, batch["input_ids"], batch["is_token"])
    assert torch.equal(here, there)
    assert here.abs().max() > 0.01  # the head has moved away from 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "value")) == len(AutoTokenizer.from_pretrained(policy_folder))


LORA = {"value_lora_rank": 4, "value_lora_alpha": 8.0}


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_a_lora_critic_starts_at_zero_and_moves_only_adapters_and_head(
    policy_folder: Path, tmp_path: Path, is_checkpointing: bool
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    config = tiny_config(policy_folder, tmp_path, gradient_checkpointing=is_checkpointing, **LORA)
    trainer = tiny_trainer(config, trajectories(12))
    before = {name: weight.clone() for name, weight in trainer.model.value.named_parameters()}
    trainer.train()
    assert step_logs(trainer)[0]["value/mean"] == 0.0
    moved = {name for name, weight in trainer.model.value.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".lora_" in name or name == "score.weight"}
    assert not torch.equal(trainer.model.policy.model.norm.weight, trainer.model.reference.model.norm.weight)


def test_a_lora_critic_is_saved_as_a_plain_classifier(policy_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path, **LORA), trajectories(12))
    trainer.train()
    trainer.save_model()
    batch = collate(trajectories(4), pad_id=0, states=StateLevel.TOKEN)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["is_token"].long()}
    plain, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "value", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    trained = trainer.model.value.eval()
    with torch.no_grad():
        there = trained(**inputs).logits
        # W x + B A x against (W + B A) x in float32: another order of sums.
        torch.testing.assert_close(plain.eval()(**inputs).logits, there, rtol=1e-5, atol=1e-6)
        at_every_position = values_at_every_position(
            load_value_model(tmp_path / "value", dtype=torch.float32), batch["input_ids"], batch["is_token"]
        )
        expected = values_at_every_position(trained, batch["input_ids"], batch["is_token"])
    torch.testing.assert_close(at_every_position, expected, rtol=1e-5, atol=1e-6)
    assert there.abs().max() > 0.01  # the head has moved away from 0


def test_a_run_with_a_lora_critic_goes_on_from_a_checkpoint_as_if_never_stopped(
    policy_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    settings = {**LORA, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    unbroken = tiny_trainer(tiny_config(policy_folder, tmp_path, **settings), trajectories(12))
    unbroken.train()
    resumed = tiny_trainer(tiny_config(policy_folder, tmp_path / "resumed", **settings), trajectories(12))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert step_logs(resumed) == step_logs(unbroken)
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_lora_rank": -1}, "value_lora_rank is -1, needs a rank, or 0 for no adapters"),
        ({"value_lora_alpha": 64.0}, "value_lora_alpha 64.0 scales adapters: set value_lora_rank too"),
    ],
)
def test_lora_settings_that_mean_nothing_are_refused(
    policy_folder: Path, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(policy_folder, tmp_path, **changes)


def test_a_run_from_a_file_prints_the_audit_and_leaves_a_record(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = []
    for index in range(2):
        source = tmp_path / f"rows-{index}.jsonl"
        source.write_text("".join(json.dumps(_row(row_id)) + "\n" for row_id in range(6)))
        sources.append(str(source))
    config = tiny_config(policy_folder, tmp_path / "run", train_data=sources, max_steps=2, max_length=32)
    run_dir = train_oreo(config)
    printed = capsys.readouterr().out
    assert printed.count("rows read") == 2
    card = json.loads((run_dir / "run.json").read_text())
    assert set(card["data_sha256"]) == set(sources)
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert math.isclose(steps[0]["beta_eff"], 0.3 + 0.1 / (2 * 0.3), rel_tol=1e-6)
    assert (run_dir / "policy" / "model.safetensors").is_file()
    assert (run_dir / "value" / "model.safetensors").is_file()
    assert not list(run_dir.rglob("*.bin"))


def _row(row_id: int) -> dict[str, object]:
    return {
        "task_id": f"task-{row_id}",
        "prompt": "t4 t5",
        "input_ids": [4, 5, 6 + row_id, 7, 2],
        "action_spans": [[2, 5]],
        "reward": float(row_id % 2),
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(("key", "name"), [("reference", "reference"), ("value_model", "value model")])
def test_networks_that_read_other_tokens_are_refused_before_any_row_is_read(
    policy_folder: Path, tmp_path: Path, key: str, name: str
) -> None:
    # As many ids as the policy has, t4 and t5 swapped: the sizes of the models cannot tell.
    other = shutil.copytree(policy_folder, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    swapped = text.replace('"t4"', '"swap"').replace('"t5"', '"t4"').replace('"swap"', '"t5"')
    (other / "tokenizer.json").write_text(swapped)
    config = tiny_config(policy_folder, tmp_path / "run", train_data=["no such file.jsonl"], **{key: str(other)})
    with pytest.raises(ValueError, match=rf"{name} .*other reads 2 ids as other .* policy \(first 4: 't5'"):
        train_oreo(config)


def test_a_row_without_an_action_is_refused_before_the_first_step(policy_folder: Path, tmp_path: Path) -> None:
    rows = trajectories(4)
    no_action = (False,) * len(rows[2].input_ids)
    rows[2] = dataclasses.replace(rows[2], is_action=no_action, is_step_start=no_action)
    with pytest.raises(ValueError, match="row 2: is_action is False on every token after the first"):
        tiny_trainer(tiny_config(policy_folder, tmp_path), rows)
