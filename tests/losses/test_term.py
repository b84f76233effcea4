"""`total`: sums divided once, by the count of each term's own unit."""

import pytest
import torch

from posttrain.losses import Term, total


def term(name: str, numbers: list[float], unit: str, coef: float = 1.0) -> Term:
    return Term(name, torch.tensor(numbers, requires_grad=True), unit, coef)


def test_total_divides_each_term_by_the_count_of_its_own_unit():
    # (1 + 2 + 3) / 4 + 0.5 · (10 + 20) / 6 = 1.5 + 2.5 = 4.
    terms = (term("policy", [1.0, 2.0, 3.0], "sequence"), term("kl", [10.0, 20.0], "token", 0.5))
    loss = total(terms, {"sequence": 4, "token": 6, "pair": 0})
    assert loss.item() == 4.0
    loss.backward()
    assert terms[0].value.grad.tolist() == [0.25, 0.25, 0.25]
    assert terms[1].value.grad.tolist() == pytest.approx([0.5 / 6, 0.5 / 6], abs=1e-8)


def test_total_ignores_metrics_even_when_they_are_not_finite_or_not_counted():
    metric = Term("seconds", torch.tensor(float("nan")), "state", coef=0.0)
    assert total((term("policy", [3.0], "sequence"), metric), {"sequence": 2}).item() == 1.5


def test_total_of_a_scalar_term_is_a_scalar():
    assert total((Term("policy", torch.tensor(3.0), "pair", 2.0),), {"pair": 4}).item() == 1.5


def test_total_refuses_a_unit_that_was_not_counted():
    with pytest.raises(KeyError, match=r"term 'kl' is averaged over 'token', but only \['sequence'\] were counted"):
        total((term("kl", [1.0], "token"),), {"sequence": 1})


@pytest.mark.parametrize("count", [0, -1, float("nan")])
def test_total_refuses_a_count_that_is_not_positive(count):
    with pytest.raises(ValueError, match=r"has (0|-1|nan) items of 'sequence': is every row masked\?"):
        total((term("policy", [1.0], "sequence"),), {"sequence": count})


def test_total_refuses_an_objective_of_metrics_only():
    with pytest.raises(ValueError, match=r"no term carries a gradient \(terms: reward; all have coef 0\)"):
        total((term("reward", [1.0], "sequence", 0.0),), {"sequence": 1})


def test_total_refuses_an_empty_objective():
    with pytest.raises(ValueError, match=r"terms: none"):
        total((), {"sequence": 1})
