"""Every level of `posttrain oreo` at a soft optimum that is known, and one_step on its way to one.

Log-probabilities come from transformers' own forward, one row at a time, and share nothing with the trainer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from posttrain.data.collate import StateLevel
from posttrain.schema import EncodedTrajectory
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories, write_policy

BETA = 0.5


@torch.no_grad()
def next_logp(model: PreTrainedModel, prefix: tuple[int, ...]) -> Tensor:
    """[A] log-probabilities of the token after the prefix, float64."""
    return model(torch.tensor([prefix])).logits[0, -1].double().log_softmax(-1)


def moved_policy(folder: Path, moved: Path) -> Path:
    """The policy of `folder`, its weights shifted by a tenth of their spread."""
    policy = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    policy.save_pretrained(moved)
    for file in folder.glob("tokenizer*"):
        (moved / file.name).write_bytes(file.read_bytes())
    return moved


def with_optimal_reward(row: EncodedTrajectory, policy: PreTrainedModel, ref: PreTrainedModel) -> EncodedTrajectory:
    """The row with r_t = β ρ_t on each action: by D3 the policy is then the soft optimum, and V is 0 everywhere."""
    reward = [0.0] * len(row.input_ids)
    for j, token in enumerate(row.input_ids):
        if row.is_action[j]:
            logp, ref_logp = (next_logp(model, row.input_ids[:j])[token] for model in (policy, ref))
            reward[j] = BETA * (logp - ref_logp).item()
    return EncodedTrajectory(row.row_id, row.input_ids, row.is_action, row.is_step_start, tuple(reward))


@pytest.mark.parametrize("level", list(StateLevel))
def test_nothing_moves_at_the_soft_optimum(policy_folder: Path, tmp_path: Path, level: StateLevel) -> None:
    moved = moved_policy(policy_folder, tmp_path / "moved")
    policy, ref = (AutoModelForCausalLM.from_pretrained(folder).double().eval() for folder in (moved, policy_folder))
    optimal = [with_optimal_reward(row, policy, ref) for row in trajectories(8)]
    assert max(abs(r) for row in optimal for r in row.reward) > 0.1  # the policy is not the reference

    def first_step(rows: list[EncodedTrajectory]) -> dict[str, float]:
        config = tiny_config(
            moved,
            tmp_path / "run",
            reference=str(policy_folder),
            level=level,
            beta=BETA,
            alpha=0.0,
            dtype="float64",
            max_steps=1,
            per_device_train_batch_size=8,
        )
        trainer = tiny_trainer(config, rows)
        trainer.train()
        return step_logs(trainer)[0]

    # Rewards are float32 (6e-8 of numbers near 1): residuals are 1e-7, and gradients 2 β δ times a slope of order 10.
    at_optimum = first_step(optimal)
    assert at_optimum["loss/value"] < 1e-12
    assert at_optimum["loss/policy"] < 1e-12
    assert max(at_optimum["value/grad_norm"], at_optimum["policy/grad_norm"]) < 1e-5
    with_other_rewards = first_step(trajectories(8))
    assert min(with_other_rewards[f"{name}/grad_norm"] for name in ("value", "policy")) > 0.1


@pytest.mark.slow
def test_one_step_training_arrives_at_the_soft_optimum(tmp_path: Path) -> None:
    # All 31 answers of at most two tokens from a vocabulary of 6 with EOS = 2, one random reward each. The prompt has
    # two tokens: attention over copies of one token cannot count them, so "4" and "4 4" would be one state to a Llama.
    prompt, eos = (3, 4), 2
    folder = write_policy(tmp_path / "policy", n_tokens=6)
    outcome = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    answers = [(eos,), *((a, b) for a in range(6) if a != eos for b in range(6))]
    rows = []
    for row_id, answer in enumerate(answers):
        is_action = (False, False, *(True for _ in answer))
        reward = (*(0.0 for _ in is_action[1:]), outcome[answer[0], answer[-1]].item())
        rows.append(EncodedTrajectory(row_id, (*prompt, *answer), is_action, is_action, reward))

    ref = AutoModelForCausalLM.from_pretrained(folder).eval()
    first = next_logp(ref, prompt)
    second = torch.stack([next_logp(ref, (*prompt, a)) for a in range(6)])
    value = BETA * torch.logsumexp(second + outcome / BETA, -1)
    q = torch.where(torch.arange(6) == eos, outcome[eos, eos], value)
    best_first = (first + q / BETA).softmax(-1)
    best_second = (second + outcome / BETA).softmax(-1)

    config = tiny_config(
        folder,
        tmp_path / "run",
        level=StateLevel.ONE_STEP,
        beta=BETA,
        alpha=0.0,
        max_steps=240,
        per_device_train_batch_size=len(rows),
        policy_learning_rate=6e-3,
        value_learning_rate=6e-3,
        lr_scheduler_type="cosine",
    )
    trainer = tiny_trainer(config, rows)
    trainer.train()
    policy = trainer.model.policy.eval()
    distance = (next_logp(policy, prompt).exp() - best_first).abs().max().item()
    assert distance < 0.03
    assert (first.exp() - best_first).abs().max() > 0.3
    for a in (a for a in range(6) if a != eos):
        assert (next_logp(policy, (*prompt, a)).exp() - best_second[a]).abs().max() < 0.03, a
