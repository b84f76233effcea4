"""What a run of policy gradients on visual tokens can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from posttrain.training.online_config import OnlineConfig
from posttrain.vision.prompts import Family


class ImageReward(StrEnum):
    STRICT = "strict"  # 1 if every check of the picture is passed, else 0
    MEAN = "mean"  # the share of passed checks


@dataclass(kw_only=True)
class VisualPgConfig(OnlineConfig):
    """Train a policy on the pictures that it draws: sample visual tokens, draw them, check them against the prompt.

    A round samples per_device_train_batch_size * gradient_accumulation_steps prompts on each process,
    samples_per_prompt pictures of each. Logs reward/strict and reward/mean, in all and by family of prompts.
    """

    visual_tokenizer: str = field(
        metadata={"help": "Folder of the visual tokenizer that draws the tokens.", "group": "models"}
    )
    reward: ImageReward = field(
        default=ImageReward.STRICT,
        metadata={"help": "strict: all checks passed, 0 or 1; mean: the share of them.", "group": "objective"},
    )
    families: list[Family] = field(
        default_factory=lambda: list(Family),
        metadata={
            "help": "Families of prompts to sample from, each as often as the others. One that is solved teaches "
            "nothing any more, and takes its share of the samples.",
            "group": "prompts",
        },
    )
    held_out_share: float = field(
        default=0.2,
        metadata={"help": "Share of the combinations that no run trains on.", "group": "prompts"},
    )
    split_seed: int = field(default=0, metadata={"help": "Which combinations those are.", "group": "prompts"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reward = ImageReward(self.reward)
        self.families = [Family(family) for family in self.families]
        if not self.families:
            raise ValueError(f"families is empty, needs at least one of {', '.join(Family)}")
