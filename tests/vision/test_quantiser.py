"""The vector quantiser: hand-computed averages, gradients, dead codes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from posttrain.vision.quantiser import CosineQuantiser, entropy


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def two_codes(*, decay: float = 0.9, reset_ratio: float = 0.1) -> CosineQuantiser:
    """Codes along the two axes, as if one vector of each batch had chosen each."""
    quantiser = CosineQuantiser(2, 2, 2, decay=decay, reset_ratio=reset_ratio)
    quantiser.codebook.copy_(torch.eye(2))
    quantiser.sums.copy_(torch.eye(2))
    return quantiser


def many_codes(n_codes: int = 16, **options: float) -> CosineQuantiser:
    torch.manual_seed(0)
    return CosineQuantiser(3, n_codes, 4, decay=options.get("decay", 0.9), reset_ratio=options.get("reset_ratio", 0.1))


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_codebook_moves_as_computed_by_hand(generator: torch.Generator):
    quantiser = two_codes()
    z = torch.tensor([[[0.6, 0.8], [1.0, 0.0]], [[0.0, 1.0], [0.8, 0.6]]])
    ids = quantiser(z).ids
    assert ids.tolist() == [[1, 0], [1, 0]]
    assert quantiser.update(z, ids, generator) == 0
    # decay .9, two vectors each: N = .9 * 1 + .1 * 2 = 1.1
    torch.testing.assert_close(quantiser.counts, torch.tensor([1.1, 1.1]))
    # S_0 = .9 (1, 0) + .1 ((1, 0) + (.8, .6)) = (1.08, .06);  S_1 = .9 (0, 1) + .1 ((.6, .8) + (0, 1)) = (.06, 1.08)
    torch.testing.assert_close(quantiser.sums, torch.tensor([[1.08, 0.06], [0.06, 1.08]]))
    # |S| = sqrt(1.08² + .06²) = 1.0816654
    torch.testing.assert_close(quantiser.codebook, torch.tensor([[0.998460, 0.055470], [0.055470, 0.998460]]))
    # Position 0 chose code 1 in both images, from a histogram of halves: .9 * .5 + .1 * (0, 1)
    torch.testing.assert_close(quantiser.histogram, torch.tensor([[0.45, 0.55], [0.55, 0.45]]))


def test_codes_stay_of_unit_length_after_updates(generator: torch.Generator):
    quantiser, z = many_codes(), unit(8, 3, 4)
    for _ in range(5):
        quantiser.update(z, quantiser.nearest(z), generator)
    torch.testing.assert_close(quantiser.codebook.norm(dim=-1), torch.ones(16))


def test_gradient_passes_straight_through_the_codes():
    z = unit(8, 3, 4).requires_grad_()
    weight = torch.randn(8, 3, 4)
    (many_codes()(z).codes * weight).sum().backward()
    assert z.grad is not None and z.grad.equal(weight)


def test_codes_are_rows_of_the_codebook():
    quantiser, z = many_codes(), unit(8, 3, 4)
    result = quantiser(z)
    torch.testing.assert_close(result.codes, quantiser.codebook[result.ids])


def test_commitment_draws_the_vectors_to_their_codes_and_not_the_codes_to_them():
    quantiser = two_codes()
    quantiser.codebook.requires_grad_()
    z = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]], requires_grad=True)
    commit = quantiser(z).commit
    commit.backward()
    # ((.6 - 0)² + (.8 - 1)²) / 4 = .1, gradient 2 (z - code) / 4
    torch.testing.assert_close(commit.detach(), torch.tensor(0.1))
    torch.testing.assert_close(z.grad, torch.tensor([[[0.3, -0.1], [0.0, 0.0]]]))
    assert quantiser.codebook.grad is None


def test_code_is_replaced_only_when_its_count_is_below_the_threshold(generator: torch.Generator):
    # Six vectors for two codes: the threshold is .5 * 3 = 1.5. All choose code 0. With decay .9 code 1 falls from
    # 1.7 to 1.53, which lives, and from there to 1.377, which is dead and starts again at 1.5.
    quantiser = two_codes(reset_ratio=0.5)
    quantiser.counts.copy_(torch.tensor([3.0, 1.7]))
    z, ids = torch.tensor([[0.8, 0.6]]).expand(3, 2, 2), torch.zeros(3, 2, dtype=torch.int64)
    assert quantiser.update(z, ids, generator) == 0
    assert quantiser.counts[1].item() == pytest.approx(1.53)
    torch.testing.assert_close(quantiser.codebook[1], torch.tensor([0.0, 1.0]))
    assert quantiser.update(z, ids, generator) == 1
    assert quantiser.counts[1].item() == pytest.approx(1.5)
    torch.testing.assert_close(quantiser.codebook[1], torch.tensor([0.8, 0.6]))


def test_update_between_forward_and_backward_leaves_the_gradient_as_it_was(generator: torch.Generator):
    def gradient(*, is_updated: bool) -> torch.Tensor:
        quantiser, z = many_codes(reset_ratio=1.5), unit(8, 3, 4).requires_grad_()
        result = quantiser(z)
        if is_updated:
            assert quantiser.update(z, result.ids, generator) > 0
        (result.codes.sum() + result.commit + result.diversity).backward()
        assert z.grad is not None
        return z.grad

    assert gradient(is_updated=True).equal(gradient(is_updated=False))


def test_forward_never_changes_the_codebook_in_training_mode():
    quantiser = many_codes().train()
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    for _ in range(3):
        quantiser(unit(8, 3, 4))
    assert all(value.equal(before[name]) for name, value in quantiser.state_dict().items())


def test_diversity_of_evenly_used_codes_is_free_and_of_one_code_is_half_its_entropy():
    quantiser = two_codes()
    z = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # Even histograms: perplexity is all of C, above 3 C / 10, so the weight is 0.
    assert quantiser(z).diversity.item() == 0.0
    # Histograms with one code in a hundred images: p = .8 (.99, .01) + .2 softmax(10, 0); the perplexity of a position
    # over C, exp(.0560) / 2 = .529, is still above .3 with two codes, so the weight is 0 again ...
    quantiser.histogram.copy_(torch.tensor([[0.99, 0.01], [0.99, 0.01]]))
    assert quantiser(z).diversity.item() == 0.0
    # ... and with 32 codes, of which each position uses one, 1 / 32 < .1 gives the full weight 1/2: -1/2 H(p), with
    # p = .8 one-hot + .2 softmax of (10, 0, ...): p_j = .2 e^-10 / (1 + 31 e^-10) for j > 0
    wide = CosineQuantiser(2, 32, 32, decay=0.9, reset_ratio=0.1)
    wide.codebook.copy_(torch.eye(32))
    wide.histogram.zero_()[:, 0] = 1.0
    rest = math.exp(-10) / (1 + 31 * math.exp(-10))
    p = [0.8 + 0.2 * (1 - 31 * rest), *[0.2 * rest] * 31]
    expected = 0.5 * sum(x * math.log(x) for x in p)
    assert wide(torch.eye(32)[:1].expand(1, 2, 32)).diversity.item() == pytest.approx(expected, rel=1e-4)


def test_kmeans_finds_well_separated_centres(generator: torch.Generator):
    # Two codes, vectors within 0.1 rad of two directions that are 2 rad apart.
    spread = torch.tensor([-0.1, 0.0, 0.1])
    angles = torch.cat((spread, 2.0 + spread)).view(3, 2)
    quantiser = CosineQuantiser(2, 2, 2, decay=0.9, reset_ratio=0.1)
    quantiser.start_from(torch.stack((angles.cos(), angles.sin()), -1), generator)
    found = torch.atan2(quantiser.codebook[:, 1], quantiser.codebook[:, 0]).sort().values
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0]), atol=1e-5, rtol=0)


def test_id_outside_the_codebook_is_named():
    with pytest.raises(ValueError, match="run from 3 to 16, the codebook has 0 to 15"):
        many_codes().lookup(torch.tensor([[3, 16]]))


def test_entropy_of_a_certain_choice_is_zero_and_of_an_even_one_log_n():
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(entropy(p), torch.tensor([0.0, math.log(4)]))
