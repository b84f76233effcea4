"""What every model goes through after it was read from files, so that equal weights give equal numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

VALUE_HEAD = "score.weight"  # the key that a value model has and a policy has not


def device_named(name: str) -> torch.device:
    """The device of this name, such as cpu or cuda:1; auto is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def no_load_report() -> Iterator[None]:
    """Keep transformers from printing its table of missing and unexpected weights: the caller judges them itself."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def own_memory(model: PreTrainedModel) -> None:
    """Copy each weight to memory of its own.

    safetensors hands out views into the mapped file at any byte offset, and CPU kernels sum in another order there:
    a policy and its reference, or a value model before and after saving, would differ in the last bits.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


def require_finite(model: PreTrainedModel, path: str | Path) -> None:
    """Raises ValueError naming the weights of `model`, read from `path`, that hold NaN or Inf."""
    bad = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if bad:
        raise ValueError(
            f"{path}: {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} hold NaN or Inf; did "
            "the run that wrote it diverge? Take an earlier checkpoint"
        )


def switch_dropout_off(model: PreTrainedModel) -> None:
    """Set every dropout rate of `model` to 0, in training mode too; modules keep their names and weights.

    Policy and reference must agree exactly at step 0, and a value must not be noisy. Architectures keep rates in three
    places: nn.Dropout modules, plain attributes of attention layers, and the config that functional calls read on
    every forward. All three are covered; layer drop counts as dropout.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _zero_drop_rates(module)
    _zero_drop_rates(model.config)


def _zero_drop_rates(owner: object) -> None:
    for name, rate in list(vars(owner).items()):
        if "drop" in name and isinstance(rate, float):
            setattr(owner, name, 0.0)
