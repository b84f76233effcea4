"""The one trainer of the language-model objectives: `forward` owns the networks, `objective` the maths, this the step.

A step minimises  Σ_k coef_k · sum(value_k) / counts[unit_k]  with counts taken over all micro-batches and ranks of the
step before its first forward pass. So the gradient does not depend on how a batch is split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from posttrain.data.collate import EncodedDataset
from posttrain.losses import Counts, Objective, Term, total
from posttrain.training.averages import TermAverages
from posttrain.training.guards import FiniteGuard
from posttrain.training.kl_steering import KlSteering
from posttrain.training.kl_target import KlTarget
from posttrain.training.length_groups import LengthGroupedOrder
from posttrain.training.network_files import load_network, save_network
from posttrain.training.optimizer import (
    AdamWSettings,
    Network,
    NetworkGradients,
    TensorGradients,
    build_optimizer,
    build_scheduler,
    clip_scale,
    network_parameters,
)
from posttrain.training.safe_checkpointing import SafeCheckpointing

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]  # networks and batch in, the *Values dataclass of the objective out
CountUnits = Callable[[Batch], Mapping[str, float]]  # items of each unit that a micro-batch holds

NON_FINITE_FOLDER = "non_finite"  # under the run folder


class ObjectiveTrainer(SafeCheckpointing):
    """Trains the networks of `model`, which are its attributes, on an objective made of summed terms.

    Batches are dicts of tensors with a `row_id` [B]. Logs `loss` (what the steps minimised), `loss/<term>` for terms
    that carry a gradient and `<term>` for the others, each the exact average over all rows since the last log, and
    `<network>/grad_norm`, the norm before clipping in the last step.

    `kl_targets` are updated once per step with the exact average of the term that they are named after; the objective
    reads their coefficients. They travel with checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        forward: Forward,
        objective: Objective,
        count_units: CountUnits,
        networks: Sequence[Network],
        train_dataset: Dataset,
        data_collator: Callable[[Sequence[Any]], Batch],
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        kl_targets: Mapping[str, KlTarget] | None = None,
    ) -> None:
        _check_arguments(args)
        self.forward = forward
        self.objective = objective
        self.count_units = count_units
        self.networks = tuple(networks)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        _check_accelerator(self.accelerator)
        self._guard = FiniteGuard(Path(args.output_dir) / NON_FINITE_FOLDER, self.accelerator)
        self._averages = TermAverages()
        self._steering = KlSteering(kl_targets or {})
        self._counts: Counts = {}
        self._grad_norms: dict[str, float] = {}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the networks; transformers calls this once, before an engine takes the parameters over."""
        if self.optimizer is None:
            model = self.model if model is None else model
            settings = AdamWSettings(
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = build_optimizer(model, self.networks, settings, decayed=decayed)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The schedule of each network, from its first step on."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = build_scheduler(optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """The micro-batches of one step; counts their units over all ranks before any of them is used."""
        is_resuming = self._resumed_from is not None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.rows_of_step(batches)
        if is_resuming:
            self._steering.agree()
        self._counts = self._global_counts(batches)
        self._averages.add_counts(self._counts)
        self._steering.add_counts(self._counts)
        return batches, None

    def rows_of_step(self, batches: list[Batch]) -> list[Batch]:
        """What a step learns from, a micro-batch for each that was fetched: themselves. Where sampling comes in."""
        return batches

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """One micro-batch: forward, terms, backward; on the last one of a step also the guard and the clipping.

        Returns this rank's share of the loss times the number of ranks, whose mean over ranks is the loss.
        """
        model.train()
        batch = {name: tensor.to(self.args.device) for name, tensor in inputs.items()}
        with self.compute_loss_context_manager():
            terms = self.objective(self.forward(model, batch))
        self._guard.watch(batch, terms)
        self._averages.add_terms(terms)
        self._steering.add_terms(terms)
        # Every engine averages gradients over ranks; the counts are global already.
        loss = (total(terms, self._counts) + _dormant(terms)) * self.accelerator.num_processes
        self._backward(loss)
        return loss.detach()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, EncodedDataset):
            return super()._get_train_sampler(train_dataset)
        group_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedOrder(dataset.lengths, group_size=group_size, seed=seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages of the terms and the gradient norms of the last step to a training log."""
        if "loss" in logs:
            norms = {f"{name}/grad_norm": norm for name, norm in self._grad_norms.items()}
            joint = {"grad_norm": math.hypot(*self._grad_norms.values())}
            logs = {**logs, **joint, **self._averages.drain(self.accelerator), **norms}
        super().log(logs, start_time)

    def save_weights(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """One ordinary Hugging Face folder per trained network, tokenizer included."""
        model = self.accelerator.unwrap_model(self.model)
        state_dict = model.state_dict() if state_dict is None else state_dict
        for network in self.networks:
            save_network(folder / network.name, model, state_dict, name=network.name)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder / network.name)

    def progress(self) -> dict[str, float]:
        """The sums since the last log travel with a checkpoint, so that the next log is what it would have been."""
        return {**super().progress(), **self._averages.state(), **self._steering.state()}

    def restore_progress(self, progress: dict[str, float]) -> None:
        super().restore_progress(progress)
        self._averages.restore(progress)
        self._steering.restore(progress)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        for network in self.networks:
            load_network(Path(resume_from_checkpoint) / network.name, self.trained_model.get_submodule(network.name))

    def _backward(self, loss: Tensor) -> None:
        is_last = self.accelerator.sync_gradients
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            self.accelerator.backward(loss)
            if is_last:
                self._before_optimizer_step()
            return
        # accelerate's DeepSpeed wrapper steps inside its backward; here the two are apart, with the guard between.
        self.deepspeed_engine.set_gradient_accumulation_boundary(is_last)
        self.deepspeed_engine.backward(loss, scale_wrt_gas=False)
        if is_last:
            self._before_optimizer_step()
            self.deepspeed_engine.step()

    def _before_optimizer_step(self) -> None:
        gradients = self._gradients()
        self._grad_norms = gradients.norms()
        self._guard.check(self.state.global_step, self._grad_norms)
        for network in self.networks:
            factor = clip_scale(self._grad_norms[network.name], network.max_grad_norm)
            if factor < 1.0:
                gradients.scale(network.name, factor)
        self._steering.end_step(self.accelerator, self.state.global_step)

    def _gradients(self) -> NetworkGradients:
        parameters = network_parameters(self.model, self.networks)
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            return TensorGradients(parameters)
        from posttrain.training.zero import OwnedGradients, PartitionedGradients  # DeepSpeed is an optional dependency

        if self.deepspeed_engine.gradient_clipping() > 0:
            raise ValueError(
                "DeepSpeed's gradient_clipping clips all networks together: set it to 0 in its config file"
            )
        is_stage_3 = self.deepspeed_engine.zero_optimization_stage() == 3
        return PartitionedGradients(parameters) if is_stage_3 else OwnedGradients(parameters)

    def _global_counts(self, batches: Sequence[Batch]) -> Counts:
        local: Counter[str] = Counter()
        for batch in batches:
            local.update(self.count_units(batch))
        units = sorted(local)
        counted = torch.tensor([local[unit] for unit in units], dtype=torch.float64, device=self.args.device)
        return dict(zip(units, self.accelerator.reduce(counted, "sum").tolist(), strict=True))


def _dormant(terms: Sequence[Term]) -> Tensor | float:
    """0, but connected to the networks of terms with coefficient 0: DDP waits for the gradient of every parameter."""
    return sum((0.0 * term.value.sum() for term in terms if term.coef == 0.0 and term.value.requires_grad), start=0.0)


def _check_accelerator(accelerator: Accelerator) -> None:
    if accelerator.mixed_precision == "fp16":
        raise ValueError("mixed_precision is fp16, which scales the loss; use bf16 or no")
    if accelerator.num_processes > 1 and accelerator.distributed_type == DistributedType.NO:
        raise ValueError(
            f"{accelerator.num_processes} processes were started, but nothing would average their gradients: "
            "on a machine without GPU set use_cpu to true"
        )


def _check_arguments(args: TrainingArguments) -> None:
    if args.max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm is {args.max_grad_norm}, but each network is clipped on its own: "
            "set max_grad_norm to 0 and the clip norm of each network"
        )
    if args.remove_unused_columns:
        raise ValueError("remove_unused_columns drops masks and row ids before they are collated: set it to false")
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process would use DataParallel: start with `accelerate launch`")
