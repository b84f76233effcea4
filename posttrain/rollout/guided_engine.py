"""Sampling with classifier-free guidance: the policy with the prompt against the policy without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.cached_rows import CachedRows, read_prompts
from posttrain.rollout.transformers_engine import TransformersEngine


@dataclass(slots=True)
class GuidedRows:
    """Rows that read on behind two prompts; their logits are u + g (c − u)."""

    conditional: CachedRows
    unconditional: CachedRows
    guidance: float

    @property
    def logits(self) -> Tensor:
        """[R, V]. `lerp` gives exactly c at guidance 1 and exactly u at 0."""
        return torch.lerp(self.unconditional.logits.float(), self.conditional.logits.float(), self.guidance)

    def select(self, rows: Tensor) -> None:
        """See CachedRows."""
        self.conditional.select(rows)
        self.unconditional.select(rows)

    def append(self, token_ids: Tensor) -> None:
        """See CachedRows."""
        self.conditional.append(token_ids)
        self.unconditional.append(token_ids)


class GuidedEngine(TransformersEngine):
    """A SamplingEngine whose next-token distribution is softmax((u + g (c − u)) / temperature).

    c are the policy's logits behind the prompt and u behind `unconditional`, the prompt that asks for nothing, both
    followed by the tokens sampled so far (J. Ho and T. Salimans, arXiv 2207.12598, on the logits of a language model).
    Samples draw from the streams of TransformersEngine: guidance 1 gives its samples exactly. `logp` is that of the
    guided distribution at temperature 1, and not of the policy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        unconditional: Sequence[int],
        guidance: float,
        batch_size: int,
        device: torch.device | str,
    ) -> None:
        if not unconditional:
            raise ValueError("the unconditional prompt has no tokens: give it at least one, such as <bov> alone")
        super().__init__(model, tokenizer, batch_size=batch_size, device=device)
        self.unconditional = tuple(unconditional)
        self.guidance = guidance

    def _read(self, prompts: Sequence[Sequence[int]]) -> GuidedRows:
        unconditional = read_prompts(self.model, [self.unconditional])
        unconditional.select(torch.zeros(len(prompts), dtype=torch.int64, device=self.device))
        return GuidedRows(read_prompts(self.model, prompts), unconditional, self.guidance)
