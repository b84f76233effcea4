"""Policy gradients that sample while they train: each round draws groups from the policy as it is, and learns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.losses import Counts, Objective, grpo, grpo_token_mean, kl_ref_k3, kl_rollout, reinforce
from posttrain.models.policy_and_reference import PolicyAndReference
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.schema import RolloutValues
from posttrain.training.online_config import KlTo, OnlineConfig, PolicyObjective
from posttrain.training.online_groups import (
    LEARNED_FROM,
    AskedPrompt,
    Group,
    GroupSampler,
    SampleReward,
    advantages,
    rollout_batch,
)
from posttrain.training.online_prompts import OnlinePrompt, PromptOrder, StepSlots, collate_slots
from posttrain.training.optimizer import Network
from posttrain.training.oreo import pad_id
from posttrain.training.sample_averages import SampleAverages
from posttrain.training.trainer import Batch, ObjectiveTrainer

SAMPLED_KL = {KlTo.REF_K3: kl_ref_k3, KlTo.ROLLOUT: kl_rollout}


class OnlineTrainer(ObjectiveTrainer):
    """Each round: prompts, G samples of each from the current policy, rewards, advantages, then optimiser steps.

    A group stays whole: on one rank, in one micro-batch. Beside what ObjectiveTrainer logs: the averages of the
    reward's metrics over all samples, and `reward/even_groups`, the share of groups whose samples all earned the same.
    """

    def __init__(
        self,
        model: PolicyAndReference,
        config: OnlineConfig,
        *,
        prompts: Sequence[OnlinePrompt],
        reward: SampleReward,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """`reward` grades token ids; `max_new_tokens` is the length at which a sample without EOS ends."""
        self.config = config
        self.prompts = tuple(prompts)
        self._order = PromptOrder(self.prompts, seed=config.seed)
        self._prompts_per_round = (
            config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
        )
        self._sampled = SampleAverages()
        self._round: list[Batch] = []
        super().__init__(
            model,
            config,
            forward=forward,
            objective=objective_of(config),
            count_units=count_units,
            networks=(Network("policy", config.learning_rate, config.policy_max_grad_norm),),
            train_dataset=StepSlots(
                n_rounds=config.rounds,
                prompts_per_round=self._prompts_per_round,
                updates_per_round=config.updates_per_round,
            ),
            data_collator=collate_slots,
            processing_class=tokenizer,
        )
        _require_whole_weights(self)
        engine = TransformersEngine(model.policy, tokenizer, batch_size=config.sample_batch_size, device=config.device)
        self._sampler = GroupSampler(engine, reward, config.samples_per_prompt, max_new_tokens, config.seed)
        self._pad_id = pad_id(tokenizer)

    def rows_of_step(self, batches: list[Batch]) -> list[Batch]:
        """The samples for the prompts in `batches`, micro-batch by micro-batch; drawn in the round's first update."""
        round, update = divmod(self.state.global_step, self.config.updates_per_round)
        if update == 0:
            self._round = self._sample_round(round, batches)
        if not self._round:
            raise ValueError(
                f"step {self.state.global_step} is update {update} on the samples of round {round}, which are not "
                "here: resume from a checkpoint whose step is a multiple of updates_per_round"
            )
        return self._round

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages of the samples' metrics to a training log."""
        super().log({**logs, **self._sampled.drain()} if "loss" in logs else logs, start_time)

    def progress(self) -> dict[str, float]:
        return {**super().progress(), **self._sampled.state()}

    def restore_progress(self, progress: dict[str, float]) -> None:
        super().restore_progress(progress)
        self._sampled.restore(progress)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _global_counts(self, batches: Sequence[Batch]) -> Counts:
        # 0 when every group of a round is even and skipped: a step without a gradient, and not an error.
        return {unit: max(1.0, n_items) for unit, n_items in super()._global_counts(batches).items()}

    def _sample_round(self, round: int, batches: Sequence[Batch]) -> list[Batch]:
        groups = self._sampler.draw([self._asked(slot) for batch in batches for slot in batch["slot"]], round=round)
        # Of the first draw alone: samples drawn anew are of a choice of prompts, and would not measure the policy.
        self._sampled.add(grade.metrics for group in groups for grade in group.grades)
        self._sampled.add({"reward/even_groups": float(group.is_even)} for group in groups)
        groups = self._sampler.redraw_even(groups, round=round, n_tries=self.config.resample_tries)
        advantage = advantages(groups, baseline=self.config.baseline, scale=self.config.advantage_scale)
        is_learned = LEARNED_FROM[self.config.even_groups](groups)
        n_prompts = [len(batch["slot"]) for batch in batches]
        n_rows = [n * self.config.samples_per_prompt for n in n_prompts]
        parts = zip(_split(groups, n_prompts), advantage.split(n_rows), is_learned.split(n_rows), strict=True)
        return [rollout_batch(*part, pad_id=self._pad_id) for part in parts]

    def _asked(self, slot: Tensor) -> AskedPrompt:
        prompt = self.prompts[self._order.at(int(slot))]
        assert self.processing_class is not None
        ids = encode_prompt(prompt.text, self.processing_class)
        return AskedPrompt(int(slot) % self._prompts_per_round, prompt.text, tuple(ids))


def forward(model: nn.Module, batch: Batch) -> RolloutValues:
    """What the networks say of a batch of samples."""
    scored = model(**{name: batch[name] for name in ("input_ids", "is_token", "is_action")})
    return RolloutValues(
        **scored,
        behavior_logp=batch["behavior_logp"],
        advantage=batch["advantage"][:, None].expand_as(batch["behavior_logp"]),
        is_action=batch["is_action"],
    )


def objective_of(config: OnlineConfig) -> Objective:
    """The config's policy gradient with its KL; the exact KL to the reference is measured in any case."""
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    policy_gradient = {
        PolicyObjective.REINFORCE: reinforce,
        PolicyObjective.GRPO: partial(grpo, **clip),
        PolicyObjective.GRPO_TOKEN_MEAN: partial(grpo_token_mean, **clip),
    }[config.objective]
    if config.kl is KlTo.REF:
        return partial(policy_gradient, alpha=config.alpha)
    sampled_kl = SAMPLED_KL[config.kl]
    return lambda v: (*policy_gradient(v, alpha=0.0), *sampled_kl(v, alpha=config.alpha))


def count_units(batch: Batch) -> dict[str, float]:
    """Samples that are learned from, and their actions."""
    is_action = batch["is_action"]
    return {"sequence": int(is_action.any(-1).sum()), "token": int(is_action.sum())}


def _split(groups: Sequence[Group], sizes: Sequence[int]) -> list[Sequence[Group]]:
    ends = list(accumulate(sizes))
    return [groups[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _require_whole_weights(trainer: OnlineTrainer) -> None:
    """Raises ValueError where an engine shards the weights: the sampler runs the policy outside of the engine."""
    deepspeed = trainer.accelerator.state.deepspeed_plugin
    is_zero3 = deepspeed is not None and deepspeed.zero_stage == 3
    if trainer.is_fsdp_enabled or is_zero3:
        raise ValueError(
            "the weights would be sharded over processes, but every process samples from a whole policy: launch with "
            "plain data parallelism (launch/accelerate/ddp.yaml) or ZeRO stage 1 or 2"
        )
