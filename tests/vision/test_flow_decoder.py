"""Prefix decodability, rectified flow against its closed form, and guidance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posttrain.vision.flow_decoder import FlowDecoder, HideBy, euler_step, guided, sample_flow
from posttrain.vision.renderer import Renderer
from posttrain.vision.token_schedule import FIFTHS, TokenSchedule, all_visible

SCHEDULE = TokenSchedule(FIFTHS, (2, 2, 2, 2, 1))
TIMES = (0.0, 0.25, 0.5, 0.75)  # from .8 on nothing is hidden


def decoder(hide_by: HideBy) -> FlowDecoder:
    torch.manual_seed(0)
    return FlowDecoder(
        n_tokens=9, n_patches=9, patch_px=4, code_dim=8, width=32, n_heads=4, n_blocks=2, hide_by=hide_by
    ).eval()


@torch.no_grad()
def change(network: FlowDecoder, *, t: float, is_hidden_replaced: bool) -> float:
    """The largest change of the output when the hidden codes, or else the visible ones, are replaced by noise."""
    codes, noisy = torch.randn(4, 9, 8), torch.randn(4, 3, 12, 12)
    time = torch.full((4,), t)
    is_visible = SCHEDULE.is_visible(time)
    other = torch.where((is_visible != is_hidden_replaced).unsqueeze(-1), 5 * torch.randn(4, 9, 8), codes)
    return float((network(noisy, time, codes, is_visible) - network(noisy, time, other, is_visible)).abs().max())


@pytest.mark.parametrize("hide_by", [HideBy.CONTENT, HideBy.KEYS, HideBy.CONTENT | HideBy.KEYS])
@pytest.mark.parametrize("t", TIMES)
def test_hidden_tokens_change_nothing_by_either_mechanism_alone(hide_by: HideBy, t: float):
    assert change(decoder(hide_by), t=t, is_hidden_replaced=True) == 0.0


@pytest.mark.parametrize("t", TIMES)
def test_hidden_tokens_change_the_picture_with_no_mechanism_at_all(t: float):
    assert change(decoder(HideBy.NOTHING), t=t, is_hidden_replaced=True) > 1e-3


@pytest.mark.parametrize("t", (*TIMES, 0.95, 1.0))
def test_visible_tokens_change_the_picture(t: float):
    assert change(decoder(HideBy.CONTENT | HideBy.KEYS), t=t, is_hidden_replaced=False) > 1e-3


def test_every_token_hidden_still_gives_a_picture():
    network = decoder(HideBy.CONTENT | HideBy.KEYS)
    nothing = torch.zeros(2, 9, dtype=torch.bool)
    assert network(torch.randn(2, 3, 12, 12), torch.ones(2), torch.randn(2, 9, 8), nothing).isfinite().all()


@pytest.mark.parametrize("n_steps", [1, 3, 12])
def test_exact_prediction_returns_the_image_in_any_number_of_steps(n_steps: int):
    # One image x: the flow's exact prediction at every noisy point is x, and v = eps - x is constant on the path.
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    result = sample_flow(lambda noisy, level, is_visible: x, noise, SCHEDULE, n_steps=n_steps, shift=4.0)
    torch.testing.assert_close(result, x, atol=1e-6, rtol=0)


def test_step_by_the_predicted_image_is_the_step_by_the_velocity():
    noisy, image = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    a, b = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    velocity = (noisy - image) / a
    torch.testing.assert_close(euler_step(noisy, image, a, b), noisy - (a - b) * velocity, atol=1e-12, rtol=0)


def test_sampler_shows_each_step_the_tokens_of_its_time():
    seen: list[int] = []

    def predict(noisy: Tensor, level: Tensor, is_visible: Tensor) -> Tensor:
        seen.append(int(is_visible[0].sum()))
        return noisy

    sample_flow(predict, torch.randn(1, 3, 12, 12), SCHEDULE, n_steps=5, shift=4.0)
    # t = 1, .8, .6, .4, .2 by the table (2, 2, 2, 2, 1): kappa = 8 (of 9), 8, 6, 4, 2, so one more is visible.
    assert seen == [9, 9, 7, 5, 3]


@torch.no_grad()
def test_guidance_extrapolates_from_the_picture_without_tokens():
    network, codes = decoder(HideBy.CONTENT | HideBy.KEYS), torch.randn(2, 9, 8)
    noisy, level = torch.randn(2, 3, 12, 12), torch.full((2,), 0.7)
    every = all_visible(9).is_visible(level)
    told, untold = network(noisy, level, codes, every), network(noisy, level, codes, ~every)
    torch.testing.assert_close(guided(network, codes, guidance=1.0)(noisy, level, every), told)
    torch.testing.assert_close(guided(network, codes, guidance=3.0)(noisy, level, every), untold + 3 * (told - untold))


@torch.no_grad()
def test_renderer_hides_what_is_not_visible_exactly():
    renderer, codes = Renderer(decoder(HideBy.CONTENT | HideBy.KEYS)), torch.randn(2, 9, 8)
    is_visible = torch.arange(9) >= 6
    other = torch.where(is_visible.unsqueeze(-1), codes, torch.randn(2, 9, 8))
    assert renderer(codes, is_visible.expand(2, -1)).equal(renderer(other, is_visible.expand(2, -1)))
