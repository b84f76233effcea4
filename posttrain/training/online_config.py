"""What a run of online policy gradients can be told, whatever its policy is rewarded for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from transformers.trainer_utils import SaveStrategy

from posttrain.training.objective_arguments import ObjectiveArguments
from posttrain.training.run_config import RunConfig
from posttrain.training.without_accelerator import choose_cpu


class PolicyObjective(StrEnum):
    REINFORCE = "reinforce"
    GRPO = "grpo"
    GRPO_TOKEN_MEAN = "grpo_token_mean"


class Baseline(StrEnum):
    GROUP_MEAN = "group_mean"
    LEAVE_ONE_OUT = "leave_one_out"


class AdvantageScale(StrEnum):
    NONE = "none"
    GROUP_STD = "group_std"


class KlTo(StrEnum):
    """Which KL is weighed by alpha; what each one's gradient is, posttrain.losses.policy_gradient says."""

    REF = "ref"
    REF_K3 = "ref_k3"
    ROLLOUT = "rollout"


class EvenGroups(StrEnum):
    """What becomes of groups whose samples all earned the same, and which therefore have advantages of 0."""

    KEEP = "keep"
    SKIP = "skip"


@dataclass(kw_only=True)
class OnlineConfig(RunConfig, ObjectiveArguments):
    """Base of a verb that samples from the policy, rewards the samples, learns from them, and samples again."""

    reference: str | None = field(
        default=None, metadata={"help": "Frozen reference of the KL; default: the model.", "group": "models"}
    )
    rounds: int = field(metadata={"help": "How often the policy is sampled from.", "group": "sampling"})
    samples_per_prompt: int = field(metadata={"help": "Samples of a prompt in a round (G).", "group": "sampling"})
    sample_batch_size: int = field(default=256, metadata={"help": "Rows sampled at a time.", "group": "sampling"})
    resample_tries: int = field(
        default=0,
        metadata={
            "help": "Sample a group whose rewards are all equal anew, up to so many times. The gradient of a prompt "
            "is then larger by one over its chance of an uneven group.",
            "group": "sampling",
        },
    )
    updates_per_round: int = field(
        default=1,
        metadata={
            "help": "Optimiser steps on the samples of one round, each on all of them. 1 is on-policy; more need the "
            "ratio and clip of grpo or grpo_token_mean.",
            "group": "objective",
        },
    )
    objective: PolicyObjective = field(
        default=PolicyObjective.REINFORCE,
        metadata={"help": "The policy gradient; docs/objectives/policy_gradient.md.", "group": "objective"},
    )
    baseline: Baseline = field(
        default=Baseline.LEAVE_ONE_OUT,
        metadata={
            "help": "What is taken off a reward: the mean of the group, which shrinks the gradient by (G - 1)/G, or "
            "of the others in it, which leaves it unbiased.",
            "group": "objective",
        },
    )
    advantage_scale: AdvantageScale = field(
        default=AdvantageScale.NONE,
        metadata={
            "help": "What advantages are divided by: nothing, or the group's standard deviation (as GRPO does; "
            "biased).",
            "group": "objective",
        },
    )
    even_groups: EvenGroups = field(
        default=EvenGroups.KEEP,
        metadata={
            "help": "Groups whose rewards are all equal: keep them, for the KL and in the averages, or skip them.",
            "group": "objective",
        },
    )
    kl: KlTo = field(
        default=KlTo.REF,
        metadata={
            "help": "The KL that alpha weighs: ref, exact KL(policy || reference); ref_k3, GRPO's estimate of it, "
            "whose gradient is that of KL(reference || policy); rollout, KL(sampling policy || policy), which does "
            "nothing with one update per round.",
            "group": "objective",
        },
    )
    alpha: float = field(
        metadata={
            "help": "Weight of the KL, a mean over the tokens of a sample. grpo's gain is such a mean too; reinforce "
            "sums over tokens, so that the same balance needs an alpha times their number.",
            "group": "objective",
        }
    )
    clip_low: float = field(
        default=0.2, metadata={"help": "grpo: no gain from a ratio below 1 - clip_low.", "group": "objective"}
    )
    clip_high: float = field(
        default=0.2, metadata={"help": "grpo: no gain from a ratio above 1 + clip_high.", "group": "objective"}
    )
    learning_rate: float = field(metadata={"help": "Peak learning rate.", "group": "optimizer"})
    # Inherited from TrainingArguments, with the meaning and the defaults that this trainer needs.
    per_device_train_batch_size: int = field(
        default=16,
        metadata={
            "help": "PROMPTS of a micro-batch on one process, each with all of its samples. A round holds these times "
            "gradient_accumulation_steps times the number of processes.",
            "group": "sampling",
        },
    )
    max_steps: int = field(default=-1, metadata={"help": "Not used: rounds times updates_per_round."})

    def __post_init__(self) -> None:
        n_steps = self.rounds * self.updates_per_round
        if self.max_steps not in (-1, n_steps):
            raise ValueError(f"max_steps is {self.max_steps}, but a run has rounds * updates_per_round: set rounds")
        self.max_steps = n_steps
        choose_cpu(self)
        super().__post_init__()
        self.objective = PolicyObjective(self.objective)
        self.baseline = Baseline(self.baseline)
        self.advantage_scale = AdvantageScale(self.advantage_scale)
        self.even_groups = EvenGroups(self.even_groups)
        self.kl = KlTo(self.kl)
        self._check()

    def _check(self) -> None:
        for name, least in (("rounds", 1), ("updates_per_round", 1), ("samples_per_prompt", 2), ("resample_tries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at least {least}")
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}, it must not be negative: it weighs a KL penalty")
        if self.updates_per_round > 1 and self.objective is PolicyObjective.REINFORCE:
            raise ValueError(
                f"updates_per_round is {self.updates_per_round}, but after its first update reinforce is the gradient "
                "of no return, since its samples are of the policy before: set objective grpo or grpo_token_mean, or "
                "updates_per_round 1"
            )
        if self.updates_per_round == 1 and self.kl is KlTo.ROLLOUT and self.alpha > 0:
            raise ValueError(
                f"alpha is {self.alpha} and kl rollout, but with one update per round the policy is the one that "
                "sampled, and this KL and its gradient are exactly 0: set kl ref, or alpha 0"
            )
        self._check_saving()

    def _check_saving(self) -> None:
        """A checkpoint holds no samples, so a run can go on only where a round begins."""
        if self.save_strategy is SaveStrategy.STEPS and self.save_steps % self.updates_per_round:
            raise ValueError(
                f"save_steps is {self.save_steps}, which falls between two updates on the samples of one round: set a "
                f"multiple of updates_per_round, {self.updates_per_round}"
            )
