import pytest
import torch

from posttrain.control.continuous.rank import effective_rank, numerical_rank


def features_with(values: list[float], *, n: int = 50, d: int = 8) -> torch.Tensor:
    """[n, d] whose singular values, divided by √n, are `values` and else 0."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    diagonal = torch.zeros(d, dtype=torch.float64)
    diagonal[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return left @ torch.diag(diagonal * n**0.5) @ right


def test_ranks_count_the_singular_values_that_a_matrix_was_built_from():
    features = features_with([2.0, 1.0, 0.5, 0.02, 0.005])
    assert [numerical_rank(features, threshold=t) for t in (1.5, 0.4, 0.01, 1e-3)] == [1, 3, 4, 5]
    # Sum 3.525: partial sums 2, 3, 3.5, 3.52, 3.525, that is 56.7, 85.1, 99.3, 99.86, 100 %.
    assert [effective_rank(features, delta=d) for d in (0.5, 0.2, 0.01, 0.005, 1e-6)] == [1, 2, 3, 4, 5]


def test_ranks_do_not_depend_on_the_order_of_samples():
    features = features_with([2.0, 1.0, 0.5, 0.02])
    shuffled = features[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    assert numerical_rank(shuffled, threshold=0.01) == numerical_rank(features, threshold=0.01) == 4
    assert effective_rank(shuffled, delta=0.01) == effective_rank(features, delta=0.01) == 3


def test_doubled_samples_leave_both_ranks_and_doubled_scale_the_effective_rank_alone():
    features = features_with([2.0, 1.0, 0.5, 0.009])
    twice = torch.cat((features, features))
    assert numerical_rank(twice, threshold=0.01) == numerical_rank(features, threshold=0.01) == 3
    assert numerical_rank(2 * features, threshold=0.01) == 4
    assert effective_rank(2 * features, delta=0.01) == effective_rank(features, delta=0.01) == 3


def test_features_of_zeros_have_rank_zero():
    assert numerical_rank(torch.zeros(4, 3), threshold=0.0) == 0
    assert effective_rank(torch.zeros(4, 3), delta=0.01) == 0


def test_features_without_samples_are_refused():
    with pytest.raises(ValueError, match=r"features are \(0, 3\), needed \[N, D\]"):
        numerical_rank(torch.zeros(0, 3), threshold=0.01)
