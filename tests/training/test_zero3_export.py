"""What ZeRO-3 writes on two processes, read back: our loaders, transformers and vLLM say what the shards said."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.models.actor_critic import ActorCritic
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.schema import TokenBatch
from posttrain.training.checkpoint import verify_checkpoint
from tests.training.tiny_oreo import write_policy
from tests.training.zero3_export_run import N_STEPS, PROBES, ROLES, probe_batch
from tests.training.zero3_export_vllm import N_NEW_TOKENS
from tests.vllm_process import IN_PROCESS, results_of, skip_without_vllm

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = f"checkpoint-{N_STEPS}"
# The same float32 weights through the same operations. A merged adapter replaces x Wᵀ + (x Aᵀ) Bᵀ by x (W + BA)ᵀ,
# which rounds otherwise; log-probabilities down to -10 and values near 1 then differ by some units of 1e-6.
ATOL = 1e-5
VLLM_ATOL = 1e-4  # vLLM's kernels sum in another order; see test_vllm_engine


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<role>/checkpoint-N and <role>/live.json of runs under ZeRO-3 on two processes."""
    for package in ("deepspeed", "peft"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install posttrain[{package}]")
    policy = write_policy(tmp_path_factory.mktemp("policy"), hidden_size=64)  # heads of 32, the least that vLLM takes
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/zero3.yaml"]
    command += ["--main_process_port", str(_free_port()), "-m", "tests.training.zero3_export_run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [*command, str(policy), str(folder)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for role in ROLES:
        verify_checkpoint(folder / role / CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def by_vllm(trained: Path) -> dict[str, Any]:
    skip_without_vllm()
    values = [str(trained / role / CHECKPOINT / "value") for role in ROLES]
    policy = str(trained / "separate" / CHECKPOINT / "policy")
    module = "tests.training.zero3_export_vllm"
    return results_of(module, trained / "vllm.json", policy, *values, timeout=840, env=IN_PROCESS)


@pytest.mark.parametrize("role", ROLES)
def test_run_folder_holds_the_networks_of_the_last_checkpoint(trained: Path, role: str) -> None:
    files = [file for network in ("policy", "value") for file in (trained / role / network).rglob("*.safetensors")]
    assert len(files) == (3 if role == "lora" else 2)
    for file in files:
        saved = trained / role / CHECKPOINT / file.relative_to(trained / role)
        assert file.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("role", ROLES)
def test_our_loaders_give_in_one_process_what_the_shards_gave(trained: Path, role: str) -> None:
    folder = trained / role / CHECKPOINT
    policy = load_policy(folder / "policy", dtype=torch.float32)
    value = load_value_model(folder / "value", dtype=torch.float32)
    reference = load_policy(folder / "policy", dtype=torch.float32)
    batch = TokenBatch(**probe_batch())
    with torch.no_grad():
        found = ActorCritic(policy, value, reference, chunk_size=64).eval()(
            input_ids=batch.input_ids, is_token=batch.is_token, is_action=batch.is_action
        )
    live = _live(trained, role)
    for row, probe in enumerate(PROBES):
        _assert_near(found["logp"][row][batch.is_action[row]], live["logp"][row], ATOL)
        _assert_near(found["value"][row][: len(probe.input_ids) - 1], live["value"][row], ATOL)


@pytest.mark.parametrize("role", ROLES)
def test_transformers_gives_what_the_shards_gave(trained: Path, role: str) -> None:
    folder = trained / role / CHECKPOINT
    policy, report = AutoModelForCausalLM.from_pretrained(folder / "policy", output_loading_info=True)
    classifier, value_report = AutoModelForSequenceClassification.from_pretrained(
        folder / "value", output_loading_info=True
    )
    for loaded in (report, value_report):
        assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    live = _live(trained, role)
    assert max(abs(v) for row in live["value"] for v in row) > 0.1  # trained: no longer the zero head
    for row, probe in enumerate(PROBES):
        dense = _log_pi(policy, probe.input_ids)
        actions = [t for t, is_action in enumerate(probe.is_action) if is_action]
        _assert_near(torch.stack([dense[t - 1, probe.input_ids[t]] for t in actions]), live["logp"][row], ATOL)
        with torch.no_grad():
            prefixes = [torch.tensor([probe.input_ids[:end]]) for end in range(1, len(probe.input_ids))]
            values = torch.cat([classifier(ids, attention_mask=torch.ones_like(ids)).logits[0] for ids in prefixes])
        _assert_near(values, live["value"][row], ATOL)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_serves_the_policy_with_the_log_probabilities_of_transformers(
    trained: Path, by_vllm: dict[str, Any]
) -> None:
    policy = AutoModelForCausalLM.from_pretrained(trained / "separate" / CHECKPOINT / "policy")
    for answer in by_vllm["answers"]:
        prompt, token_ids = answer["prompt"], answer["token_ids"]
        dense = _log_pi(policy, [*prompt, *token_ids])[len(prompt) - 1 : -1]
        chosen = dense[torch.arange(len(token_ids)), token_ids]
        _assert_near(torch.tensor(answer["logp"]), chosen.tolist(), VLLM_ATOL)
        assert (dense.max(-1).values - chosen).max() < VLLM_ATOL  # greedy: no other token was likelier
    assert sum(len(answer["token_ids"]) for answer in by_vllm["answers"]) > N_NEW_TOKENS


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ROLES)
def test_vllm_serves_the_value_model_as_a_classifier_with_the_values_of_the_shards(
    trained: Path, by_vllm: dict[str, Any], role: str
) -> None:
    found = by_vllm["values"][str(trained / role / CHECKPOINT / "value")]
    for values, expected in zip(found, _live(trained, role)["value"], strict=True):
        _assert_near(torch.tensor(values), expected, VLLM_ATOL)


def _live(trained: Path, role: str) -> dict[str, list[list[float]]]:
    return json.loads((trained / role / "live.json").read_text())


def _log_pi(policy: torch.nn.Module, ids: Any) -> torch.Tensor:
    """log π of the whole vocabulary after each of `ids`, [T, V]."""
    with torch.no_grad():
        return torch.log_softmax(policy(torch.tensor([list(ids)])).logits[0].float(), dim=-1)


def _assert_near(found: torch.Tensor, expected: list[float], atol: float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=atol)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
