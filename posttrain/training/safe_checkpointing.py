"""transformers' Trainer with checkpoints that survive a SIGKILL at any moment and hold no pickle."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import (
    broadcast_object_list,
    is_peft_model,
    load_fsdp_optimizer,
    save_fsdp_model,
    save_fsdp_optimizer,
)
from torch import nn
from transformers import Trainer
from transformers.integrations.fsdp import get_fsdp_ckpt_kwargs
from transformers.trainer import TRAINER_STATE_NAME

from posttrain.provenance import write_json
from posttrain.training.checkpoint import (
    begin_checkpoint,
    commit_checkpoint,
    latest_complete_checkpoint,
    rotate_checkpoints,
    staging_folder,
    verify_checkpoint,
)
from posttrain.training.lost_process import naming_lost_processes
from posttrain.training.training_state import (
    load_optimizer,
    load_rng_state,
    load_scheduler,
    save_optimizer,
    save_rng_state,
    save_scheduler,
)

LATEST = "latest"

logger = logging.getLogger(__name__)


class SafeCheckpointing(Trainer):
    """A Trainer whose `checkpoint-N` is complete or absent, and whose resumed run equals the unbroken one.

    Subclass it alone, or before another Trainer: `class SafeSft(SafeCheckpointing, SFTTrainer)`. A model that is no
    PreTrainedModel overrides `save_weights` and `_load_from_checkpoint`; a trainer that sums its own metrics between
    two logs extends `progress` and `restore_progress`.

    Under DeepSpeed and FSDP the engine writes its sharded optimiser state in the engine's own format; it is covered
    by the same manifest. With several nodes the run folder must be shared, or `save_on_each_node` set.
    """

    _staging: Path | None = None  # the folder being filled, while a checkpoint is written
    _resumed_from: Path | None = None  # until its progress has been taken up

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the start or from a checkpoint that is verified first.

        `resume_from_checkpoint` is a folder; True for the newest complete one (ValueError when there is none); or
        "latest" for the newest complete one or, when there is none, the start. Raises LostProcessError when another
        process of a distributed run is gone.
        """
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self._resumed_from = None if checkpoint is None else Path(checkpoint)
        with naming_lost_processes(Path(self.args.output_dir)):
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one step; before the first of a resumed run, what was summed up is restored."""
        if self._resumed_from is not None:
            saved = self._resumed_from / f"progress_{self.args.process_index}.json"
            if saved.is_file():  # absent on ranks that the saved run did not have
                self.restore_progress(json.loads(saved.read_text()))
            self._resumed_from = None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    @property
    def trained_model(self) -> nn.Module:
        """`model`, which transformers types as optional because a sweep may set it late."""
        if self.model is None:
            raise RuntimeError("there is no model yet: it was asked for before model_init had made one")
        return self.model

    @property
    def deepspeed_engine(self) -> Any:
        """The engine around the model; RuntimeError before training has started, or without DeepSpeed."""
        if self.deepspeed is None:
            raise RuntimeError("there is no DeepSpeed engine: it is made when training starts with a deepspeed config")
        return self.deepspeed

    def save_weights(self, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write the model as a folder that `from_pretrained` reads; `state_dict` is what an engine has gathered."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if state_dict is not None:  # engines gather a tied weight twice, as two tensors
            tied = model.all_tied_weights_keys
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        model.save_pretrained(folder, state_dict=state_dict)

    def progress(self) -> dict[str, Any]:
        """What this rank has summed up since the last log, as JSON types.

        Without it the first log after a resume would differ from the unbroken run's.
        """
        return {"loss_since_log": self._tr_loss.item(), "last_logged_step": self._globalstep_last_logged}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` returned; called once after a resume, before the first batch is fetched."""
        self._tr_loss = torch.full_like(self._tr_loss, progress["loss_since_log"])
        self._globalstep_last_logged = int(progress["last_logged_step"])

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        chosen = None
        if self.is_world_process_zero():  # hashing is done once, and all ranks must agree
            chosen = self._verified_checkpoint(wanted)
        [chosen] = broadcast_object_list([chosen])
        return chosen

    def _verified_checkpoint(self, wanted: str | bool) -> str | None:
        if wanted is not True and wanted != LATEST:
            verify_checkpoint(Path(wanted))
            return wanted
        latest = latest_complete_checkpoint(Path(self.args.output_dir))
        if latest is not None:
            logger.warning("Resuming from %s", latest)
            return str(latest)
        if wanted == LATEST:
            logger.warning("No complete checkpoint in %s: starting from step 0", self.args.output_dir)
            return None
        raise ValueError(
            f"no complete checkpoint in {self.args.output_dir}: is this the run's folder? "
            f"Resume from '{LATEST}' to start afresh when there is none"
        )

    # Writing

    def _get_output_dir(self, trial: Any) -> str:
        """Trainer writes `checkpoint-N` below this folder: the staging area while a checkpoint is being saved."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging.parent)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            begin_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        self._staging = staging_folder(folder)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._point_best_to(run_dir, staging=staging_folder(folder))
        self.accelerator.wait_for_everyone()  # every rank has written its part
        if self.args.should_save:
            commit_checkpoint(folder)
            self._rotate(run_dir, newest=folder)
        self.accelerator.wait_for_everyone()

    def _point_best_to(self, run_dir: Path, staging: Path) -> None:
        """The state must name the best checkpoint by its final place, also when it is the one being written."""
        if self.state.best_model_checkpoint == str(staging):
            self.state.best_model_checkpoint = str(run_dir / staging.name)
            if self.args.should_save:
                self.state.save_to_json(str(staging / TRAINER_STATE_NAME))

    def _rotate(self, run_dir: Path, newest: Path) -> None:
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        best = self.state.best_model_checkpoint
        rotate_checkpoints(run_dir, newest=newest, keep=limit, protected=[] if best is None else [Path(best)])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Weights, tokenizer and training_args.json; Trainer would add the pickle training_args.bin."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder, state_dict)
        if not self.args.should_save:
            return
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.is_deepspeed_enabled:
            self.deepspeed_engine.save_checkpoint(output_dir, exclude_frozen_parameters=is_peft_model(self.model))
        elif self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_model(plugin, self.accelerator, self.model, output_dir, **get_fsdp_ckpt_kwargs())
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        elif self.args.should_save:
            save_optimizer(folder, self.optimizer, self.trained_model.named_parameters())
        if self.args.should_save and not self._engine_owns_schedule():
            save_scheduler(folder, self.lr_scheduler)

    def _save_scaler(self, output_dir: str) -> None:
        if self.args.should_save and self.accelerator.scaler is not None:
            write_json(Path(output_dir) / "scaler.json", self.accelerator.scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_rng_state(folder / f"rng_state_{self.args.process_index}.json")
        write_json(folder / f"progress_{self.args.process_index}.json", self.progress())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The Hub gets the model when training ends; Trainer's push at each save would add a pickle."""

    # Reading

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_optimizer(
                plugin, self.accelerator, self.optimizer, self.model, checkpoint, **get_fsdp_ckpt_kwargs()
            )
        elif not self.is_deepspeed_enabled:  # DeepSpeed has loaded weights and optimiser together
            load_optimizer(folder, self.optimizer, self.trained_model.named_parameters())
        if not self._engine_owns_schedule():
            load_scheduler(folder, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(json.loads((Path(checkpoint) / "scaler.json").read_text()))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, rank = Path(checkpoint), self.args.process_index
        if not (folder / f"rng_state_{rank}.json").is_file():
            logger.warning(
                "%s has no state for rank %d: saved with fewer processes; randomness is fresh", folder, rank
            )
            return
        load_rng_state(folder / f"rng_state_{rank}.json")

    def _engine_owns_schedule(self) -> bool:
        if not self.is_deepspeed_enabled:
            return False
        from accelerate.utils import DeepSpeedSchedulerWrapper  # accelerate has it only where DeepSpeed is installed

        return isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper)
