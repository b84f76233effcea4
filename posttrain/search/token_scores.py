"""The two scores by which a policy trained against a reference can be searched (arXiv 2404.12358 v2, Eqs. 12, 13).

They are different searches. At the optimum a path from s_0 to s that earned r_0 + ... + r_{t-1} on its way has

    Σ β log π           =  Σ (r + β log π_ref) + V(s) − V(s_0)      what the path is worth, KL penalty included
    Σ β log π/π_ref     =  Σ r + V(s) − V(s_0)                      what it is worth without that penalty

with V = 0 after the end, so that the constant V(s_0) and the factor β do not change a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.cached_rows import CachedRows, read_prompts
from posttrain.models.roles import first_difference


class LikelihoodScorer:
    """log π of each next token: likelihood search, plain beam search over the policy."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self._policy = _Network(policy)
        self.n_positions = self._policy.n_positions

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._policy.start(prompts)

    def extend(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self._policy.extend(rows, token_ids)


class LogRatioScorer:
    """log π − log π_ref of each next token: log-ratio search, by the advantage that the policy implies.

    A token that either network gives no probability at all is never chosen, nor one to which the policy gives less
    than `min_probability`. With 0 nothing else holds the search to likely tokens, as the identity has it. A trained
    policy is not the optimum, and the largest of its ratios are those of tokens that neither network would ever take.

    Raises ValueError for networks of different vocabularies, and for a reference that is the policy: all ratios are 0
    then, and the search would go by token ids.
    """

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel, *, min_probability: float) -> None:
        if not 0 <= min_probability < 1:
            raise ValueError(f"min_probability is {min_probability}, needs 0 (every token) or more, and below 1")
        require_same_vocabulary(policy, reference, "reference", "it must be the model that the policy started from")
        if first_difference(policy, reference) is None:
            raise ValueError(
                "policy and reference have equal weights: every log-ratio is 0 and no path is better than another. "
                "Needed the trained policy and the model that it started from"
            )
        self._policy, self._reference = _Network(policy), _Network(reference)
        self._min_logp = math.log(min_probability) if min_probability > 0 else -math.inf
        self.n_positions = min(self._policy.n_positions, self._reference.n_positions)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._log_ratio(self._policy.start(prompts), self._reference.start(prompts))

    def extend(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        return self._log_ratio(self._policy.extend(rows, token_ids), self._reference.extend(rows, token_ids))

    def _log_ratio(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        is_barred = (logp == -torch.inf) | (ref_logp == -torch.inf) | (logp < self._min_logp)
        return torch.where(is_barred, -torch.inf, logp - ref_logp)


class _Network:
    """A causal LM with the rows that it has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.n_positions = int(model.config.get_text_config().max_position_embeddings)
        self._rows: CachedRows | None = None

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._rows = read_prompts(self.model, prompts)
        return _log_softmax(self._rows.logits)

    @torch.no_grad()
    def extend(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        assert self._rows is not None  # the search starts before it extends
        device = self.model.device
        self._rows.select(rows.to(device))
        self._rows.append(token_ids.to(device))
        return _log_softmax(self._rows.logits)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
