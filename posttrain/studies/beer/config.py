"""Options of `posttrain control beer`, and the learner that they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.config_fields import plain
from posttrain.control.continuous.environment import ActionKind
from posttrain.studies.beer.penalties import PenaltyName


class Algorithm(StrEnum):
    DDPG = "ddpg"
    TD3 = "td3"
    DQN = "dqn"

    @property
    def action_kind(self) -> ActionKind:
        return ActionKind.DISCRETE if self is Algorithm.DQN else ActionKind.CONTINUOUS


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class BeerConfig:
    """Train agents with and without a penalty on their critic's features, over seeds. Run again to go on."""

    output_dir: Path = field(metadata={"help": "Run folder: results.jsonl, and metrics.jsonl of every run."})
    task: str = _option(
        "domain-task of the control suite, or a gymnasium id such as Pendulum-v1.", "Pendulum-v1", "study"
    )
    methods: tuple[str, ...] = _option(
        "ddpg or td3, or dqn for discrete actions, alone or with _beer, _hinge, _released, _dr3 or _infer behind it.",
        ("ddpg", "ddpg_beer"),
        "study",
    )
    seeds: tuple[int, ...] = _option("One run of each method for each seed.", (0, 1, 2, 3, 4), "study")
    n_steps: int = _option(
        "Steps of a run; each is one action, played action_repeat times. See update_every.", 10_000, "study"
    )
    action_repeat: int = _option("Times that each action is played; the paper's is 1.", 1, "study")
    n_processes: int = _option("Runs at a time, with one thread each.", 1, "study")
    logging_steps: int = _option("Steps between rows of metrics.jsonl.", 500, "study")
    eval_steps: int = _option("Steps between evaluations.", 1000, "study")
    checkpoint_steps: int = _option("Steps between checkpoints; 0: none, a stopped run then begins anew.", 0, "study")
    penalty_coef: float = _option("Coefficient of BEER in all its forms; the paper's is 1e-3.", 1e-3, "penalty")
    dr3_coef: float = _option("Coefficient of DR3; the paper's comparison does not say its own.", 1e-3, "penalty")
    infer_coef: float = _option("Coefficient of InFeR; the paper's comparison does not say its own.", 0.1, "penalty")
    infer_heads: int = _option("InFeR: fixed random heads on the features.", 10, "penalty")
    infer_scale: float = _option(
        "InFeR: multiple of its first value that a head is held to; at 1 the penalty begins at 0.", 1.0, "penalty"
    )
    hidden_sizes: tuple[int, ...] = _option(
        "Layers of actor and critics; the paper's are 256, 256.", (64, 64), "agent"
    )
    learning_rate: float = _option("Of actor and critics; the paper's is 3e-4.", 1e-3, "agent")
    discount: float = _option("Of the return, per step.", 0.99, "agent")
    tau: float = _option("Share of its distance by which a slow copy follows.", 0.005, "agent")
    target_noise: float = _option("TD3: deviation of the noise on the target's action.", 0.2, "agent")
    noise_clip: float = _option("TD3: its largest size.", 0.5, "agent")
    actor_every: int = _option("TD3: critic updates for one of the actor.", 2, "agent")
    batch_size: int = _option("Transitions of an update; the paper's is 256.", 128, "acting")
    update_every: int = _option("Steps for one update; the paper's is 1.", 1, "acting")
    replay_capacity: int = _option("Transitions remembered.", 1_000_000, "acting")
    n_random_steps: int = _option(
        "Uniformly random steps before the first update; the paper's is 25,000.", 1000, "acting"
    )
    exploration: float = _option(
        "Deviation of the noise on actions in [-1, 1]; dqn: probability of a random one.", 0.1, "acting"
    )
    reward_scale: float = _option("The agent sees reward_scale · (reward + reward_shift).", 1.0, "acting")
    reward_shift: float = _option("See reward_scale; returns are reported as the task gives them.", 0.0, "acting")
    n_eval_episodes: int = _option("Episodes of an evaluation, without noise.", 5, "measures")
    rank_samples: int = _option("Transitions from the replay whose features are measured.", 2048, "measures")
    rank_threshold: float = _option("Smallest singular value of features / √N that counts.", 0.01, "measures")
    rank_delta: float = _option(
        "Share of the singular values' sum that the effective rank leaves out.", 0.01, "measures"
    )

    def __post_init__(self) -> None:
        for method in self.methods:
            split_method(method)
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds or not self.methods:
            raise ValueError(f"seeds {self.seeds}, methods {self.methods}: needed one or more of each, no seed twice")
        if not 0 < self.discount < 1:
            raise ValueError(f"discount is {self.discount}, needs 0 < discount < 1: the bound divides by it")
        for name in ("update_every", "infer_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs 1 or more")
        if not self.n_random_steps >= 1:
            raise ValueError(
                f"n_random_steps is {self.n_random_steps}, needs 1 or more: an update draws from the replay"
            )

    def settings(self) -> dict[str, Any]:
        """What the numbers of a run hang on."""
        outer = ("output_dir", "methods", "seeds", "n_processes", "logging_steps", "checkpoint_steps")
        return {name: plain(value) for name, value in asdict(self).items() if name not in outer}


def split_method(method: str) -> tuple[Algorithm, PenaltyName]:
    """`td3_beer` -> (TD3, BEER); `ddpg` -> (DDPG, NONE). Raises ValueError for other names."""
    algorithm, _, penalty = method.partition("_")
    try:
        return Algorithm(algorithm), PenaltyName(penalty or PenaltyName.NONE)
    except ValueError:
        raise ValueError(
            f"method is {method!r}, needed {', '.join(Algorithm)}, alone or with "
            f"{', '.join(f'_{name}' for name in PenaltyName if name is not PenaltyName.NONE)} behind it"
        ) from None
