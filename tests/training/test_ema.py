"""Moving averages of weights, against closed forms."""

import copy

import pytest
import torch
from torch import nn

from posttrain.training.ema import update_ema


def network(weight: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False, dtype=dtype)
    nn.init.constant_(layer.weight, weight)
    return layer


def test_average_of_a_constant_network_closes_the_gap_geometrically():
    # start 1, network 5, decay 0.9: after n updates 5 − 4 · 0.9^n.
    average = network(1.0)
    for n in range(1, 6):
        update_ema(average, network(5.0), decay=0.9)
        torch.testing.assert_close(average.weight.data, torch.full((2, 2), 5 - 4 * 0.9**n).double(), rtol=1e-7, atol=0)


def test_average_of_a_moving_network_weighs_the_past_geometrically():
    # 0.5³ · 8 + 0.5³ · 1 + 0.5² · 2 + 0.5 · 4 = 1 + 0.125 + 0.5 + 2 = 3.625.
    average = network(8.0)
    for weight in (1.0, 2.0, 4.0):
        update_ema(average, network(weight), decay=0.5)
    assert average.weight.flatten().tolist() == [3.625] * 4


def test_decay_of_zero_copies_the_network():
    average = network(8.0)
    update_ema(average, network(3.0), decay=0.0)
    assert average.weight.flatten().tolist() == [3.0] * 4


def test_float32_average_follows_a_bfloat16_network_by_steps_that_bfloat16_would_round_away():
    # 0.001 · (1.0078125 − 1) = 7.8e-6 a step, far below bfloat16's spacing of 2^-7 at 1.
    average = network(1.0, torch.float32)
    update_ema(average, network(1.0078125, torch.bfloat16), decay=0.999)
    assert average.weight[0, 0].item() == pytest.approx(1 + 7.8125e-6, abs=1.2e-7)
    with pytest.raises(ValueError, match=r"weight of the average is torch.bfloat16, needs float32 or float64"):
        update_ema(network(1.0, torch.bfloat16), network(1.0, torch.bfloat16), decay=0.999)


def test_tied_weights_are_averaged_once():
    # Once: 1 + 0.5 · (5 − 1) = 3. Twice would give 4.
    tied = nn.Sequential(network(5.0), network(5.0))
    tied[1].weight = tied[0].weight
    average = copy.deepcopy(tied)
    nn.init.constant_(average[0].weight, 1.0)
    update_ema(average, tied, decay=0.5)
    assert average[1].weight[0, 0].item() == 3.0


def test_average_keeps_no_graph_and_the_network_its_weights():
    current = network(5.0)
    average = copy.deepcopy(current)
    nn.init.constant_(average.weight, 1.0)
    update_ema(average, current, decay=0.5)
    assert average.weight.grad_fn is None
    assert current.weight.flatten().tolist() == [5.0] * 4


def test_buffers_are_copied():
    current = nn.BatchNorm1d(2)
    current.running_mean.fill_(0.7)
    average = copy.deepcopy(current)
    average.running_mean.zero_()
    update_ema(average, current, decay=0.9)
    torch.testing.assert_close(average.running_mean, current.running_mean, rtol=0, atol=0)


def test_networks_of_another_structure_are_refused_before_anything_moves():
    with pytest.raises(ValueError, match=r"bias: a weight of one network only"):
        update_ema(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), decay=0.9)
    average = nn.Sequential(network(1.0), nn.Linear(3, 1, bias=False))
    with pytest.raises(ValueError, match=r"1.weight is \(1, 3\) in the average, \(1, 2\) in the network"):
        update_ema(average, nn.Sequential(network(5.0), nn.Linear(2, 1, bias=False)), decay=0.9)
    assert average[0].weight.flatten().tolist() == [1.0] * 4


def test_weight_that_is_not_on_this_rank_is_refused():
    # ZeRO-3 leaves an empty tensor where a partitioned weight was.
    average, current = network(1.0), network(5.0)
    for layer in (average, current):
        layer.weight.data = torch.empty(0, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weight has no element on this rank: ZeRO-3 partitions it"):
        update_ema(average, current, decay=0.9)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay is .*, needs 0 <= decay < 1"):
        update_ema(network(1.0), network(1.0), decay=decay)
