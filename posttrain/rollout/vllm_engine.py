"""Sampling with vLLM: token ids in and out, under the same protocol as the transformers engine.

For when an engine may be built, and how much memory it takes, see posttrain.models.vllm_args.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.models.vllm_args import engine_args, import_vllm, is_cpu
from posttrain.sampling import Sample, SamplingParams, prompt_streams
from posttrain.schema import FinishReason

if TYPE_CHECKING:
    import vllm  # pyright: ignore[reportMissingImports] - an extra

_LOWEST_TEMPERATURE = 0.01  # below it vLLM samples at 0.01 and only logs that it does


class VllmEngine:
    """A SamplingEngine on a model folder or Hub id; the arguments are engine_args'.

    `max_model_len` bounds prompt and completion together.
    A sample depends on its seed and stream, but also on vLLM's version and kernels: the two engines draw different
    samples from one seed. Their log-probabilities are of one kind: temperature 1, whole vocabulary.
    """

    def __init__(
        self, model_path: str | Path, *, dtype: str, max_model_len: int | None = None, memory_share: float = 0.9
    ) -> None:
        self._vllm = import_vllm()
        arguments = policy_engine_args(model_path, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share)
        self._llm = self._vllm.LLM(**arguments)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        n: int,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """n continuations of each prompt, in order of `prompts`; see SamplingEngine for `streams`."""
        streams = prompt_streams(prompts, streams)
        requests = [(i, j) for i in range(len(prompts)) for j in range(n)]
        if not requests:
            return [[] for _ in prompts]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompts[i])} for i, _ in requests],
            [self._vllm.SamplingParams(**request_args(params, streams[i], j)) for i, j in requests],
            use_tqdm=False,
        )
        samples = [sample_of(output.outputs) for output in outputs]
        return [samples[i * n : (i + 1) * n] for i in range(len(prompts))]


def policy_engine_args(
    model_path: str | Path, *, dtype: str, max_model_len: int | None, memory_share: float
) -> dict[str, Any]:
    """Arguments of vllm.LLM or vllm.AsyncEngineArgs for a policy whose seeded samples come with their log π."""
    return {
        **engine_args(model_path, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share),
        # With it, a seeded request whose prompt is split over two batches ends vLLM 0.32 on a CPU: it then winds
        # the request's random generator back, which torch's CPU generator cannot do.
        "enable_chunked_prefill": False if is_cpu() else None,
        "logprobs_mode": "raw_logprobs",  # of the logits before temperature, top-k and top-p
    }


def request_args(params: SamplingParams, stream: int, sample: int) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams for one continuation: the `sample`-th of the prompt with this stream."""
    if 0 < params.temperature < _LOWEST_TEMPERATURE:
        raise ValueError(
            f"temperature is {params.temperature}: vLLM would sample at {_LOWEST_TEMPERATURE} instead. "
            "Take 0 (greedy) or the transformers engine"
        )
    return {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "seed": request_seed(params.seed, stream, sample),
        "stop": list(params.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # a special token may be a stop string
        "logprobs": 0,  # of the sampled token alone
    }


def request_seed(seed: int, stream: int, sample: int) -> int:
    """The seed of one request, 63 bits: a hash, so that neighbouring seeds and streams share no request."""
    digest = hashlib.sha256(struct.pack("<QQQ", seed, stream, sample)).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def sample_of(parts: Sequence[vllm.outputs.CompletionOutput]) -> Sample:
    """The sample that the parts of a finished output add up to. Raises RuntimeError for one that was aborted."""
    last = parts[-1]
    if last.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with finish_reason {last.finish_reason!r}, needs stop or length")
    if any(part.logprobs is None for part in parts):
        raise RuntimeError("vLLM returned no log-probabilities, though each request asks for them")
    return Sample(
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logp=tuple(
            at[token].logprob for part in parts for at, token in zip(part.logprobs, part.token_ids, strict=True)
        ),
        finish_reason=FinishReason(last.finish_reason),
        stop_string=last.stop_reason if isinstance(last.stop_reason, str) else None,
    )
