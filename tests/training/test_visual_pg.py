"""Policy gradients on visual tokens, end to end on drawn pictures: their reward, and a run of the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.cli import main
from posttrain.pretrained import load_tokenizer
from posttrain.training.visual_pg import PictureReward, build_visual_trainer
from posttrain.training.visual_pg_config import ImageReward, VisualPgConfig
from posttrain.vision.prompts import prompt_of, split_prompts
from posttrain.vision.visual_text import prompt_text, visual_ids
from tests.training.exact_pictures import SMALL_WORLD, ExactPictures, write_picture_policy
from tests.training.tiny_oreo import step_logs
from tests.vision.tiny_tokenizer import tiny_tokenizer

RUN = {
    "samples_per_prompt": 8,
    "alpha": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
}


def test_reward_is_that_of_the_picture_and_0_for_what_draws_none(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_picture_policy(tmp_path, ExactPictures()))
    ids, red_ring, blue_square = visual_ids(tokenizer), ExactPictures().code(1, 0), ExactPictures().code(0, 1)
    text = "a red ring"
    reward = PictureReward(
        ImageReward.MEAN, [prompt_of(SMALL_WORLD, text)], ExactPictures(), tokenizer, torch.device("cpu")
    )
    right, extra, blank = ([red_ring, 0, 0, 0], [0, red_ring, blue_square, 0], [0, 0, 0, 0])
    completions = [(ids.to_tokens(torch.tensor(codes))).tolist() for codes in (right, extra, blank)]
    completions += [completions[0][:3], [*completions[0][:3], ids.bov], completions[0]]
    graded = reward([prompt_text(text)] * 6, completions)
    # Two checks: one red ring, and nothing else. Three tokens of four draw nothing, and <bov> is no visual token.
    assert [one.reward for one in graded] == [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]
    assert [one.metrics["reward/strict/colours"] for one in graded] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_policy_of_another_codebook_is_refused(tmp_path: Path) -> None:
    policy = write_picture_policy(tmp_path / "policy", ExactPictures())
    config = VisualPgConfig(
        model=str(policy), visual_tokenizer="", output_dir=str(tmp_path), rounds=1, learning_rate=1e-3, **RUN
    )
    with pytest.raises(ValueError, match=r"writes 5 visual codes, the visual tokenizer draws 32"):
        build_visual_trainer(config, tiny_tokenizer(), load_tokenizer(policy))


def test_untrained_policy_learns_to_draw_from_the_reward_alone(tmp_path: Path) -> None:
    # 4 cells, 5 codes: random tokens are mostly words, so the first pictures are almost all worth 0.
    policy = write_picture_policy(tmp_path / "policy", ExactPictures())
    config = VisualPgConfig(
        model=str(policy),
        visual_tokenizer="",
        output_dir=str(tmp_path / "run"),
        reward=ImageReward.MEAN,
        rounds=60,
        per_device_train_batch_size=12,
        learning_rate=5e-3,
        **RUN,
    )
    trainer = build_visual_trainer(config, ExactPictures(), load_tokenizer(policy))
    trainer.train()
    logged = step_logs(trainer)
    assert sum(step["reward/mean"] for step in logged[:5]) / 5 < 0.02
    assert sum(step["reward/mean"] for step in logged[-5:]) / 5 > 0.2
    assert sum(step["reward/strict"] for step in logged[-5:]) / 5 > 0.03
    # The families take turns: 12 prompts are two of each, and none is of a combination that is held out.
    assert all(f"reward/strict/{family}" in logged[0] for family in ("single", "position", "attribution"))
    train, held_out = split_prompts(SMALL_WORLD)
    assert {prompt.text for prompt in trainer.prompts} == {prompt_text(prompt.text) for prompt in train}
    assert held_out


def test_verb_trains_on_the_pictures_of_a_saved_tokenizer(tmp_path: Path) -> None:
    pictures = tiny_tokenizer()
    pictures.save(tmp_path / "pictures")
    policy = write_picture_policy(tmp_path / "policy", pictures)
    (tmp_path / "run.yaml").write_text(json.dumps(RUN | {"alpha": 0.1, "rounds": 2}))
    words = ["--model", str(policy), "--visual_tokenizer", str(tmp_path / "pictures"), "--learning_rate", "1e-3"]
    words += ["--per_device_train_batch_size", "3", "--output_dir", str(tmp_path / "run")]
    assert main(["visual-pg", "--config", str(tmp_path / "run.yaml"), *words]) == 0
    assert (tmp_path / "run/policy/model.safetensors").is_file()
    assert len(load_tokenizer(tmp_path / "run/policy")) == len(load_tokenizer(policy))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert rows[0]["loss/kl_ref"] == 0.0
    assert (
        str(tmp_path / "pictures/visual_tokenizer.safetensors")
        in json.loads((tmp_path / "run/run.json").read_text())["data_sha256"]
    )
