"""`posttrain oreo`: a policy and its value function from offline rows with rewards (arXiv 2412.16145 v2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.audit import Audit, prepare
from posttrain.data.collate import EncodedDataset, StateLevel, collate
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import read_rows
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.losses import Term, kl_from_reference, oreo_one_step, oreo_response, oreo_step, oreo_token
from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.reference import ReferenceFrom
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import write_run_card
from posttrain.schema import EncodedTrajectory, TokenBatch, TokenValues
from posttrain.training.kl_target import KlTarget
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.optimizer import Network
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.oreo_networks import load_networks
from posttrain.training.reference_cache import ReferenceCache
from posttrain.training.reference_scoring import collate_with_cache, prepare_reference_cache
from posttrain.training.trainer import ObjectiveTrainer

CACHED_COLUMNS = {ReferenceFrom.CACHED_LOG_PROBS: "ref_logp", ReferenceFrom.CACHED_HIDDEN: "ref_hidden"}
OBJECTIVES = {
    StateLevel.TOKEN: oreo_token,
    StateLevel.STEP: oreo_step,
    StateLevel.RESPONSE: oreo_response,
    StateLevel.ONE_STEP: oreo_one_step,
}


def train_oreo(config: OreoConfig) -> Path:
    """Run OREO as the config says; the returned run folder holds `policy/` and `value/` as Hugging Face folders.

    Prints what became of the rows before anything is loaded. Raises RowsError for data that cannot be used and
    NonFiniteError when a loss or gradient is NaN or Inf.
    """
    run_dir = Path(config.output_dir)
    tokenizer = load_tokenizer(config.model)
    for name, path in (("reference", config.reference), ("value model", config.value_model)):
        if path is not None:
            require_same_tokens(tokenizer, path, name)
    encoded, audits = read_trajectories(config, tokenizer)
    if config.process_index == 0:
        for audit in audits:
            print(audit.table())
        write_run_card(run_dir, config.to_dict(), {audit.source: audit.sha256 for audit in audits})
    cache = prepare_reference_cache(config, encoded, tokenizer) if config.reference_from in CACHED_COLUMNS else None
    trainer = build_trainer(config, load_networks(config, cache), encoded, tokenizer, cache)
    trainer.add_callback(MetricsFile())
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    return run_dir


def read_trajectories(
    config: OreoConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedTrajectory], list[Audit]]:
    """The rows of all sources in order, numbered through, and the account of each source."""
    encoded: list[EncodedTrajectory] = []
    audits: list[Audit] = []
    for source in config.train_data:
        prepared = prepare(
            read_rows(source, parse_trajectory, on_bad_row=config.on_bad_row),
            tokenizer,
            max_length=config.max_length,
            step_delimiters=config.step_delimiters,
            max_dropped_fraction=config.max_dropped_fraction,
        )
        n_before = sum(audit.n_read - audit.n_bad for audit in audits)
        encoded += [dataclasses.replace(row, row_id=n_before + row.row_id) for row in prepared.encoded]
        audits.append(prepared.audit)
    return encoded, audits


def build_trainer(
    config: OreoConfig,
    model: ActorCritic,
    encoded: Sequence[EncodedTrajectory],
    tokenizer: PreTrainedTokenizerBase,
    cache: ReferenceCache | None = None,
) -> ObjectiveTrainer:
    """The trainer of one OREO run; `encoded` holds the rewards of the data, before the config's reward map.

    `cache` holds what a cached reference says about these rows.
    """
    policy_start = config.value_warmup_steps
    rows = [map_reward(row, config.reward_map) for row in EncodedDataset(encoded).rows]
    collator = partial(collate, pad_id=pad_id(tokenizer), states=config.level)
    if cache is not None:
        column = CACHED_COLUMNS[config.reference_from]
        collator = partial(collate_with_cache, collate_rows=collator, cache=cache, column=column)
    kl_target = _kl_target(config)
    return ObjectiveTrainer(
        model,
        config,
        forward=forward,
        objective=partial(objective, config=config, kl_target=kl_target),
        count_units=count_sequences,
        networks=(
            Network("policy", config.policy_learning_rate, config.policy_max_grad_norm, start_step=policy_start),
            Network("value", config.value_learning_rate, config.value_max_grad_norm),
        ),
        train_dataset=EncodedDataset(rows),
        data_collator=collator,
        processing_class=tokenizer,
        kl_targets=None if kl_target is None else {"kl_ref": kl_target},
    )


def objective(values: TokenValues, *, config: OreoConfig, kl_target: KlTarget | None = None) -> tuple[Term, ...]:
    """OREO at the config's level and, where it has a weight, the exact KL(reference || policy).

    With `kl_target` its coefficient stands in for alpha and is logged.
    """
    alpha = config.alpha if kl_target is None else kl_target.coefficient
    terms = OBJECTIVES[config.level](values, beta=config.beta, alpha=alpha)
    if config.alpha_forward > 0:
        terms = (*terms, *kl_from_reference(values, alpha=config.alpha_forward))
    if kl_target is not None:
        per_row = values.reward.new_full((len(values.reward),), alpha)
        terms = (*terms, Term("kl_coefficient", per_row, "sequence", coef=0.0))
    return terms


def _kl_target(config: OreoConfig) -> KlTarget | None:
    if config.kl_target is None:
        return None
    return KlTarget(
        target=config.kl_target,
        coefficient=config.alpha,
        rate=config.kl_target_rate / config.kl_target,
        start_step=config.value_warmup_steps,
    )


def forward(model: nn.Module, batch: dict[str, Tensor]) -> TokenValues:
    """What the networks say about a collated batch."""
    return token_values(model, TokenBatch(**batch))


def count_sequences(batch: dict[str, Tensor]) -> dict[str, float]:
    """OREO averages over sequences, each of them a mean over its states."""
    return {"sequence": len(batch["row_id"])}


def map_reward(row: EncodedTrajectory, reward_map: tuple[float, float]) -> EncodedTrajectory:
    """scale · R + shift for the reward R of the whole row; the shift falls on the last action."""
    scale, shift = reward_map
    reward = [scale * r for r in row.reward]
    reward[max(index for index, is_action in enumerate(row.is_action) if is_action)] += shift
    return dataclasses.replace(row, reward=tuple(reward))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do, since padding is masked everywhere; tokenizers without a pad token give EOS, or 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0
