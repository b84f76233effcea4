"""What `posttrain eval` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from posttrain.data.problems import TemplateName
from posttrain.evaluation.decoding import Beam, Decoding, LogRatioBeam, parse_decoding, require_distinct_records


@dataclass(frozen=True)
class EvalConfig:
    """What to answer, with which networks, and how."""

    model: str = field(metadata={"help": "policy: a folder or Hub id that AutoModelForCausalLM reads"})
    problems: str = field(metadata={"help": "problems: a .jsonl file, a GSM8K file, or reasoning_gym:<dataset>"})
    output: str = field(metadata={"help": "answers are written to this .jsonl file, one record per answer"})
    name: str = field(metadata={"help": "first half of the method names in the records, e.g. 'oreo' in 'oreo/greedy'"})
    value_model: str | None = field(default=None, metadata={"help": "value model that picks answers and steers beams"})
    reference: str | None = field(
        default=None, metadata={"help": "reference that the policy was trained against, for log_ratio:B"}
    )
    min_probability: float = field(
        default=0.0,
        metadata={"help": "log_ratio:B takes only tokens that the policy gives at least this probability"},
    )
    values_output: str | None = field(
        default=None, metadata={"help": "also write V along one sample of each of the first n_solutions problems here"}
    )
    n_solutions: int = field(default=400, metadata={"help": "solutions in values_output"})
    decoding: tuple[str, ...] = field(
        default=("greedy",),
        metadata={
            "help": "any of: greedy, sample:N (with best-of-n and majority), beam:WxE (by value), likelihood:B and "
            "log_ratio:B (token by token)"
        },
    )
    template: TemplateName = field(default="plain", metadata={"help": "how a question becomes a prompt"})
    instruction: str = field(default="", metadata={"help": "system message of the chat template"})
    limit: int | None = field(default=None, metadata={"help": "answer only the first LIMIT problems"})
    max_new_tokens: int = field(default=512, metadata={"help": "token budget of one answer"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of samples and beam steps"})
    top_p: float = field(default=1.0, metadata={"help": "cut samples to the likeliest tokens with this mass"})
    step_delimiters: tuple[str, ...] = field(default=("\n",), metadata={"help": "strings that end a step of a beam"})
    max_steps: int = field(default=20, metadata={"help": "most steps of a beam (the paper: 20)"})
    batch_size: int = field(default=256, metadata={"help": "sequences sampled or scored at once"})
    seed: int = field(default=0, metadata={"help": "seed of every sampled token"})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "arithmetic of the networks"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes CUDA where there is one"})


def decodings_of(config: EvalConfig) -> list[Decoding]:
    """The decodings asked for. Raises ValueError when one lacks its network or two would write the same records."""
    decodings = [parse_decoding(text) for text in config.decoding]
    require_distinct_records(config.decoding)
    if config.value_model is None and any(isinstance(d, Beam) for d in decodings):
        raise ValueError("a beam is steered by a value model: set value_model, or leave beam:... out of decoding")
    if config.value_model is None and config.values_output is not None:
        raise ValueError("values_output needs a value model: set value_model")
    if config.reference is None and any(isinstance(d, LogRatioBeam) for d in decodings):
        raise ValueError(
            "a log-ratio search reads two networks: set reference to the model that the policy was trained against, "
            "or leave log_ratio:... out of decoding"
        )
    return decodings
