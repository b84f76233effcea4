"""A Llama of 2 layers and random trajectories: small enough to train in a second, real in every part."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.schema import EncodedTrajectory
from posttrain.training.oreo import CACHED_COLUMNS, build_trainer
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.oreo_networks import load_networks
from posttrain.training.reference_scoring import prepare_reference_cache
from posttrain.training.trainer import ObjectiveTrainer

N_TOKENS = 40


def write_policy(folder: Path, *, hidden_size: int = 32, n_tokens: int = N_TOKENS) -> Path:
    """A policy with tied embeddings, as SmolLM2 has, and its tokenizer, as a Hugging Face folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,  # far from uniform, so that a mistake shows in the loss
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {f"t{index}": index for index in range(n_tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="t0", bos_token="t1", eos_token="t2", unk_token="t3"
    ).save_pretrained(folder)
    return folder


def trajectories(n_rows: int, *, seed: int = 0, poisoned_row: int | None = None) -> list[EncodedTrajectory]:
    """Rows of 4 to 14 tokens whose prompt is 1 to 3 tokens long; reward 0 or 1 on the last action, NaN if poisoned."""
    rng = random.Random(seed)
    rows = []
    for row_id in range(n_rows):
        n_prompt, n_actions = rng.randint(1, 3), rng.randint(3, 11)
        length = n_prompt + n_actions
        step_starts = {n_prompt, *(j for j in range(n_prompt, length) if rng.random() < 0.3)}
        reward = float(rng.random() < 0.5) if row_id != poisoned_row else math.nan
        rows.append(
            EncodedTrajectory(
                row_id=row_id,
                input_ids=tuple(rng.randrange(4, N_TOKENS) for _ in range(length)),
                is_action=tuple(j >= n_prompt for j in range(length)),
                is_step_start=tuple(j in step_starts for j in range(length)),
                reward=(0.0,) * (length - 1) + (reward,),
            )
        )
    return rows


def tiny_config(policy: Path, output_dir: Path, **changes: Any) -> OreoConfig:
    """A short run on the CPU that logs every step and saves nothing by itself."""
    settings: dict[str, Any] = {
        "model": str(policy),
        "train_data": ["not read here"],
        "output_dir": str(output_dir),
        "beta": 0.3,
        "alpha": 0.1,
        "policy_learning_rate": 1e-2,
        "value_learning_rate": 2e-2,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
        "lr_scheduler_type": "constant",
    }
    return OreoConfig(**{**settings, **changes})


def tiny_trainer(config: OreoConfig, rows: list[EncodedTrajectory]) -> ObjectiveTrainer:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config.model)
    cache = None
    if config.reference_from in CACHED_COLUMNS:
        cache = prepare_reference_cache(config, rows, tokenizer, rows_per_shard=5)
    return build_trainer(config, load_networks(config, cache), rows, tokenizer, cache)


def step_logs(trainer: ObjectiveTrainer) -> list[dict[str, float]]:
    """What was logged at each step, without the summary at the end."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
