"""The distribution that choose_tokens draws from, its support, and the streams that feed it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posttrain.rollout.choose import choose_tokens, logp_of, top_of, uniform_stream
from posttrain.sampling import SamplingParams

# Probabilities 0.4 0.3 0.15 0.1 0.05, out of order; log p as logits.
P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
N_DRAWS = 20_000


def params(*, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, temperature=temperature, seed=0, top_p=top_p, top_k=top_k)


def draws(p: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Counts by token of N_DRAWS draws, one from each of as many streams."""
    uniform = torch.tensor([uniform_stream(9, stream, 0, 1)[0] for stream in range(N_DRAWS)])
    return choose_tokens(p.log().expand(N_DRAWS, -1), uniform, sampling).bincount(minlength=len(p))


def grid(p: torch.Tensor, sampling: SamplingParams) -> list[float]:
    """Share of each token when u runs evenly through [0, 1): the exact distribution, up to 1 / 10,000."""
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    chosen = choose_tokens(p.log().expand(10_000, -1), uniform, sampling)
    return (chosen.bincount(minlength=len(p)) / 10_000).tolist()


# Chi-square with 4 degrees of freedom exceeds 23.5 once in 10,000 times; 2 degrees of freedom: 18.4.
@pytest.mark.parametrize(
    ("sampling", "expected", "limit"),
    [
        (params(), [0.1, 0.4, 0.05, 0.3, 0.15], 23.5),
        # squares over their sum, 0.01 + 0.16 + 0.0025 + 0.09 + 0.0225 = 0.285
        (params(temperature=0.5), [0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.09 / 0.285, 0.0225 / 0.285], 23.5),
        # 0.4 + 0.3 = 0.7 is short of 0.8, so 0.15 stays too: divided by 0.85
        (params(top_p=0.8), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], 18.4),
    ],
)
def test_frequencies_match_exact_probabilities_by_chi_square(sampling, expected, limit):
    counts = draws(P, sampling).double()
    exact = torch.tensor(expected, dtype=torch.float64) * N_DRAWS
    assert counts[exact == 0].sum() == 0
    assert float(((counts - exact).square() / exact)[exact > 0].sum()) < limit


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (params(top_k=1), [0, 1, 0, 0, 0]),
        (params(top_k=3), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        (params(top_k=9), [0.1, 0.4, 0.05, 0.3, 0.15]),  # more than there are
        (params(top_p=0.39), [0, 1, 0, 0, 0]),  # the likeliest token always stays
        (params(top_p=0.41), [0, 4 / 7, 0, 3 / 7, 0]),
        (params(top_p=0.96), [0.1, 0.4, 0.05, 0.3, 0.15]),
        # top_k first: 4/7 and 3/7; then 4/7 alone reaches 0.5, though 0.4 would not have
        (params(top_k=2, top_p=0.5), [0, 1, 0, 0, 0]),
        # temperature before the cut: squares 0.16 / 0.285 = 0.561 reach 0.55 alone, 0.4 does not
        (params(temperature=0.5, top_p=0.55), [0, 1, 0, 0, 0]),
    ],
)
def test_top_p_and_top_k_leave_exactly_the_stated_tokens(sampling, expected):
    assert grid(P, sampling) == pytest.approx(expected, abs=2e-4)


def test_ties_at_the_cut_keep_the_lower_token_ids():
    assert grid(torch.full((4,), 0.25), params(top_k=2)) == pytest.approx([0.5, 0.5, 0, 0], abs=2e-4)
    assert grid(torch.full((4,), 0.25), params(top_p=0.5)) == pytest.approx([0.5, 0.5, 0, 0], abs=2e-4)


def test_token_without_probability_is_never_chosen_even_at_the_ends_of_the_unit_interval():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(2, -1)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    for sampling in (params(), params(top_k=4), params(top_p=0.9)):
        assert choose_tokens(logits, ends, sampling).tolist() == [1, 3]


def test_greedy_takes_the_lowest_id_on_a_tie_and_reads_no_randomness():
    logits = torch.tensor([[1.0, 3.0, 3.0]])
    assert choose_tokens(logits, torch.tensor([math.nan], dtype=torch.float64), params(temperature=0)).tolist() == [1]


def test_likeliest_tokens_come_in_order_with_their_logp_and_all_of_a_smaller_vocabulary():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    first, second = top_of(p.log() + 7.0, 2)  # logits may stand anywhere
    assert [token_id for token_id, _ in first] == [1, 2]
    assert [token_id for token_id, _ in second] == [0, 2]
    found = torch.tensor([logp for _, logp in (*first, *second)])
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3, 0.6, 0.3]).log(), rtol=0, atol=1e-6)
    assert [len(top) for top in top_of(p.log(), 20)] == [3, 3]


def test_logp_is_float32_of_the_whole_vocabulary_for_bfloat16_logits():
    # log_softmax([0, 1, 2])[1] = 1 - log(1 + e + e^2) = -1.407606
    found = logp_of(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16), torch.tensor([1]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-1.407606, abs=1e-6)


def test_streams_are_long_prefixes_of_each_other_and_differ_by_seed_stream_and_sample():
    assert np.array_equal(uniform_stream(1, 2, 3, 50)[:7], uniform_stream(1, 2, 3, 7))
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 2**64 - 1, 3), (1, 2**64 - 2, 3), (2**64 - 1, 2, 3)]
    numbers = np.concatenate([uniform_stream(*key, 100) for key in keys])
    assert len(np.unique(numbers)) == 700  # no two streams overlap, not even shifted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1e-300}, "temperature is 1e-300, needs 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop": "ab"}, "stop is 'ab', needs a tuple"),
        ({"stop": ("",)}, "non-empty strings"),
    ],
)
def test_sampling_params_refuse_what_has_no_meaning(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"max_new_tokens": 1, "temperature": 1.0, "seed": 0, **fields})
