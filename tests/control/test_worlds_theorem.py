"""The theorem by enumeration: 0 violations, equality for tables, strict inclusion for factors."""

import pytest
import torch
from torch.testing import assert_close

from posttrain.control.worlds.theorem import (
    DISCOUNT,
    N_PAIRS,
    ModelClass,
    SetSizes,
    factored_models,
    optimal_values,
    tabular_models,
)


@pytest.fixture(scope="module")
def factored() -> ModelClass:
    return ModelClass(factored_models())


@pytest.fixture(scope="module")
def tabular() -> ModelClass:
    return ModelClass(tabular_models())


def measured(models: ModelClass, n_true_models: int) -> list[SetSizes]:
    generator = torch.Generator().manual_seed(0)
    sizes: list[SetSizes] = []
    for _ in range(n_true_models):
        true_model = int(torch.randint(len(models.next_state), (), generator=generator))
        sizes += models.set_sizes(true_model, torch.randperm(N_PAIRS, generator=generator))
    return sizes


def test_factored_class_has_256_models_and_146_optimal_value_functions(factored: ModelClass) -> None:
    assert (len(factored.next_state), len(factored.values)) == (256, 146)
    assert len(factored.next_state.flatten(1).unique(dim=0)) == 256


def test_tabular_class_has_every_table_and_17602_optimal_value_functions(tabular: ModelClass) -> None:
    assert (len(tabular.next_state), len(tabular.values)) == (4**8, 17602)


def test_value_of_staying_in_the_rewarding_state_is_the_geometric_series() -> None:
    # Every action leads to (1, 1): 1 / (1 - 0.9) = 10 there, and 0.9 · 10 elsewhere.
    q = optimal_values(torch.full((1, 4, 2), 3))
    expected = torch.tensor([[9.0, 9.0]] * 3 + [[10.0, 10.0]], dtype=torch.float64)
    assert DISCOUNT == 0.9
    assert_close(q[0], expected, rtol=0, atol=1e-9)


def test_model_based_set_is_always_a_subset_of_the_model_free_one(factored: ModelClass, tabular: ModelClass) -> None:
    sizes = measured(factored, 100) + measured(tabular, 20)
    assert len(sizes) == 120 * 9
    assert all(s.is_subset for s in sizes)


def test_both_sets_are_equal_always_where_each_outcome_is_chosen_freely(tabular: ModelClass) -> None:
    assert all(s.n_model_based == s.n_model_free for s in measured(tabular, 20))


def test_model_based_set_is_often_strictly_smaller_where_pairs_share_structure(factored: ModelClass) -> None:
    # 200 other draws gave strict shares of 0.36 to 0.88 for 1 to 7 observed pairs; means 11.9 and 6.0 at three pairs.
    sizes = measured(factored, 100)
    for n in range(1, N_PAIRS):
        at_n = [s for s in sizes if s.n_observed == n]
        assert sum(s.n_model_based < s.n_model_free for s in at_n) / len(at_n) > 0.25
    at_three = [s for s in sizes if s.n_observed == 3]
    assert sum(s.n_model_free for s in at_three) / 100 == pytest.approx(11.9, abs=1.5)
    assert sum(s.n_model_based for s in at_three) / 100 == pytest.approx(6.0, abs=1.5)


def test_with_nothing_observed_all_values_fit_and_with_everything_only_the_true_one(factored: ModelClass) -> None:
    sizes = factored.set_sizes(0, torch.arange(N_PAIRS))
    assert (sizes[0].n_model_free, sizes[0].n_model_based) == (146, 146)
    assert (sizes[-1].n_model_free, sizes[-1].n_model_based) == (1, 1)
