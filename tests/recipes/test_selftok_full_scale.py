"""The full-scale recipe is read by the config of its verb, and holds what was published."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import load_config
from posttrain.training.visual_pg_config import VisualPgConfig

RECIPE = Path(__file__).resolve().parent.parent.parent / "recipes/selftok/full_scale/visual_pg.yaml"


def test_recipe_of_the_full_scale_has_the_published_settings():
    config = load_config(VisualPgConfig, ["--config", str(RECIPE)], prog="posttrain visual-pg")
    assert (config.samples_per_prompt, config.alpha, config.learning_rate) == (24, 0.04, 1.5e-6)
    assert (config.objective, config.baseline, config.advantage_scale) == ("reinforce", "group_mean", "group_std")
    assert config.kl == "ref_k3"
    assert config.updates_per_round == 1
    assert config.optim == "adamw_torch"
