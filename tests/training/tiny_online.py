"""Online policy gradients on the tiny Llama of tiny_oreo; a sample earns the share of its tokens with an even id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.models.policy import frozen_copy, load_policy
from posttrain.models.policy_and_reference import PolicyAndReference
from posttrain.pretrained import load_tokenizer
from posttrain.training.online_config import OnlineConfig
from posttrain.training.online_groups import Graded, SampleReward
from posttrain.training.online_prompts import OnlinePrompt
from posttrain.training.online_trainer import OnlineTrainer

PROMPTS = [OnlinePrompt(text, text.split()[0]) for text in ("t5", "t5 t6", "t5 t9 t7", "t8", "t8 t4 t4 t4", "t8 t5")]


def even_share(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Graded]:
    shares = [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completions]
    return [
        Graded(share, {"reward/even": share, f"reward/even/{prompt.split()[0]}": share})
        for share, prompt in zip(shares, prompts, strict=True)
    ]


def online_config(policy: Path, output_dir: Path, **changes: Any) -> OnlineConfig:
    """A short run on the CPU that logs every step and saves nothing by itself."""
    settings: dict[str, Any] = {
        "model": str(policy),
        "output_dir": str(output_dir),
        "rounds": 3,
        "samples_per_prompt": 4,
        "per_device_train_batch_size": 4,
        "alpha": 0.1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
        "lr_scheduler_type": "constant",
    }
    return OnlineConfig(**{**settings, **changes})


def online_trainer(config: OnlineConfig, reward: SampleReward = even_share) -> OnlineTrainer:
    policy = load_policy(config.model, dtype=getattr(torch, config.dtype))
    return OnlineTrainer(
        PolicyAndReference(policy, frozen_copy(policy), chunk_size=config.log_prob_chunk_size),
        config,
        prompts=PROMPTS,
        reward=reward,
        max_new_tokens=5,
        tokenizer=load_tokenizer(config.model),
    )
