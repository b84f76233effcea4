import pytest
import torch

from posttrain.control.continuous.grid import GridReward, grid_world

GAMMA = 0.99


def shortest(size: int = 8) -> list[int]:
    """Moves from each cell to the goal in the last corner."""
    return [2 * (size - 1) - row - column for row in range(size) for column in range(size)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (GridReward.COST, lambda k: -(1 - GAMMA**k) / (1 - GAMMA)),  # −1 in each of k moves
        (GridReward.GOAL, lambda k: GAMMA ** (k - 1)),  # 1 in the k-th move
    ],
)
def test_optimal_values_are_those_of_the_shortest_path(kind: GridReward, value):
    world = grid_world(kind)
    best = world.optimal_q(discount=GAMMA).view(64, 4).amax(-1)
    expected = torch.tensor([value(k) for k in shortest()[:-1]], dtype=torch.float64)  # the goal itself is never left
    torch.testing.assert_close(best[:-1], expected, rtol=0, atol=1e-10)
    assert world.is_start.view(64, 4).all(-1).tolist() == [True] * 63 + [False]
    assert int(world.is_terminal.sum()) == 4  # from the two neighbours, and the two moves at the goal into a wall


def test_optimal_values_of_the_distance_reward_never_end():
    # k moves from the goal: rewards 1 − (k − i)/14 for i = 1..k, then 1 for ever.
    world = grid_world(GridReward.DISTANCE)
    best = world.optimal_q(discount=GAMMA).view(64, 4).amax(-1)
    for state, k in enumerate(shortest()):
        on_the_way = sum(GAMMA ** (i - 1) * (1 - (k - i) / 14) for i in range(1, k + 1))
        # Value iteration stops 1e-12 / (1 − γ) from the fixed point.
        assert best[state].item() == pytest.approx(on_the_way + GAMMA**k / (1 - GAMMA), abs=1e-9)
    assert world.is_start.all()
    assert not world.is_terminal.any()


def test_each_pair_has_its_own_features_of_one_state_and_one_action():
    features = grid_world(GridReward.COST).pair_features()
    assert features.shape == (256, 68)
    assert features[:, :64].argmax(-1)[4 * 17 + 2] == 17
    assert features[:, 64:].argmax(-1)[4 * 17 + 2] == 2
    assert (features.sum(-1) == 2).all()
    assert len(features.unique(dim=0)) == 256
