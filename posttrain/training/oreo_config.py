"""What an OREO run can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from posttrain.data.collate import StateLevel
from posttrain.data.sources import OnBadRow
from posttrain.losses.oreo import REWARD_MAP
from posttrain.models.reference import ReferenceFrom
from posttrain.models.roles import Roles
from posttrain.training.objective_arguments import ObjectiveArguments
from posttrain.training.run_config import RowsConfig
from posttrain.training.without_accelerator import choose_cpu


@dataclass(kw_only=True)
class OreoConfig(RowsConfig, ObjectiveArguments):
    """Train a policy and its value function with OREO on rows that carry rewards.

    The hyper-parameters of the paper are in recipes/oreo.
    """

    reference: str | None = field(
        default=None, metadata={"help": "Frozen reference of the KL penalty; default: the model.", "group": "models"}
    )
    reference_from: ReferenceFrom = field(
        default=ReferenceFrom.LIVE,
        metadata={
            "help": "Where the reference's numbers come from: live, a network in memory; adapters_off, the policy "
            "without its LoRA adapters; cached_log_probs and cached_hidden, computed once before the first step and "
            "kept in files. cached_log_probs cannot give the exact KL and needs alpha 0.",
            "group": "models",
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the cached numbers, taken up again if it fits; default: reference_cache in output_dir.",
            "group": "models",
        },
    )
    policy_lora_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of LoRA adapters on all linear layers of the policy but its output head, which then rests; "
            "0: the whole policy is trained. Needs peft.",
            "group": "models",
        },
    )
    policy_lora_alpha: float | None = field(
        default=None,
        metadata={"help": "The policy's adapters are scaled by alpha / rank; default: the rank.", "group": "models"},
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "Value model to start from; default: the model's trunk with a zero head.",
            "group": "models",
        },
    )
    value_lora_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of LoRA adapters on all linear layers of the value model, which then rests but for its "
            "head; 0: the whole value model is trained. Needs peft.",
            "group": "models",
        },
    )
    value_lora_alpha: float | None = field(
        default=None,
        metadata={"help": "The adapters are scaled by alpha / rank; default: the rank.", "group": "models"},
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "QLoRA: hold the weights under the LoRA adapters in 4 bits. The reference is then the policy with "
            "its adapters off. Needs bitsandbytes.",
            "group": "models",
        },
    )
    roles: Roles = field(
        default=Roles.SEPARATE,
        metadata={
            "help": "What policy and value share: separate, nothing; two_adapters, one frozen model under LoRA "
            "adapters of each; shared_trunk, the policy's trunk, with a head on it for the value.",
            "group": "models",
        },
    )
    value_gradient_scale: float = field(
        default=0.0,
        metadata={
            "help": "With roles shared_trunk, the share of the value's gradient that enters the trunk; 0: none.",
            "group": "models",
        },
    )
    train_data: list[str] = field(
        metadata={
            "help": "Trajectory rows: .jsonl or .parquet files, or Hub ids owner/name:config:split.",
            "group": "data",
        },
    )
    reward_map: tuple[float, float] = field(
        default=REWARD_MAP,
        metadata={"help": "(scale, shift): train on scale * reward + shift of each row.", "group": "data"},
    )
    level: StateLevel = field(
        default=StateLevel.TOKEN,
        metadata={
            "help": "What counts as one action: a token, a reasoning step, or the response; one_step: a token, whose "
            "residual ends at the value of the next state.",
            "group": "objective",
        },
    )
    step_delimiters: list[str] = field(
        default_factory=lambda: ["\n"],
        metadata={"help": "Texts that end a reasoning step; used by level=step.", "group": "objective"},
    )
    beta: float = field(metadata={"help": "Temperature of the soft Bellman equation, > 0.", "group": "objective"})
    alpha: float = field(metadata={"help": "Weight of the exact KL(policy || reference).", "group": "objective"})
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "KL(policy || reference) to keep, in nats per action: the weight of the KL then starts at alpha "
            "and follows the measured KL. Default: alpha stays.",
            "group": "objective",
        },
    )
    kl_target_rate: float = field(
        default=0.02,
        metadata={
            "help": "In each step the weight is multiplied by exp(rate * (KL / kl_target - 1)).",
            "group": "objective",
        },
    )
    alpha_forward: float = field(
        default=0.0,
        metadata={"help": "Weight of the exact KL(reference || policy), beside alpha's.", "group": "objective"},
    )
    value_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Steps in which the value learns alone; the policy's schedule begins after them.",
            "group": "objective",
        },
    )
    policy_learning_rate: float = field(
        metadata={"help": "Peak learning rate of the policy; replaces learning_rate.", "group": "optimizer"}
    )
    value_learning_rate: float = field(
        metadata={"help": "Peak learning rate of the value model.", "group": "optimizer"}
    )
    value_max_grad_norm: float | None = field(
        default=1.0, metadata={"help": "Clip the value's gradient to this L2 norm; null: never.", "group": "optimizer"}
    )
    padding_free: bool = field(
        default=False,
        metadata={
            "help": "Lay the rows of a batch end to end instead of padding them: the same loss, no work on padding. "
            "Needs full causal attention.",
            "group": "memory",
        },
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Not used: set policy_learning_rate and value_learning_rate."}
    )
    # Inherited from TrainingArguments, with the defaults that this trainer needs.
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW (the reference code's value)."})

    def __post_init__(self) -> None:
        if self.learning_rate not in (None, self.policy_learning_rate):
            raise ValueError("learning_rate is not used: set policy_learning_rate and value_learning_rate")
        self.learning_rate = self.policy_learning_rate  # what transformers shows; schedules scale each group's own
        choose_cpu(self)
        super().__post_init__()
        self.level = StateLevel(self.level)
        self.reference_from = ReferenceFrom(self.reference_from)
        self.roles = Roles(self.roles)
        self.on_bad_row = OnBadRow(self.on_bad_row)
        self._check()

    def _check(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, it must be above 0: it divides the soft value function")
        for name, alpha in (("alpha", self.alpha), ("alpha_forward", self.alpha_forward)):
            if alpha < 0:
                raise ValueError(f"{name} is {alpha}, it must not be negative: it weighs a KL penalty")
        self._check_kl_target()
        self._check_lora("value", self.value_lora_rank, self.value_lora_alpha)
        self._check_lora("policy", self.policy_lora_rank, self.policy_lora_alpha)
        self._check_roles()
        self._check_reference()
        if self.load_in_4bit and self.reference_from is not ReferenceFrom.ADAPTERS_OFF:
            raise ValueError(
                f"load_in_4bit quantises the model under the adapters, and with reference_from "
                f"{self.reference_from.value} the reference would be another one: set policy_lora_rank and "
                "reference_from adapters_off"
            )

    def _check_roles(self) -> None:
        if self.roles is not Roles.SEPARATE and self.value_model is not None:
            raise ValueError(
                f"value_model {self.value_model} has a trunk of its own, but roles is {self.roles.value}: leave "
                "value_model out, or take roles separate"
            )
        if self.roles is Roles.TWO_ADAPTERS and 0 in (self.policy_lora_rank, self.value_lora_rank):
            raise ValueError(
                f"roles two_adapters has policy_lora_rank {self.policy_lora_rank} and value_lora_rank "
                f"{self.value_lora_rank}: both need a rank, since the model under them rests"
            )
        if self.roles is Roles.SHARED_TRUNK and self.value_lora_rank > 0:
            raise ValueError("value_lora_rank adapts a value model's trunk, but with roles shared_trunk it has none")
        if self.value_gradient_scale != 0.0 and self.roles is not Roles.SHARED_TRUNK:
            raise ValueError(
                f"value_gradient_scale is {self.value_gradient_scale}, but with roles {self.roles.value} no gradient "
                "of the value reaches the policy: set roles shared_trunk"
            )
        if not 0.0 <= self.value_gradient_scale < math.inf:
            raise ValueError(f"value_gradient_scale is {self.value_gradient_scale}, needs a finite number >= 0")

    def _check_kl_target(self) -> None:
        if self.kl_target is None:
            return
        for name, number in (("kl_target", self.kl_target), ("kl_target_rate", self.kl_target_rate)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} is {number}, needs a finite number above 0")
        if self.alpha == 0:
            raise ValueError(
                "alpha is 0, but with kl_target it is where the weight of the KL starts, which is only ever "
                "multiplied: set it above 0"
            )

    def _check_lora(self, network: str, rank: int, alpha: float | None) -> None:
        if rank < 0:
            raise ValueError(f"{network}_lora_rank is {rank}, needs a rank, or 0 for no adapters")
        if rank == 0 and alpha is not None:
            raise ValueError(f"{network}_lora_alpha {alpha} scales adapters: set {network}_lora_rank too")

    def _check_reference(self) -> None:
        source = self.reference_from
        is_cached = source in (ReferenceFrom.CACHED_LOG_PROBS, ReferenceFrom.CACHED_HIDDEN)
        if self.reference_cache is not None and not is_cached:
            raise ValueError(
                f"reference_cache {self.reference_cache} is not used by reference_from {source.value}: choose "
                "cached_log_probs or cached_hidden"
            )
        if source is ReferenceFrom.CACHED_LOG_PROBS and (self.alpha > 0 or self.alpha_forward > 0):
            raise ValueError(
                f"alpha is {self.alpha} and alpha_forward {self.alpha_forward}, but cached_log_probs holds the chosen "
                "tokens' log-probs alone, and the exact KL needs the reference's final hidden states: choose "
                "reference_from cached_hidden, or set both to 0"
            )
        if source is not ReferenceFrom.ADAPTERS_OFF:
            return
        if self.policy_lora_rank == 0:
            raise ValueError("reference_from adapters_off switches the policy's adapters off: set policy_lora_rank")
        if self.reference not in (None, self.model):
            raise ValueError(
                f"reference is {self.reference}, but with reference_from adapters_off it is the model itself: leave "
                "reference out, or choose live"
            )
