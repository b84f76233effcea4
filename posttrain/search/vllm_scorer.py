"""V from a vLLM engine of its own, beside the one that runs the policy.

A value model is served as the classifier that it is saved as: the last token is pooled, the head applied in float32
and no activation after it. Token ids go in, so nothing is tokenised twice, and a sequence that begins like an earlier
one reuses its key/value blocks. For when an engine may be built, see posttrain.models.vllm_args.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from posttrain.models.vllm_args import engine_args, import_vllm
from posttrain.pretrained import require_model_path


class VllmScorer:
    """A ValueScorer on the folder or Hub id of a value model; the arguments are engine_args'.

    `n_tokens_read` and `n_tokens_cached` count the tokens of all sequences scored so far: those that the network read,
    and those whose blocks were in the cache. The last token of a sequence is always read, as is a block that is not
    full, so a prefix is reused up to a multiple of the block size.
    """

    def __init__(self, value_path: str | Path, *, dtype: str, max_model_len: int | None, memory_share: float) -> None:
        self._vllm = import_vllm()
        arguments = value_engine_args(value_path, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share)
        self._llm = self._vllm.LLM(**arguments)
        self._n_positions: int = self._llm.model_config.max_model_len
        self.n_tokens_read = 0
        self.n_tokens_cached = 0

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V of each whole sequence, read at its last token, in reward units.

        Raises ValueError for an empty sequence, for one longer than max_model_len, and for a V that is not finite.
        """
        require_scorable(sequences, self._n_positions)
        outputs = self._llm.classify(
            [{"prompt_token_ids": list(sequence)} for sequence in sequences],
            pooling_params=self._vllm.PoolingParams(use_activation=False),  # V is no probability
            use_tqdm=False,
        )
        for output in outputs:
            self.n_tokens_cached += output.num_cached_tokens
            self.n_tokens_read += len(output.prompt_token_ids) - output.num_cached_tokens
        return [finite_value(output.outputs.probs[0]) for output in outputs]


def value_engine_args(
    value_path: str | Path, *, dtype: str, max_model_len: int | None, memory_share: float
) -> dict[str, Any]:
    """Arguments of vllm.LLM or vllm.AsyncEngineArgs for a value model, trunk in `dtype` and head in float32.

    Raises ValueError for a folder that holds another kind of model, such as a policy.
    """
    _require_value_model(value_path)
    return {
        **engine_args(value_path, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share),
        "runner": "pooling",
        "hf_overrides": {"head_dtype": "float32"},
    }


def require_scorable(sequences: Sequence[Sequence[int]], n_positions: int) -> None:
    """Raises ValueError for an empty sequence and for one of more than `n_positions` tokens."""
    if any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("cannot score an empty sequence: a value is read at the last token of a prefix")
    longest = max(map(len, sequences), default=0)
    if longest > n_positions:
        raise ValueError(
            f"a sequence has {longest} tokens, the value engine was started for {n_positions}: raise max_model_len, "
            "or search with a smaller token budget"
        )


def finite_value(value: float) -> float:
    """`value` itself. Raises ValueError when it is NaN or Inf."""
    if not math.isfinite(value):
        raise ValueError(
            f"the value model gave V = {value}: its weights hold NaN or Inf, so the run that wrote it had diverged; "
            "take an earlier checkpoint"
        )
    return value


def _require_value_model(path: str | Path) -> None:
    require_model_path(path)
    config = AutoConfig.from_pretrained(path)
    architectures = config.architectures or []
    if config.num_labels != 1 or not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"{path} is {', '.join(architectures) or 'of no named architecture'} with num_labels={config.num_labels}, "
            "a value model is *ForSequenceClassification with 1. Is this a policy? Give the `value` folder of a run"
        )
