from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from posttrain.training.training_state import (
    load_optimizer,
    load_rng_state,
    load_scheduler,
    save_optimizer,
    save_rng_state,
    save_scheduler,
)


def _model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).to(next(model.parameters()).dtype)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _adamw(model: nn.Sequential) -> torch.optim.AdamW:
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[1].parameters(), "lr": 3e-3}]
    return torch.optim.AdamW(groups, betas=(0.8, 0.95))


@pytest.mark.parametrize("kind", ["adamw", "sgd_momentum", "adagrad", "capturable_lr"])
def test_next_steps_are_equal_bit_for_bit_when_optimizer_is_restored(tmp_path: Path, kind: str) -> None:
    make = {
        "adamw": _adamw,
        "sgd_momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
        "capturable_lr": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.1), foreach=False),
    }[kind]
    unbroken = _model()
    optimizer = make(unbroken)
    for seed in range(3):
        _step(unbroken, optimizer, seed)
    optimizer.param_groups[0]["lr"] *= 0.7  # as a schedule does
    save_optimizer(tmp_path, optimizer, unbroken.named_parameters())

    resumed = _model()
    resumed.load_state_dict(unbroken.state_dict())
    restored = make(resumed)
    load_optimizer(tmp_path, restored, resumed.named_parameters())
    assert type(restored.param_groups[0].get("betas", ())) is tuple
    for seed in range(3, 6):
        _step(unbroken, optimizer, seed)
        _step(resumed, restored, seed)
    for name, parameter in unbroken.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_moments_follow_names_when_the_order_within_a_group_has_changed(tmp_path: Path) -> None:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _step(model, optimizer, seed=0)
    save_optimizer(tmp_path, optimizer, model.named_parameters())
    reversed_order = torch.optim.AdamW(reversed(list(model.parameters())), lr=1e-2)
    load_optimizer(tmp_path, reversed_order, model.named_parameters())
    for parameter in model.parameters():
        assert torch.equal(reversed_order.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_float32_moments_stay_float32_when_weights_are_bfloat16(tmp_path: Path) -> None:
    model = _model(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _step(model, optimizer, seed=0)
    weight = model[0].weight
    optimizer.state[weight]["exp_avg"] = torch.full((4, 3), 0.1)  # 0.1 is not a bfloat16 number
    save_optimizer(tmp_path, optimizer, model.named_parameters())
    restored = torch.optim.AdamW(model.parameters(), lr=1e-2)
    load_optimizer(tmp_path, restored, model.named_parameters())
    assert torch.equal(restored.state[weight]["exp_avg"], torch.full((4, 3), 0.1))


def test_load_names_a_parameter_when_groups_differ(tmp_path: Path) -> None:
    model = _model()
    save_optimizer(tmp_path, _adamw(model), model.named_parameters())
    whole = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="2 parameter groups, the optimiser 1"):
        load_optimizer(tmp_path, whole, model.named_parameters())
    frozen = torch.optim.AdamW([{"params": [model[0].weight]}, {"params": model[1].parameters()}])
    with pytest.raises(ValueError, match=r"group 0 .* differs .* in 1 parameters, first 0\.bias"):
        load_optimizer(tmp_path, frozen, model.named_parameters())


def test_load_says_that_an_engine_saved_the_state_when_its_files_are_absent(tmp_path: Path) -> None:
    model = _model()
    with pytest.raises(FileNotFoundError, match=r"has no optimizer\.json: it was saved under DeepSpeed or FSDP"):
        load_optimizer(tmp_path, _adamw(model), model.named_parameters())


def test_learning_rates_continue_when_scheduler_is_restored(tmp_path: Path) -> None:
    def cosine() -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(_model().parameters(), lr=0.1), T_max=10)

    unbroken = cosine()
    for _ in range(4):
        unbroken.optimizer.step()
        unbroken.step()
    save_scheduler(tmp_path, unbroken)
    resumed = cosine()
    load_scheduler(tmp_path, resumed)
    assert resumed.last_epoch == 4
    assert resumed.get_last_lr() == unbroken.get_last_lr()
    # cosine from 0.1 to 0 over 10 steps, at step 4: 0.05 (1 + cos 0.4π) = 0.0654508...
    assert resumed.get_last_lr()[0] == pytest.approx(0.0654508497, abs=1e-9)


def test_next_random_numbers_are_equal_when_generators_are_restored(tmp_path: Path) -> None:
    random.gauss(0, 1)  # both keep a second Gaussian for the next call: it is part of the state
    np.random.standard_normal()
    save_rng_state(tmp_path / "rng.json")
    expected = _draw()
    _draw()
    load_rng_state(tmp_path / "rng.json")
    assert _draw() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_next_cuda_numbers_are_equal_when_generators_are_restored(tmp_path: Path) -> None:
    save_rng_state(tmp_path / "rng.json")
    expected = torch.rand(8, device="cuda").tolist()
    load_rng_state(tmp_path / "rng.json")
    assert torch.rand(8, device="cuda").tolist() == expected


def _draw() -> list[float]:
    gaussians = [random.gauss(0, 1), float(np.random.standard_normal())]
    return [*gaussians, random.random(), float(np.random.random()), *torch.rand(3).tolist()]
