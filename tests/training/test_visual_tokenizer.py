"""Training of visual tokenizers: resume bit for bit, what is trained when, and a really trained small tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.provenance import file_sha256
from posttrain.training.visual_tokenizer import train_visual_tokenizer
from posttrain.training.visual_tokenizer_config import ScheduleName, VisualTokenizerConfig
from posttrain.training.visual_tokenizer_steps import VisualTokenizerSteps
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import split_prompts
from posttrain.vision.reconstruction import judge_tokenizer
from posttrain.vision.tokenizer import WEIGHTS, TokenizerKind, load_visual_tokenizer

KINDS = list(TokenizerKind)


def tiny(output_dir: Path, **changes: object) -> VisualTokenizerConfig:
    """Two steps without quantisation, four with it, four of the renderer."""
    config = VisualTokenizerConfig(
        output_dir=output_dir,
        n_steps=6,
        n_continuous_steps=2,
        n_renderer_steps=4,
        n_warmup_steps=1,
        batch_size=8,
        n_scenes=32,
        n_eval_scenes=12,
        width=16,
        codebook_size=16,
        logging_steps=2,
        checkpoint_steps=100,
    )
    return dataclasses.replace(config, **changes)


def stopping_at(step: int) -> Callable[[VisualTokenizerSteps, int], dict[str, Tensor]]:
    """The step of training, which a stop by hand cuts at this one."""
    whole = VisualTokenizerSteps.step

    def cut(steps: VisualTokenizerSteps, current: int) -> dict[str, Tensor]:
        if current == step:
            raise KeyboardInterrupt
        return whole(steps, current)

    return cut


@pytest.mark.parametrize("kind", [TokenizerKind.SELFTOK, TokenizerKind.CELLS])
@pytest.mark.parametrize("stopped_after", [1, 2, 5, 6, 8])  # 2: before k-means; 6: before the renderer's stage
def test_stopped_run_ends_with_the_weights_of_one_that_was_not(
    kind: TokenizerKind, stopped_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_visual_tokenizer(tiny(tmp_path / "whole", kind=kind))
    stopped = tiny(tmp_path / "stopped", kind=kind)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(VisualTokenizerSteps, "step", stopping_at(stopped_after))
        train_visual_tokenizer(dataclasses.replace(stopped, checkpoint_steps=stopped_after))
    assert (tmp_path / f"stopped/checkpoint-{stopped_after}").is_dir()
    train_visual_tokenizer(stopped)
    assert file_sha256(tmp_path / "stopped" / WEIGHTS) == file_sha256(tmp_path / "whole" / WEIGHTS)


def test_another_config_does_not_go_on_with_a_checkpoint(tmp_path: Path):
    train_visual_tokenizer(tiny(tmp_path, checkpoint_steps=5))
    with pytest.raises(ValueError, match="of a run with another learning_rate, seed"):
        train_visual_tokenizer(tiny(tmp_path, seed=1, learning_rate=1e-3))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_stay_as_they_are_while_the_renderer_is_trained(kind: TokenizerKind, tmp_path: Path):
    steps = VisualTokenizerSteps(tiny(tmp_path, kind=kind))
    for step in range(6):
        steps.step(step)
    before = {name: value.clone() for name, value in steps.tokenizer.state_dict().items()}
    steps.step(6)
    steps.step(7)
    changed = {name for name, value in steps.tokenizer.state_dict().items() if not value.equal(before[name])}
    assert changed and all(name.startswith("renderer.") for name in changed)


def test_renderer_starts_from_the_flow_decoder(tmp_path: Path):
    steps = VisualTokenizerSteps(tiny(tmp_path, learning_rate=0.0))
    for step in range(7):
        steps.step(step)
    flow, renderer = steps.tokenizer.flow, steps.tokenizer.renderer
    assert flow is not None and flow.position.equal(renderer.network.position)
    assert flow.to_pixels.weight.equal(renderer.network.to_pixels.weight)


def test_codebook_starts_at_the_first_quantised_step(tmp_path: Path):
    steps = VisualTokenizerSteps(tiny(tmp_path))
    first = steps.tokenizer.quantiser.codebook.clone()
    losses = [steps.step(0), steps.step(1)]
    assert steps.tokenizer.quantiser.codebook.equal(first)
    assert all("commit" not in loss for loss in losses)
    assert "commit" in steps.step(2)
    assert not steps.tokenizer.quantiser.codebook.equal(first)


def test_learning_rate_rises_and_falls_to_zero_in_each_stage(tmp_path: Path):
    steps = VisualTokenizerSteps(tiny(tmp_path, n_warmup_steps=2, learning_rate=1.0))
    rates = []
    for step in range(10):
        steps.step(step)
        rates.append(steps.optimizer.param_groups[0]["lr"])
    # (1 + cos(pi s / n)) / 2 for n = 6 and then n = 4, halved in the first of two warm-up steps
    expected = [0.5, 0.9330, 0.75, 0.5, 0.25, 0.0670, 0.5, 0.8536, 0.5, 0.1464]
    assert rates == pytest.approx(expected, abs=1e-4)


def test_metrics_tell_the_losses_the_cpu_time_and_the_evaluation(tmp_path: Path):
    train_visual_tokenizer(tiny(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 10]
    assert 0 < rows[0]["cpu_s"] < rows[1]["cpu_s"]
    assert rows[-1]["eval_prefix_mse_9"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_per_stage": (3, 3, 3, 3, 3)}, "five counts whose sum is n_tokens"),
        ({"kind": TokenizerKind.CELLS, "n_tokens": 4}, "one token for each of the 9 patches"),
        ({"patch_px": 5}, "patch_px 5 does not divide"),
        ({"width": 20}, "multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit_one_another_are_refused(changes: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes).tokenizer()


def test_run_that_would_never_quantise_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="some steps must quantise"):
        tiny(tmp_path, n_continuous_steps=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in about 30 CPU seconds on a world of 2x2 cells and four kinds of things, with four tokens."""
    config = VisualTokenizerConfig(
        output_dir=tmp_path_factory.mktemp("trained"),
        n_cells=2,
        cell_px=6,
        shapes=("square", "cross"),
        colours=("red", "green"),
        patch_px=6,
        n_tokens=4,
        k_per_stage=(1, 1, 1, 1, 0),
        codebook_size=32,
        width=32,
        n_encoder_blocks=1,
        n_decoder_blocks=2,
        n_steps=1500,
        n_continuous_steps=500,
        n_renderer_steps=300,
        n_scenes=1024,
        checkpoint_steps=10_000,
    )
    return train_visual_tokenizer(config)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_of_a_prefix_brings_the_picture_closer(trained: Path):
    tokenizer = load_visual_tokenizer(trained)
    _, held_out = split_prompts(tokenizer.world)
    report = judge_tokenizer(tokenizer, held_out, n_pictures=256, seed=5)
    print("prefix mse", [round(error, 4) for error in report.prefix_mse], "strict", report.strict)
    print("do-test: earlier tokens changed by a later one", report.changed_by_suffix)
    assert all(later <= earlier for earlier, later in zip(report.prefix_mse, report.prefix_mse[1:], strict=False))
    assert report.prefix_mse[-1] < 0.5 * report.prefix_mse[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trained_flow_cannot_see_the_tokens_that_its_time_hides(trained: Path):
    tokenizer = load_visual_tokenizer(trained)
    prompts, _ = split_prompts(tokenizer.world)
    _, images = draw_pictures(tokenizer.world, prompts, 16, torch.Generator().manual_seed(0))
    codes, _ = tokenizer.look_up(tokenizer.encode(images))
    flow = tokenizer.flow
    assert flow is not None
    for t in (0.0, 0.3, 0.5, 0.7):
        time = torch.full((16,), t)
        is_visible = tokenizer.config.schedule.is_visible(time)
        hidden, seen = (torch.where(m.unsqueeze(-1), codes.roll(1, 0), codes) for m in (~is_visible, is_visible))
        with torch.no_grad():
            plain = flow(images, time, codes, is_visible)
            assert flow(images, time, hidden, is_visible).equal(plain)
            assert not flow(images, time, seen, is_visible).equal(plain)


@pytest.mark.parametrize("schedule", list(ScheduleName))
def test_every_schedule_gives_a_tokenizer_of_so_many_tokens(schedule: ScheduleName, tmp_path: Path):
    steps = VisualTokenizerSteps(tiny(tmp_path, schedule=schedule))
    assert steps.tokenizer.encoder(steps.images[:2]).shape[1] == steps.tokenizer.n_tokens == 9
    assert steps.step(0)["reconstruction"] > 0
