"""`posttrain visual-pg`: policy gradients on visual tokens, rewarded by program checks of the pictures they draw.

The scheme of Selftok-Zero (arXiv 2505.07538): prompts and a reward, no pictures to imitate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.models.policy import load_policy, load_reference
from posttrain.models.policy_and_reference import PolicyAndReference
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import hash_data, write_run_card
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.online_groups import Graded
from posttrain.training.online_prompts import OnlinePrompt
from posttrain.training.online_trainer import OnlineTrainer
from posttrain.training.visual_pg_config import ImageReward, VisualPgConfig
from posttrain.vision.image_reward import ImageGrade
from posttrain.vision.prompts import ImagePrompt, split_prompts
from posttrain.vision.token_reward import PictureTokens, grade_tokens, require_codes
from posttrain.vision.tokenizer import load_visual_tokenizer
from posttrain.vision.visual_text import prompt_text, visual_ids


def train_visual_pg(config: VisualPgConfig) -> Path:
    """Train; the returned run folder holds `policy/`, run.json and metrics.jsonl.

    Raises ValueError when the policy's vocabulary is of another visual tokenizer.
    """
    run_dir = Path(config.output_dir)
    pictures = load_visual_tokenizer(Path(config.visual_tokenizer)).to(config.device)
    trainer = build_visual_trainer(config, pictures, load_tokenizer(config.model))
    if config.process_index == 0:
        write_run_card(run_dir, config.to_dict(), hash_data(config.visual_tokenizer))
    trainer.add_callback(MetricsFile())
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    return run_dir


def build_visual_trainer(
    config: VisualPgConfig, pictures: PictureTokens, tokenizer: PreTrainedTokenizerBase
) -> OnlineTrainer:
    """The trainer of one run; `pictures` draws on the config's device, `tokenizer` is the policy's."""
    require_codes(pictures, visual_ids(tokenizer), config.model)
    train, _ = split_prompts(pictures.world, held_out_share=config.held_out_share, seed=config.split_seed)
    train = tuple(prompt for prompt in train if prompt.family in config.families)
    dtype = getattr(torch, config.dtype)
    return OnlineTrainer(
        PolicyAndReference(
            load_policy(config.model, dtype=dtype),
            load_reference(config.reference or config.model, dtype=dtype),
            chunk_size=config.log_prob_chunk_size,
        ),
        config,
        prompts=[OnlinePrompt(prompt_text(prompt.text), prompt.family) for prompt in train],
        reward=PictureReward(config.reward, train, pictures, tokenizer, config.device),
        max_new_tokens=pictures.n_tokens,
        tokenizer=tokenizer,
    )


class PictureReward:
    """The SampleReward of visual tokens."""

    def __init__(
        self,
        reward: ImageReward,
        prompts: Sequence[ImagePrompt],
        pictures: PictureTokens,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        self._reward = reward
        self._prompts = {prompt_text(prompt.text): prompt for prompt in prompts}
        self._pictures = pictures
        self._visual_ids = visual_ids(tokenizer)
        self._device = device

    def __call__(self, prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Graded]:
        asked = [self._prompts[text] for text in prompts]
        grades = grade_tokens(self._pictures, self._visual_ids, asked, completions, device=self._device)
        return [self._graded(prompt, grade) for prompt, grade in zip(asked, grades, strict=True)]

    def _graded(self, prompt: ImagePrompt, grade: ImageGrade) -> Graded:
        scores = {ImageReward.STRICT: grade.strict, ImageReward.MEAN: grade.mean}
        by_family = {f"reward/{name}/{prompt.family}": score for name, score in scores.items()}
        return Graded(scores[self._reward], {f"reward/{name}": score for name, score in scores.items()} | by_family)
