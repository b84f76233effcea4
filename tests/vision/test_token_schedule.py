"""Which tokens a time may see, and the two orders of tokens."""

from __future__ import annotations

import pytest
import torch

from posttrain.vision.selftok_release.layout import kappa
from posttrain.vision.token_schedule import (
    FIFTHS,
    TokenOrder,
    TokenSchedule,
    all_visible,
    information_schedule,
    noise_level,
    selftok_schedule,
    uniform_schedule,
)

TIMES = torch.linspace(0, 1, 2001, dtype=torch.float64)


def test_paper_table_has_the_published_boundary_values():
    schedule = selftok_schedule(512)
    assert schedule.k_per_stage == (192, 184, 72, 48, 16)
    # 192 tokens in the first fifth: at .1999 floor(.1999 * 192 / .2) = floor(191.9); then 192 + 184 = 376.
    t = torch.tensor([0.0, 0.1999, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule.kappa(t).tolist() == [0, 191, 192, 376, 448, 496, 511]


def test_every_thousandth_of_the_time_shows_what_whole_numbers_say():
    schedule = selftok_schedule(512)
    times = torch.arange(1001, dtype=torch.float64) / 1000
    assert schedule.kappa(times).tolist() == [kappa(step, (192, 184, 72, 48, 16)) for step in range(1001)]


def test_uniform_schedule_shows_floor_of_t_times_k():
    t = torch.tensor([0.0, 0.249, 0.25, 0.5, 0.999, 1.0])
    assert uniform_schedule(4).kappa(t).tolist() == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize(
    "schedule",
    [
        selftok_schedule(512),
        selftok_schedule(9),
        uniform_schedule(9),
        information_schedule(9, gain=27.0, max_bits=3.7, shift=4.0),
        TokenSchedule(FIFTHS, (2, 2, 2, 2, 1)),
    ],
)
def test_more_noise_never_hides_a_token_and_pure_noise_sees_all(schedule: TokenSchedule):
    kappa = schedule.kappa(TIMES)
    assert (kappa.diff() >= 0).all()
    assert sum(schedule.k_per_stage) == schedule.n_tokens
    assert kappa[0] == 0 and kappa[-1] == schedule.n_tokens - 1
    assert schedule.is_visible(TIMES).sum(-1).equal(kappa + 1)


def test_without_a_schedule_every_time_sees_every_token():
    assert all_visible(9).n_tokens == 9
    assert all_visible(9).is_visible(TIMES).all()


def test_information_schedule_gives_each_stage_the_bits_that_noise_takes_in_it():
    # gain 3 without a shift: I(a) = 1/2 log2(1 + 3 ((1 - a) / a)^2), at a = .5 exactly 1 bit, cut at 1 bit. So below
    # a = .5 nothing is lost: the first two fifths get none; I(.6) = .5 log2(1 + 4/3) = .611, I(.8) = .124, I(1) = 0:
    # lost .389, .487, .124 bits of 1, of 1000 tokens 389, 487, 124.
    schedule = information_schedule(1000, gain=3.0, max_bits=1.0, shift=1.0)
    assert schedule.k_per_stage == (0, 0, 389, 487, 124)


def test_noise_level_is_shifted_towards_noise():
    # 4 t / (1 + 3 t): 0 -> 0, 1/2 -> 2 / 2.5, 1 -> 1
    torch.testing.assert_close(noise_level(torch.tensor([0.0, 0.5, 1.0]), shift=4.0), torch.tensor([0.0, 0.8, 1.0]))


def test_ar_order_writes_the_coarse_end_first():
    ids = torch.tensor([[10, 11, 12]])  # index 0 is the fine end
    assert TokenOrder.REVERSED.to_ar(ids).tolist() == [[12, 11, 10]]
    assert TokenOrder.RASTER.to_ar(ids).tolist() == [[10, 11, 12]]


@pytest.mark.parametrize("order", list(TokenOrder))
def test_from_ar_undoes_to_ar(order: TokenOrder):
    ids = torch.arange(24).view(2, 12)
    assert order.from_ar(order.to_ar(ids)).equal(ids)


@pytest.mark.parametrize(
    ("boundaries", "counts"),
    [
        ((0.0, 1.0), (1, 2)),
        ((0.0, 0.5), (3,)),
        ((0.0, 0.5, 0.5, 1.0), (1, 1, 1)),
        ((0.0, 1.0), (-1,)),
        ((0.0, 1.0), (0,)),
    ],
)
def test_schedule_that_does_not_cover_the_time_is_refused(boundaries: tuple[float, ...], counts: tuple[int, ...]):
    with pytest.raises(ValueError, match="boundaries"):
        TokenSchedule(boundaries, counts)
