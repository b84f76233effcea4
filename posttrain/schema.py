"""Rows, batches and values that travel through posttrain, and the legend of their axes.

Axes
    B   sequences in a batch
    P   pairs of answers in a batch
    L   tokens of the longest sequence, padding included
    T   states, L - 1.  State t is the prefix ids[:, : t + 1]; the action taken in it is ids[:, t + 1].

So a token-indexed mask is [B, L] and everything that lives on a state or on the action taken there is [B, T].
The last token of a sequence has no state after it: its value is 0 by definition and never read.

Units: log-probabilities, entropies and KL are in nats; values and rewards share the unit of the reward (maximised).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # grading processes import this module, and must not load torch
    from torch import Tensor


class FinishReason(StrEnum):
    """Why a sampled completion ended."""

    STOP = "stop"  # the policy chose to end: the last action is EOS or completes a stop string
    LENGTH = "length"  # cut by the token budget: the answer is incomplete and no EOS may be appended


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # "system", "user", "assistant" or "tool"; only assistant tokens are actions
    content: str


@dataclass(frozen=True, slots=True)
class StepReward:
    start: int  # first token of the step, an index into input_ids
    end: int  # one past its last token; the reward falls on the last action before `end`
    reward: float


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """One sampled answer (or agent episode) with its reward.

    Either `input_ids` with `action_spans` (what a sampler recorded; always preferred, since re-tokenised text is a
    different sequence of actions), or `completion` text, or a conversation in `prompt` whose assistant turns are
    the actions.
    """

    where: str  # "train.jsonl:317", for messages about this row
    task_id: str
    prompt: str | tuple[Message, ...]
    completion: str | None
    input_ids: tuple[int, ...] | None  # prompt and completion as sampled
    action_spans: tuple[tuple[int, int], ...]  # half-open spans of input_ids that the policy chose
    reward: float | None  # terminal reward; None when step_rewards carry it
    step_rewards: tuple[StepReward, ...]
    finish_reason: FinishReason
    behavior_logp: tuple[float, ...] | None  # one per action token, nats
    ref_logp: tuple[float, ...] | None  # one per action token, nats
    # Indexes of first tokens of observations: in the states before them the environment moves (see EncodedTrajectory).
    afterstates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """TRL's prompt/completion row, for supervised fine-tuning."""

    where: str
    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """TRL's preference row."""

    where: str
    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with what is needed to grade an answer to it."""

    where: str
    task_id: str
    prompt: str  # the exact text the policy continues
    answer: str  # the gold final answer; empty: nobody knows it, and a search is not graded
    # One of GRADER_NAMES; "reasoning_gym:<dataset>" with its entry in `entry`; "picture:<visual tokenizer>"
    grader: str
    entry: str | None = None  # JSON of the reasoning-gym entry, which its verifier needs
    tags: tuple[tuple[str, str], ...] = ()  # (name, value) pairs such as ("level", "5"), for tables by group


GRADER_NAMES = (
    "final_number",
    "gsm8k_strict",
    "lm_eval_strict",
    "lm_eval_flexible",
    "boxed",
    "math_verify",
    "reference_extraction",
)


class Grade(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # no answer could be read; counted apart, never guessed
    UNGRADED = "ungraded"  # nobody knows the right answer
    TIMEOUT = "timeout"  # not decided within the limits of time, memory and size; counted apart


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One method's answer to one problem; a results file is JSON lines of these."""

    task_id: str
    method: str  # "oreo/greedy", "oreo/beam", "sft/best_of_n": policy, then decoding
    seed: int
    budget: int  # samples drawn per problem: 1 for greedy, n for best-of-n, width * expansions for a beam
    text: str  # the completion
    grade: Grade
    finish_reason: FinishReason
    n_generated_tokens: int  # all tokens sampled to find this answer, discarded branches included
    value: float | None  # the value model's V of the whole answer, where one was read
    key: str | None = None  # of what was asked and how; an evaluation that goes on knows by it what is there
    grades: tuple[tuple[str, Grade], ...] = ()  # by every grader of the protocol; the first is `grade`
    tags: tuple[tuple[str, str], ...] = ()  # of the problem, such as ("level", "5")
    n_value_calls: int = 0  # prefixes that a value model was asked for to find this answer
    answer: str | None = None  # what a search's answer says, as its grader reads it
    n_steps: int = 0  # of a search's answer, from the root of the tree
    tree: str | None = None  # the whole search as JSON, where it was asked for


@dataclass(frozen=True, slots=True)
class EncodedTrajectory:
    """A trajectory as tokens and masks, before padding; every tuple has one entry per token."""

    row_id: int  # position among the rows read, printed in error messages
    input_ids: tuple[int, ...]
    is_action: tuple[bool, ...]  # by token: the policy chose this token
    is_step_start: tuple[bool, ...]  # by token: this action opens a step (the first action always does)
    reward: tuple[float, ...]  # by token: reward received for choosing it, or, after a last turn, with its observation
    # By token: the first one of an observation, whose state is an afterstate (a turn is over, the environment moves);
    # empty where a row has none.
    is_afterstate: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded trajectories, moved from token index to state index once, here and nowhere else."""

    input_ids: Tensor  # [B, L] int64
    is_token: Tensor  # [B, L] bool, False on padding
    is_action: Tensor  # [B, T] bool, the policy chose ids[:, t + 1]
    is_state: (
        Tensor  # [B, T] bool, states where a loss is taken; without an action: an afterstate, for the value alone
    )
    reward: Tensor  # [B, T] float32, r(s_t, a_t)
    row_id: Tensor  # [B] int64
    # What a reference that was run before said in the N states with an action, row after row; None where it runs now.
    ref_logp: Tensor | None = None  # [N] log pi_ref(a_t | s_t), float32
    ref_hidden: Tensor | None = None  # [N, D] its final hidden states, whose head gives the exact KL


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What the networks say about a batch of paths; the only thing an LLM objective sees."""

    logp: Tensor  # [B, T] log pi(a_t | s_t), float32, with gradient
    ref_logp: Tensor  # [B, T] log pi_ref(a_t | s_t), float32, no gradient
    kl: Tensor | None  # [B, T] exact KL(pi || pi_ref) at s_t, >= 0, with gradient; None with log pi_ref alone
    entropy: Tensor  # [B, T] entropy of pi(. | s_t), no gradient
    value: Tensor  # [B, T] V(s_t), float32, with gradient to the value network only
    reward: Tensor  # [B, T] r(s_t, a_t)
    is_action: Tensor  # [B, T] bool
    is_state: Tensor  # [B, T] bool, token level: equal to is_action; without an action: an afterstate
    kl_forward: Tensor | None = None  # [B, T] exact KL(pi_ref || pi) at s_t, with gradient; None where nobody asked


@dataclass(frozen=True, slots=True)
class PathScores:
    """The log-probabilities of a batch of paths, where neither a value nor a reward is known; P in place of B."""

    logp: Tensor  # [P, T] log pi(a_t | s_t), with gradient
    ref_logp: Tensor  # [P, T] log pi_ref(a_t | s_t), no gradient
    is_action: Tensor  # [P, T] bool


@dataclass(frozen=True, slots=True)
class PairValues:
    """Two answers to each of P prompts: row p of `chosen` was preferred to row p of `rejected`.

    Two sides of P rows each, not one tensor with rows 2p and 2p + 1: a pair cannot fall apart when rows are dropped,
    sorted or cut, and each side keeps its own T. A forward that runs both in one batch, padded or packed, splits once.
    """

    chosen: PathScores
    rejected: PathScores


@dataclass(frozen=True, slots=True)
class RolloutValues:
    """What the policy says now about paths that it, or an earlier form of it, sampled; for policy gradients."""

    logp: Tensor  # [B, T] log pi(a_t | s_t), with gradient
    behavior_logp: Tensor  # [B, T] log-probability under the policy that sampled a_t, no gradient
    advantage: (
        Tensor  # [B, T] how much better than the baseline a_t turned out, reward units or standardised; a constant
    )
    kl: Tensor  # [B, T] exact KL(pi || pi_ref) at s_t, with gradient
    entropy: Tensor  # [B, T] entropy of pi(. | s_t), no gradient
    is_action: Tensor  # [B, T] bool
    ref_logp: Tensor | None = None  # [B, T] log pi_ref(a_t | s_t), no gradient; None where nobody asked
