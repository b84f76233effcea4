"""The networks, the engine and the graders of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.data.problems import PromptTemplate
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.evaluation.completing import LocalCompleter, RemoteCompleter
from posttrain.evaluation.decoding import LogRatioBeam
from posttrain.evaluation.eval_config import EvalConfig, decodings_of
from posttrain.evaluation.networks import Answering, TokenAccess
from posttrain.evaluation.protocols import Protocol, protocol_named, protocol_of_template
from posttrain.evaluation.remote import RemoteModel
from posttrain.evaluation.tasks import task_source
from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.loading import device_named
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.rewards.pool import GradingPool
from posttrain.rollout.engines import load_engine, longest_sequence
from posttrain.rollout.guided_engine import GuidedEngine
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingEngine
from posttrain.schema import Problem
from posttrain.search.cached_scorer import CachedScorer
from posttrain.search.scorer import ReencodingScorer, ValueScorer
from posttrain.search.token_scores import LogRatioScorer

MAX_NEW_TOKENS = 512  # where neither the config nor a protocol says


def protocol_of(config: EvalConfig) -> Protocol:
    """The protocol that the config names, else its template, else its task's protocol, else the plain template."""
    _, of_task = task_source(config.problems)
    if config.protocol is None and (config.template is not None or of_task is None):
        budget = MAX_NEW_TOKENS if config.max_new_tokens is None else config.max_new_tokens
        return protocol_of_template(config.template or "plain", config.instruction, max_new_tokens=budget)
    protocol = protocol_named(config.protocol or of_task or "")
    if config.instruction:
        raise ValueError(f"instruction is set, but protocol {protocol.name} has its own: use template chat instead")
    if protocol.stop and config.value_model is not None:
        raise ValueError(
            f"protocol {protocol.name} ends answers at {list(protocol.stop)}, where no value model has learned to "
            "read V: choose one whose answers end with EOS"
        )
    return protocol


def prompt_template(config: EvalConfig, protocol: Protocol) -> PromptTemplate:
    """question -> what the policy is given: a text, or for a server's chat the conversation as JSON."""
    if config.engine != "url":
        return protocol.template(load_tokenizer(config.model))
    return protocol.as_messages if protocol.is_chat else protocol.as_text


@contextmanager
def load_answering(config: EvalConfig, problems: Sequence[Problem]) -> Iterator[Answering]:
    """Load what the config names; on leaving, the grading processes end."""
    protocol = protocol_of(config)
    budget = protocol.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    with GradingPool(n_workers=config.n_graders) as pool:
        if config.url is not None:
            remote = RemoteCompleter(RemoteModel(config.url, config.model, config.n_parallel), protocol.is_chat)
            yield Answering(remote, None, None, None, None, protocol, pool, config, budget)
            return
        tokenizer = load_tokenizer(config.model)
        engine = load_engine(
            config.model,
            tokenizer,
            engine="vllm" if config.engine == "vllm" else "transformers",
            dtype=config.dtype,
            device=config.device,
            batch_size=config.batch_size,
            max_tokens=lambda: longest_sequence(problems, tokenizer, budget),
        )
        if config.guidance != 1:
            assert isinstance(engine, TransformersEngine)  # checked, as the next, when the config was read
            assert config.unconditional is not None
            engine = GuidedEngine(
                engine.model,
                tokenizer,
                unconditional=encode_prompt(config.unconditional, tokenizer),
                guidance=config.guidance,
                batch_size=config.batch_size,
                device=engine.device,
            )
        value_model, scorer = _value(config, tokenizer, engine)
        log_ratio = _log_ratio(config, tokenizer, engine)
        local = LocalCompleter(engine, tokenizer)
        tokens = TokenAccess(engine, tokenizer)
        yield Answering(local, tokens, value_model, scorer, log_ratio, protocol, pool, config, budget)


def _value(
    config: EvalConfig, tokenizer: PreTrainedTokenizerBase, engine: SamplingEngine
) -> tuple[PreTrainedModel | None, ValueScorer | None]:
    if config.value_model is None:
        return None, None
    value_model = load_value_beside(engine, tokenizer, config.value_model, dtype=config.dtype, device=config.device)
    if config.cached_value_tokens == 0:
        return value_model, ReencodingScorer(value_model, batch_size=config.batch_size)
    cached = CachedScorer(value_model, max_tokens=config.cached_value_tokens, batch_size=config.batch_size)
    return value_model, cached


def load_value_beside(
    engine: SamplingEngine, tokenizer: PreTrainedTokenizerBase, path: str, *, dtype: str, device: str
) -> PreTrainedModel:
    """The value model that reads an engine's samples. Raises ValueError when an id is another token to it."""
    require_same_tokens(tokenizer, path, "value model")
    value_model = load_value_model(path, dtype=getattr(torch, dtype))
    if isinstance(engine, TransformersEngine):
        require_same_vocabulary(engine.model, value_model, "value model", "both read the same token ids")
    value_model.to(device_named(device))  # pyright: ignore[reportArgumentType] - transformers hides that `to` is a method
    return value_model


def _log_ratio(
    config: EvalConfig, tokenizer: PreTrainedTokenizerBase, engine: SamplingEngine
) -> LogRatioScorer | None:
    if config.reference is None or not any(isinstance(d, LogRatioBeam) for d in decodings_of(config)):
        return None
    assert isinstance(engine, TransformersEngine)  # checked when the config was read
    require_same_tokens(tokenizer, config.reference, "reference")
    reference = load_policy(config.reference, dtype=getattr(torch, config.dtype))
    reference.to(device_named(config.device))  # pyright: ignore[reportArgumentType] - as above
    return LogRatioScorer(engine.model, reference, min_probability=config.min_probability)
