"""What `posttrain eval run` can be told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posttrain.data.problems import TemplateName
from posttrain.evaluation.decoding import (
    Decoding,
    Greedy,
    LikelihoodBeam,
    LogRatioBeam,
    Sampled,
    ValueRerank,
    asks_values,
    parse_decoding,
    require_distinct_records,
)
from posttrain.evaluation.search_options import SearchOptions

TOKEN_BEAMS = (LikelihoodBeam, LogRatioBeam, ValueRerank)


@dataclass(frozen=True)
class AskConfig(SearchOptions):
    """Problems, networks and sampling: what `eval run` and `search` share."""

    problems: str = field(
        metadata={
            "help": "a task of `posttrain eval ls` such as gsm8k, a file of problems, or reasoning_gym:<dataset>",
            "positional": True,
        }
    )
    model: str = field(metadata={"help": "policy: a folder or Hub id that AutoModelForCausalLM reads"})
    output: str | None = field(
        default=None,
        metadata={
            "help": "answers are added to this .jsonl file, one record each; an evaluation that was stopped goes on, "
            "and several processes share one. Default: runs/eval/<task>/answers.jsonl"
        },
    )
    name: str | None = field(
        default=None,
        metadata={
            "help": "first half of the method names in the records, e.g. 'oreo' in 'oreo/greedy'; default: the "
            "model's folder"
        },
    )
    protocol: str | None = field(
        default=None,
        metadata={"help": "prompt, stop rule and graders by name, see `posttrain eval ls`; default: the task's"},
    )
    value_model: str | None = field(default=None, metadata={"help": "value model that picks answers and steers beams"})
    reference: str | None = field(
        default=None, metadata={"help": "reference that the policy was trained against, for log_ratio:B"}
    )
    min_probability: float = field(
        default=0.0,
        metadata={
            "help": "log_ratio:B and value_rerank:BxK take only tokens that the policy gives this probability or more"
        },
    )
    template: TemplateName | None = field(
        default=None, metadata={"help": "how a question becomes a prompt, in place of a protocol: plain, bare or chat"}
    )
    instruction: str = field(default="", metadata={"help": "system message of the chat template"})
    limit: int | None = field(default=None, metadata={"help": "answer only the first LIMIT problems"})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "token budget of one answer; default: the protocol's, 512 without one"}
    )
    temperature: float = field(default=1.0, metadata={"help": "temperature of samples and beam steps"})
    top_k: int = field(default=0, metadata={"help": "cut samples to so many of the likeliest tokens; 0 is off"})
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "classifier-free guidance g: tokens are drawn from u + g (c - u), the logits c with the prompt "
            "and u with `unconditional` in its place; 1: the policy as it is"
        },
    )
    unconditional: str | None = field(
        default=None, metadata={"help": "the prompt of guidance that asks for nothing, such as <bov>"}
    )
    top_p: float = field(default=1.0, metadata={"help": "cut samples to the likeliest tokens with this mass"})
    cached_value_tokens: int = field(
        default=0,
        metadata={
            "help": "tokens that the value model remembers, so that a step of a search reads its own alone; their "
            "memory is taken at the start. 0: every prefix is read anew"
        },
    )
    batch_size: int = field(default=256, metadata={"help": "sequences sampled or scored at once"})
    problems_per_chunk: int = field(
        default=64, metadata={"help": "problems answered between two writes; a stopped run loses at most these"}
    )
    n_graders: int = field(default=1, metadata={"help": "processes that grade answers which need computer algebra"})
    seed: int = field(default=0, metadata={"help": "seed of every sampled token"})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "arithmetic of the networks"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes CUDA where there is one"})
    reader: str | None = field(
        default=None,
        metadata={
            "help": "grader that reads the answers to rows without a known one, such as final_number; by default such "
            "rows are an error"
        },
    )


@dataclass(frozen=True)
class EvalConfig(AskConfig):
    """What to answer, with which networks, and how."""

    decoding: tuple[str, ...] = field(
        default=("greedy",),
        metadata={
            "help": "any of: greedy, sample:N (with best-of-n and votes), best_of_n:N, majority:N, "
            "weighted_majority:N, beam:WxE and dvts:WxE (step by step, by value), likelihood:B, log_ratio:B and "
            "value_rerank:BxK (token by token)"
        },
    )
    show_prompt: bool = field(
        default=False, metadata={"help": "print the first problem as the policy reads it, and end"}
    )
    engine: Literal["transformers", "vllm", "url"] = field(
        default="transformers",
        metadata={"help": "what runs the policy: in this process, or behind `url`; searches need transformers"},
    )
    url: str | None = field(
        default=None,
        metadata={
            "help": "OpenAI-compatible server of engine url, such as http://127.0.0.1:8000/v1; model is its name there"
        },
    )
    n_parallel: int = field(default=8, metadata={"help": "requests that engine url has open at a time"})
    values_output: str | None = field(
        default=None, metadata={"help": "also write V along one sample of each of the first n_solutions problems here"}
    )
    n_solutions: int = field(default=400, metadata={"help": "solutions in values_output"})


def decodings_of(config: EvalConfig) -> list[Decoding]:
    """The decodings asked for. Raises ValueError when one lacks its network or two would write the same records."""
    decodings = [parse_decoding(text) for text in config.decoding]
    require_distinct_records(config.decoding)
    if config.protocol is not None and config.template is not None:
        raise ValueError(
            f"protocol {config.protocol} and template {config.template} both say how to ask: leave one out"
        )
    if config.engine != "transformers" and not all(isinstance(d, Greedy | Sampled) for d in decodings):
        raise ValueError(
            f"engine {config.engine} decodes greedy and sample:N; searches read the networks themselves: transformers"
        )
    if config.engine == "url" and config.top_k:
        raise ValueError(f"top_k is {config.top_k}, which OpenAI's API does not have: set top_p instead")
    if (config.engine == "url") != (config.url is not None):
        raise ValueError(f"engine is {config.engine} and url {config.url}: set --engine url --url URL, or neither")
    if config.engine == "url" and config.value_model is not None:
        raise ValueError("engine url gives text alone, and a value model reads tokens: use transformers or vllm")
    for text, decoding in zip(config.decoding, decodings, strict=True):
        if config.value_model is None and asks_values(decoding, value_weight=config.value_weight):
            raise ValueError(f"{text} goes by value: set value_model, or leave it out of decoding")
    if config.value_model is None and config.values_output is not None:
        raise ValueError("values_output needs a value model: set value_model")
    _check_guidance(config, decodings)
    if config.reference is None and any(isinstance(d, LogRatioBeam) for d in decodings):
        raise ValueError(
            "a log-ratio search reads two networks: set reference to the model that the policy was trained against, "
            "or leave log_ratio:... out of decoding"
        )
    return decodings


def _check_guidance(config: EvalConfig, decodings: Sequence[Decoding]) -> None:
    if config.guidance == 1:
        return
    if config.unconditional is None:
        raise ValueError(f"guidance is {config.guidance}: set unconditional to the prompt that asks for nothing")
    if config.engine != "transformers":
        raise ValueError(f"guidance is {config.guidance}, which engine {config.engine} does not have: transformers")
    unguided = [text for text, d in zip(config.decoding, decodings, strict=True) if isinstance(d, TOKEN_BEAMS)]
    if unguided:
        raise ValueError(f"{unguided[0]} reads the policy itself, without guidance: leave it out, or set guidance 1")


def name_of(config: AskConfig) -> str:
    """The policy's name in the records."""
    return config.name or Path(config.model).name


def output_of(config: AskConfig, *, verb: str = "eval") -> Path:
    """The file that holds the answers."""
    if config.output is not None:
        return Path(config.output)
    task = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(config.problems).stem)
    return Path("runs") / verb / task / "answers.jsonl"
