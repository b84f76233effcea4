"""Implicit rewards of the reference's samples: against rows scored one by one, and Eq. 16 against enumeration."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from posttrain.data.sources import RowsError
from posttrain.schema import EncodedTrajectory
from posttrain.training.dpo import DpoBaselineConfig, train_dpo
from posttrain.training.metrics import METRICS, read_metrics
from posttrain.training.reference_samples import ReferenceSamples, read_reference_samples
from tests.training.char_model import ids_of, write_char_model

BETA = 0.3
EOS = 1
NAMES = tuple(f"rewards/reference_samples{end}" for end in ("", "_stderr", "_exact"))
ANSWERS = [(*ids_of("12"), EOS), (*ids_of("7"), EOS), (*ids_of("12+3"), EOS), ids_of("444")]  # the last one is cut


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_char_model(tmp_path_factory.mktemp("char_model"))


def load(folder: Path, *, noise: float = 0.0) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model


def encoded(answer, prompt: str = "6+6=") -> EncodedTrajectory:
    ids = (*ids_of(prompt), *answer)
    is_action = tuple(i >= len(prompt) for i in range(len(ids)))
    return EncodedTrajectory(0, ids, is_action, is_action, (0.0,) * len(ids))


@torch.no_grad()
def next_logp(model: LlamaForCausalLM, ids) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def test_measured_means_are_those_of_answers_scored_one_by_one(char_model):
    policy, reference = load(char_model, noise=0.2), load(char_model)
    returns, kls = [], []
    for answer in ANSWERS:
        h = kl = 0.0
        for t, token in enumerate(answer):
            prefix = [*ids_of("6+6="), *answer[:t]]
            own, others = next_logp(policy, prefix), next_logp(reference, prefix)
            h += (own[token] - others[token]).item()
            kl += (others.exp() * (others - own)).sum().item()
        returns.append(BETA * h)
        kls.append(BETA * kl)
    mean = sum(returns) / 4
    spread = math.sqrt(sum((h - mean) ** 2 for h in returns) / 3)
    samples = ReferenceSamples("made", [encoded(a) for a in ANSWERS], [None] * 4, beta=BETA, batch_size=3)
    found = samples.measure(policy, reference)
    # 1e-5: float32 in padded batches against float64 after single float32 forwards.
    assert found == pytest.approx(dict(zip(NAMES, (mean, spread / 2, -sum(kls) / 4), strict=True)), abs=1e-5)


def test_eq_16_holds_when_every_answer_counts_by_its_probability_under_the_reference(char_model):
    # All answers of two tokens, cut there: Σ_y π_ref(y) h(y) = −β KL(π_ref ‖ π). The state after the first token is
    # reached with π_ref(a), so weighting each measured answer by π_ref(y) is the expectation itself, without sampling.
    policy, reference = load(char_model, noise=0.2), load(char_model)
    n_tokens = reference.config.vocab_size
    prompt = ids_of("6+6=")
    after = {a: next_logp(reference, [*prompt, a]) for a in range(n_tokens)}
    first = next_logp(reference, prompt)
    by_chance = by_kl = 0.0
    for a, b in itertools.product(range(n_tokens), repeat=2):
        pair = ReferenceSamples("made", [encoded((a, b))] * 2, [None] * 2, beta=BETA, batch_size=2)
        found = pair.measure(policy, reference)
        p = math.exp(first[a].item() + after[a][b].item())
        by_chance += p * found[NAMES[0]]
        by_kl += p * found[NAMES[2]]
    assert by_chance == pytest.approx(by_kl, abs=1e-6)
    assert by_kl < -0.001  # far from 0, beside which any two numbers would agree


def test_a_policy_that_is_its_reference_has_reward_0(char_model):
    samples = ReferenceSamples("made", [encoded(a) for a in ANSWERS], [None] * 4, beta=BETA, batch_size=2)
    assert samples.measure(load(char_model), load(char_model)) == dict.fromkeys(NAMES, 0.0)


def write_rows(path: Path, model: LlamaForCausalLM, *, off: float = 0.0) -> Path:
    """Four rows as `collect` writes them, with the reference's log-probabilities, `off` by some nats."""
    rows: list[dict[str, Any]] = []
    for number, answer in enumerate(ANSWERS):
        ids = [*ids_of("6+6="), *answer]
        logp = [next_logp(model, ids[:t])[ids[t]].item() + off for t in range(4, len(ids))]
        row = {"task_id": str(number), "prompt": "6+6=", "input_ids": ids, "action_spans": [[4, len(ids)]]}
        reason = "stop" if answer[-1] == EOS else "length"
        rows.append({**row, "reward": 0.0, "finish_reason": reason, "behavior_logp": logp})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dpo_config(model: Path, folder: Path, samples: Path, **changes: Any) -> DpoBaselineConfig:
    pairs = folder / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}) + "\n")
    settings = {
        "model": str(model),
        "train_data": [str(pairs)],
        "track_reference_samples": str(samples),
        "output_dir": str(folder / "run"),
        "beta": BETA,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DpoBaselineConfig(**(settings | changes))


def test_dpo_logs_them_at_every_logging_step_with_the_weights_of_that_step(char_model, tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", load(char_model))
    run_dir = train_dpo(dpo_config(char_model, tmp_path, samples))
    logs = [row for row in read_metrics(run_dir / METRICS) if "loss" in row]
    assert [row["step"] for row in logs] == [2, 4]
    assert all(row["rewards/reference_samples_exact"] < -1e-4 for row in logs)
    again = ReferenceSamples("made", [encoded(a) for a in ANSWERS], [None] * 4, beta=BETA, batch_size=4)
    last = again.measure(load(run_dir), load(char_model))
    assert {name: logs[-1][name] for name in NAMES} == pytest.approx(last, abs=1e-6)
    assert str(samples) in json.loads((run_dir / "run.json").read_text())["data_sha256"]


def test_samples_of_another_model_are_refused_at_the_first_log(char_model, tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", load(char_model), off=-0.5)
    with pytest.raises(RowsError, match=r"are 0\.50 nats per token from the reference's, at most 0\.1 expected"):
        train_dpo(dpo_config(char_model, tmp_path, samples))


def test_samples_of_a_sharpened_or_cut_reference_are_refused_when_read(char_model, tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", load(char_model))
    run = {"temperature": 0.7, "top_p": 1.0, "top_k": 0}
    (tmp_path / "samples.summary.json").write_text(json.dumps({"is_complete": False, "run": run}))
    with pytest.raises(RowsError, match=r"was sampled with \{'temperature': 0\.7\}, needed"):
        train_dpo(dpo_config(char_model, tmp_path, samples))


def test_a_reference_that_moves_is_refused_beside_fixed_samples(char_model, tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", load(char_model))
    with pytest.raises(ValueError, match="sync_ref_model moves the reference while track_reference_samples follows"):
        dpo_config(char_model, tmp_path, samples, sync_ref_model=True)


def test_one_sample_is_refused_since_it_has_no_standard_error(char_model, tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", load(char_model))
    samples.write_text(samples.read_text().splitlines()[0] + "\n")
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    with pytest.raises(ValueError, match="1 samples of the reference, needed 2 or more"):
        read_reference_samples(str(samples), tokenizer, beta=BETA, max_length=64, batch_size=2)
