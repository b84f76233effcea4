"""The recipe of BEER: its configs and the tasks that it names, and the segments of a language model's value head."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from posttrain.config import load_config
from posttrain.control.continuous.tasks import make_environment
from posttrain.losses import total
from posttrain.losses.representation import beer_hinge
from posttrain.schema import TokenValues
from posttrain.studies.beer.config import BeerConfig
from posttrain.studies.beer.grid_config import BeerGridConfig

RECIPE = Path(__file__).resolve().parent.parent.parent / "recipes" / "beer"


@pytest.fixture(scope="module")
def value_head() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llm_value_head", RECIPE / "llm_value_head.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(RECIPE.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_the_recipe_are_accepted(path: Path):
    config_class = BeerGridConfig if path.stem == "grid" else BeerConfig
    config = load_config(config_class, ["--config", str(path), "--output_dir", "run"], prog="control")
    assert len(config.seeds) >= 5


def test_twelve_tasks_of_the_readme_exist_with_rewards_in_the_unit_interval():
    pytest.importorskip("dm_control", reason="the control suite needs the extra `control`")
    (listed,) = re.findall(r"for task in ([\w\s\\-]+?); do", (RECIPE / "README.md").read_text(encoding="utf-8"))
    tasks = listed.replace("\\", " ").split()
    assert len(set(tasks)) == 12
    for task in tasks:
        environment = make_environment(task)
        assert environment.reset(0).shape == (environment.n_observations,)
        assert 0 <= environment.step(torch.zeros(environment.n_actions).numpy()).reward <= 1, task


def seen(module: ModuleType, *, ratio: float):
    """Two answers, of three and of one token, in rows of four states; log π − log π_ref is `ratio` at each action."""
    is_state = torch.tensor([[False, True, True, True], [False, True, False, False]])
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    logp = torch.where(is_state, torch.tensor(-1.0), torch.tensor(float("nan"))).requires_grad_()
    hidden = torch.arange(20, dtype=torch.float32).view(2, 5, 2).requires_grad_()
    values = TokenValues(
        logp=logp,
        ref_logp=logp.detach() - ratio,
        kl=None,
        entropy=torch.zeros(2, 4),
        value=torch.zeros(2, 4),
        reward=reward,
        is_action=is_state,
        is_state=is_state,
    )
    return module.Seen(values, hidden, torch.ones(1, 2))


def test_segments_of_a_value_head_are_its_tokens_and_the_last_one_is_not_followed(value_head: ModuleType):
    features = value_head.token_segments(seen(value_head, ratio=0.5), beta=0.1)
    assert features.phi[:, 0].tolist() == [2, 4, 6, 12]  # hidden state t of the four states
    assert features.next_phi[:3, 0].tolist() == [4, 6, 8]
    assert features.carry.tolist() == [1, 1, 0, 0]
    # r − β ρ: −0.05 within an answer, 1 − 0.05 with its last token
    torch.testing.assert_close(features.inflow, torch.tensor([-0.05, -0.05, 0.95, 0.95]))
    batch = {"is_state": seen(value_head, ratio=0.5).values.is_state}
    assert value_head.count_units(batch) == {"sequence": 2, "token": 2}


def test_penalty_on_a_value_head_is_zero_while_the_policy_is_its_reference(value_head: ModuleType):
    looked = seen(value_head, ratio=0.0)
    terms = beer_hinge(value_head.token_segments(looked, beta=0.1), coef=1.0, unit="token")
    total(terms, {"token": 2.0}).backward()
    assert terms[0].value.tolist() == [0.0] * 4
    assert looked.hidden.grad.abs().max() == 0
    assert looked.values.logp.grad is None  # the policy is never moved by it
