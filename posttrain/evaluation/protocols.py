"""Protocols of evaluation by name: how a question is put, what ends an answer, and who grades it.

Two numbers can be compared when their protocols have one hash. `version` is raised with every change of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from posttrain.data.problems import PromptTemplate, TemplateName, chat_prompt, text_template
from posttrain.evaluation.shots import Shots
from posttrain.schema import Problem

QUESTION = "{question}"  # where the question stands in a text


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that an answer's grade depends on besides the model and the decoding."""

    name: str
    version: int
    prompt: str  # the text, or the user's turn of a conversation, with QUESTION in it
    is_chat: bool = False  # rendered by the tokenizer's chat template
    system: str = ""  # the conversation's system turn; none if empty
    stop: tuple[str, ...] = ()  # an answer is what stands before the first of these; else it ends with EOS
    max_new_tokens: int = 512
    graders: tuple[str, ...] = ()  # the first gives the grade, all are recorded; none: the problem's own grader
    source: str = ""  # where it is from, and how it differs
    shots: Shots | None = None  # solved problems before the question, as text

    def __post_init__(self) -> None:
        if self.is_chat and self.shots is not None:
            raise ValueError(f"protocol {self.name} is a conversation and has shots: shots are put before a text")

    def hash(self) -> str:
        """12 hex digits of a sha256 over all that changes a number, the pool that shots are drawn from included."""
        fixed = {name: value for name, value in asdict(self).items() if name != "source" and value is not None}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]

    def template(self, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
        """question -> the exact text that the policy continues."""
        return partial(self._render, tokenizer=tokenizer)

    def as_messages(self, question: str) -> str:
        """A chat protocol's conversation as JSON, for a server that applies the chat template itself."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return json.dumps([*system, {"role": "user", "content": self.prompt.replace(QUESTION, question)}])

    def as_text(self, question: str) -> str:
        """A text protocol's prompt."""
        return self.prompt.replace(QUESTION, question)

    def regraded(self, problem: Problem) -> Problem:
        """The problem under this protocol's first grader."""
        return replace(problem, grader=self.graders[0]) if self.graders else problem

    def answer_in(self, text: str) -> str:
        """What stands before the first stop string of a completion."""
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _render(self, question: str, *, tokenizer: PreTrainedTokenizerBase) -> str:
        asked = self.as_text(question)
        return chat_prompt(asked, tokenizer=tokenizer, instruction=self.system) if self.is_chat else asked


_BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_MATH_GRADERS = ("math_verify", "reference_extraction", "boxed")
_HARNESS = {"version": 1, "prompt": "Question: {question}\nAnswer:", "max_new_tokens": 256}
_HARNESS_STOP = ("Question:", "</s>", "<|im_end|>")
_HARNESS_SHOTS = Shots(
    n=5,
    sources=("gsm8k/train.jsonl", "openai/gsm8k:main:train"),
    sha256="78212a281c5c91ee0a8a573ee3387c55d62493ea1853a46f94668e8382b45bf6",
    seed=1234,
)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="gsm8k-plain",
            version=1,
            prompt="Question: {question}\nAnswer:",
            graders=("gsm8k_strict", "lm_eval_flexible"),
            source="Ours: zero-shot, the answer is the line `#### N` that GSM8K's solutions end with.",
        ),
        Protocol(
            name="lm-eval-strict",
            **_HARNESS,
            stop=_HARNESS_STOP,
            graders=("lm_eval_strict", "lm_eval_flexible"),
            source="lm-eval 0.4's gsm8k with --num_fewshot 0, filter strict-match. Its default has 5 shots.",
        ),
        Protocol(
            name="lm-eval-flexible",
            **_HARNESS,
            stop=_HARNESS_STOP,
            graders=("lm_eval_flexible", "lm_eval_strict"),
            source="lm-eval 0.4's gsm8k with --num_fewshot 0, filter flexible-extract. Its default has 5 shots.",
        ),
        Protocol(
            name="lm-eval-strict-5shot",
            **_HARNESS,
            stop=_HARNESS_STOP,
            graders=("lm_eval_strict", "lm_eval_flexible"),
            shots=_HARNESS_SHOTS,
            source="lm-eval 0.4's gsm8k by default: 5 shots, seed 1234, one process; filter strict-match.",
        ),
        Protocol(
            name="lm-eval-flexible-5shot",
            **_HARNESS,
            stop=_HARNESS_STOP,
            graders=("lm_eval_flexible", "lm_eval_strict"),
            shots=_HARNESS_SHOTS,
            source="lm-eval 0.4's gsm8k by default: 5 shots, seed 1234, one process; filter flexible-extract.",
        ),
        Protocol(
            name="oreo-paper",
            version=1,
            prompt=f"User: {{question}}\n{_BOXED}\n\nAssistant:",
            max_new_tokens=2048,
            graders=("reference_extraction", "math_verify", "boxed"),
            source="arXiv 2412.16145 v2, its DeepSeekMath runs: this prompt, greedy, 2,048 tokens, the extraction "
            "order of its grader. Our equality is bounded in time and size.",
        ),
        Protocol(
            name="qwen-math",
            version=1,
            is_chat=True,
            system=_BOXED,
            prompt="{question}",
            max_new_tokens=2048,
            graders=_MATH_GRADERS,
            source="The system prompt of Qwen2.5-Math; graded by math-verify instead of Qwen's own script.",
        ),
        Protocol(
            name="gsm8k-chat",
            version=1,
            is_chat=True,
            system="Solve the problem step by step. End with a line that holds #### and the answer as a number.",
            prompt="{question}",
            max_new_tokens=1024,
            graders=("gsm8k_strict", "lm_eval_flexible", "boxed"),
            source="Ours, for chat models on GSM8K: asks for the line that gsm8k_strict reads.",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name; raises ValueError naming those that there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}, needs one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of_template(template: TemplateName, instruction: str, *, max_new_tokens: int) -> Protocol:
    """The protocol of a recipe of one's own: a template, EOS, and each problem's own grader."""
    is_chat = template == "chat"
    return Protocol(
        name=f"template-{template}",
        version=1,
        prompt=QUESTION if is_chat else text_template(template, instruction=instruction)(QUESTION),
        is_chat=is_chat,
        system=instruction,
        max_new_tokens=max_new_tokens,
    )
