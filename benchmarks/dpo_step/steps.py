"""One DPO training step, by trl's trainer and by this library's log-prob core: forward, loss, backward, AdamW.

All start from the same weights, which are the reference too, see the same batch and step with the same optimiser, so
losses and gradient norms agree step by step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from benchmarks.measure import Step
from posttrain.models.logprobs import score_chosen
from posttrain.models.policy import frozen_copy

BETA = 0.1  # trl's default
LEARNING_RATE = 1e-5
CHUNK = 128
N_PROMPT = 48
COMPLETIONS = (48, 112)  # shortest and longest, tokens
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Case:
    n_vocabulary: int
    width: int
    n_layers: int
    n_pairs: int
    is_bf16: bool  # autocast on float32 weights, as trl's `bf16`


@dataclass(frozen=True, slots=True)
class Batch:
    input_ids: Tensor  # [2P, L] chosen answers, then rejected ones
    is_token: Tensor  # [2P, L] bool
    is_action: Tensor  # [2P, T] bool


def make_policy(case: Case) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.n_vocabulary,
        hidden_size=case.width,
        intermediate_size=3 * case.width,
        num_hidden_layers=case.n_layers,
        num_attention_heads=case.width // 64,
        num_key_value_heads=case.width // 64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def make_pairs(case: Case) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(3, case.n_vocabulary, (n,), generator=generator).tolist()

    def answer() -> list[int]:
        return ids(int(torch.randint(COMPLETIONS[0], COMPLETIONS[1] + 1, (), generator=generator)))

    return [
        {"prompt_ids": ids(N_PROMPT), "chosen_ids": answer(), "rejected_ids": answer()} for _ in range(case.n_pairs)
    ]


def trl_step(case: Case, folder: Path, *, is_best: bool) -> Step:
    """trl at its defaults (live reference, gradient checkpointing), or with neither: log-probs cached beforehand."""
    settings = {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if is_best else {}
    config = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=case.n_pairs,
        bf16=case.is_bf16,
        use_cpu=True,
        learning_rate=LEARNING_RATE,
        report_to="none",
        **settings,
    )
    policy = make_policy(case)
    trainer = TrainerOnIds(
        model=policy,
        ref_model=None if is_best else frozen_copy(policy),
        args=config,
        train_dataset=Dataset.from_list(make_pairs(case)),
        processing_class=_tokenizer(),
    )
    if config.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable()
    model = trainer.accelerator.prepare_model(trainer.model).train()
    optimizer = trainer.create_optimizer()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(case.n_pairs)])

    def loss() -> Tensor:
        return trainer.compute_loss(model, inputs)

    return _stepping(loss, trainer.model, optimizer)


class TrainerOnIds(DPOTrainer):
    """trl's trainer on rows of token ids, which its tokenisation would not take."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def our_step(case: Case, *, is_reference_cached: bool) -> Step:
    """Concatenated forward, log-probs of completion tokens alone; the reference live or scored once beforehand."""
    policy, batch = make_policy(case), collate(make_pairs(case))
    if is_reference_cached:
        with torch.no_grad():
            cached, reference = answer_logp(policy, batch, is_bf16=case.is_bf16), None
    else:
        cached, reference = None, frozen_copy(policy)
    optimizer = torch.optim.AdamW(policy.train().parameters(), lr=LEARNING_RATE, fused=True)

    def loss() -> Tensor:
        logp = answer_logp(policy, batch, is_bf16=case.is_bf16)
        with torch.no_grad():
            ref_logp = cached if reference is None else answer_logp(reference, batch, is_bf16=case.is_bf16)
        chosen, rejected = (logp - ref_logp).chunk(2)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return _stepping(loss, policy, optimizer)


def answer_logp(model: LlamaForCausalLM, batch: Batch, *, is_bf16: bool) -> Tensor:
    """[2P] Σ log π over the tokens of each answer."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if is_bf16 else contextlib.nullcontext()
    with autocast:
        trunk = model.get_decoder()
        hidden = trunk(batch.input_ids, attention_mask=batch.is_token.long(), use_cache=False).last_hidden_state
        actions = batch.input_ids[:, 1:][batch.is_action]
        head = model.get_output_embeddings()
        logp = score_chosen(hidden[:, :-1][batch.is_action], head, actions, chunk_size=CHUNK).logp
    return torch.zeros(batch.is_action.shape).masked_scatter(batch.is_action, logp).sum(-1)


def collate(pairs: list[dict[str, list[int]]]) -> Batch:
    rows = [pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    length = max(map(len, rows))
    input_ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    is_token = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return Batch(input_ids, is_token, is_token[:, 1:] & (torch.arange(length - 1) >= N_PROMPT - 1))


def _stepping(loss: Callable[[], Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> dict[str, float]:
        value = loss()
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": value.item(), "grad_norm": norm.item()}

    return step


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<pad>": PAD, "<s>": BOS, "</s>": EOS}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
