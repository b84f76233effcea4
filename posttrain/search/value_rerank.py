"""Token-level search guided by V: the policy proposes tokens, the value model re-ranks them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel

from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.cached_rows import CachedRows, read_prompts
from posttrain.search.token_scores import LikelihoodScorer


class ValueRerankScorer:
    """(1 − w) log π(a|s) + w (V(s a) − V(s)) of the policy's `top_k` tokens; the others are never taken.

    Along a path the values telescope, so that it scores (1 − w) Σ log π + w (V(end) − V(start)). EOS gains nothing:
    V of an answer is that of the state in which EOS is chosen, as in a step-level search. With w = 0 this is
    likelihood search among the top_k. A token to which the policy gives less than `min_probability` is never taken: V
    was learned where the policy goes, and says little elsewhere.

    Every token reads top_k values: the value model goes on from one cache per child. Raises ValueError for networks of
    different vocabularies and for numbers out of range.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        value_model: PreTrainedModel,
        eos_ids: Collection[int],
        *,
        top_k: int,
        value_weight: float,
        min_probability: float = 0.0,
    ) -> None:
        require_same_vocabulary(policy, value_model, "value model", "both read the same token ids")
        if not 1 <= top_k <= policy.config.get_text_config().vocab_size:
            raise ValueError(f"top_k is {top_k}, needs 1 up to the size of the vocabulary")
        if not 0 <= value_weight <= 1:
            raise ValueError(f"value_weight is {value_weight}, needs a number from 0 (log π) to 1 (V)")
        if not 0 <= min_probability < 1:
            raise ValueError(f"min_probability is {min_probability}, needs 0 (every token) or more, and below 1")
        self.top_k = top_k
        self.value_weight = value_weight
        self._min_logp = math.log(min_probability) if min_probability > 0 else -math.inf
        self._policy = LikelihoodScorer(policy)
        self._reader = _ValueReader(value_model.eval())
        self._eos = torch.tensor(sorted(eos_ids), device=policy.device)
        n_positions = int(value_model.config.get_text_config().max_position_embeddings)
        self.n_positions = min(self._policy.n_positions, n_positions)
        self._read: CachedRows | None = None  # [R · top_k] the children of the last call, in the order of its scores
        self._children = torch.empty(0)  # [R, top_k] their tokens
        self._values = torch.empty(0)  # [R, top_k] V of each child

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        logp = self._policy.start(prompts)
        self._read = read_prompts(self._reader, prompts)
        return self._scores(logp, self._read.logits[:, 0], torch.arange(len(prompts), device=logp.device))

    @torch.no_grad()
    def extend(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        logp = self._policy.extend(rows, token_ids)
        rows, token_ids = rows.to(logp.device), token_ids.to(logp.device)
        place = (self._children[rows] == token_ids[:, None]).long().argmax(-1)
        return self._scores(logp, self._values[rows, place], rows * self.top_k + place)

    def _scores(self, logp: Tensor, value: Tensor, read_rows: Tensor) -> Tensor:
        """[R, V] the scores after R paths of this V, which are rows read_rows of what the value model has read."""
        assert self._read is not None  # the search starts before it extends
        top = logp.topk(self.top_k, dim=-1)
        self._read.select(read_rows.repeat_interleave(self.top_k))
        self._read.append(top.indices.flatten())
        self._children, self._values = top.indices, self._read.logits[:, 0].view_as(top.indices)
        gain = torch.where(torch.isin(top.indices, self._eos), 0.0, self._values - value[:, None])
        score = (1 - self.value_weight) * top.values + self.value_weight * gain
        is_barred = (top.values == -torch.inf) | (top.values < self._min_logp)  # with w = 1 the former are 0 · inf
        score = torch.where(is_barred, -torch.inf, score)
        return torch.full_like(logp, -torch.inf).scatter(1, top.indices, score)


@dataclass(frozen=True, slots=True)
class _ValueReader:
    """A value model as CachedRows reads a language model: V of each prefix stands for the logits after it."""

    model: PreTrainedModel

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Cache,
        use_cache: bool,
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        return SimpleNamespace(logits=self.model.score(hidden[:, -logits_to_keep:]))
