"""Advantages within groups of answers, on literal numbers."""

import pytest
import torch

from posttrain.losses import group_mean_advantage, leave_one_out_advantage, scale_by_group_std

REWARD = torch.tensor([1.0, 5.0, 0.0, 5.0, 0.0], dtype=torch.float64)
GROUP = torch.tensor([7, 3, 7, 3, 7])  # {1, 0, 0} and {5, 5}


def test_group_mean_is_subtracted_within_each_group():
    assert group_mean_advantage(REWARD, GROUP).tolist() == pytest.approx([2 / 3, 0, -1 / 3, 0, -1 / 3], abs=1e-15)


def test_leave_one_out_subtracts_the_mean_of_the_others():
    # 1 − 0; 0 − (1 + 0)/2.
    assert leave_one_out_advantage(REWARD, GROUP).tolist() == pytest.approx([1, 0, -0.5, 0, -0.5], abs=1e-15)


@pytest.mark.parametrize("advantage", [group_mean_advantage, leave_one_out_advantage])
def test_scaled_advantages_are_in_units_of_the_spread_of_their_group(advantage):
    # {2/3, −1/3, −1/3}: variance (4/9 + 1/9 + 1/9)/3 = 2/9; 2/3 / sqrt(2/9) = sqrt(2), −1/3 / sqrt(2/9) = −1/sqrt(2).
    # Leave-one-out advantages are 3/2 of these, and so is their deviation.
    scaled = scale_by_group_std(advantage(REWARD, GROUP), GROUP)
    assert scaled.tolist() == pytest.approx([2**0.5, 0, -(0.5**0.5), 0, -(0.5**0.5)], abs=1e-14)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e30])
@pytest.mark.parametrize("advantage", [group_mean_advantage, leave_one_out_advantage])
def test_group_that_earned_one_reward_has_advantage_exactly_zero(advantage, reward):
    # float32 means of three 0.1 or 1/3 are off by an ulp; divided by a deviation of one ulp they would be ±1.
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    rewards = torch.full((7,), reward)
    advantages = advantage(rewards, group)
    assert torch.count_nonzero(advantages) == 0
    assert torch.count_nonzero(scale_by_group_std(advantages, group)) == 0


def test_equal_advantages_scale_to_zero_even_when_they_are_not_zero():
    # Nothing in the group tells its answers apart, whatever baseline was used before.
    assert scale_by_group_std(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0, 0, 0])).tolist() == [0.0, 0.0, 0.0]


def test_group_of_one_has_no_advantage_over_its_own_mean():
    assert group_mean_advantage(torch.tensor([3.0]), torch.tensor([0])).tolist() == [0.0]


def test_group_of_one_is_refused_where_the_others_are_the_baseline():
    with pytest.raises(ValueError, match=r"group 4: holds one answer, leave-one-out needs 2"):
        leave_one_out_advantage(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 2, 4]))


def test_rewards_and_groups_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) numbers for \(2,\) groups"):
        group_mean_advantage(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
