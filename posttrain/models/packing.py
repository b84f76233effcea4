"""Final hidden states of a batch of rows: padded to the longest, or packed end to end so that padding costs nothing.

Both take and return the same rows [B, L], so everything after the trunk (log-probabilities, suffix sums, objectives)
is the same code on the same numbers. Packing is a property of the trunk's forward alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

HiddenStates = Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
"""(model, input_ids [B, L], is_token [B, L], right-padded) -> final hidden states [B, L, D] of the model's trunk."""

PER_ROW = "sdpa_per_row"  # the attention that transformers is given here, by the name it goes under there
VARLEN = ("flash_attention_2", "flash_attention_3")  # transformers' own that read the bounds of packed rows
BEYOND_CAUSAL = ("sliding_window", "softcap", "s_aux", "position_bias")  # what a layer may ask of its attention


def padded_hidden(model: PreTrainedModel, input_ids: Tensor, is_token: Tensor) -> Tensor:
    """Hidden states [B, L, D] of all positions; those on padding hold no meaning."""
    return _trunk(model)(input_ids=input_ids, attention_mask=is_token.long(), use_cache=False).last_hidden_state


def packed_hidden(model: PreTrainedModel, input_ids: Tensor, is_token: Tensor) -> Tensor:
    """Hidden states [B, L, D], computed for tokens alone; zeros on padding.

    The trunk sees one sequence [1, N] of the N tokens of all rows. Positions restart with each row and no token
    attends to another row. Raises ValueError for a model that was not passed through `use_packed_attention`.
    """
    implementation = model.config._attn_implementation
    if implementation not in (PER_ROW, *VARLEN):
        raise ValueError(
            f"the attention of {type(model).__name__} is {implementation!r}, which cannot be told where packed rows "
            f"end; needed {PER_ROW!r} or one of {', '.join(VARLEN)}: call use_packed_attention(model) first"
        )
    lengths = is_token.sum(-1).tolist()
    positions = torch.arange(is_token.shape[1], device=is_token.device).expand_as(is_token)
    bounds = _varlen_bounds(lengths, is_token.device) if implementation in VARLEN else _as_mask(lengths)
    packed = _trunk(model)(
        input_ids=input_ids[is_token][None], position_ids=positions[is_token][None], use_cache=False, **bounds
    ).last_hidden_state
    hidden = packed.new_zeros(*is_token.shape, packed.shape[-1])
    hidden[is_token] = packed[0]
    return hidden


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let `model` take packed rows, in place: FlashAttention stays where it was chosen, anything else becomes PER_ROW.

    Padded batches and generation go on as before, and nothing of it is saved with the model.
    Raises ValueError for an architecture in which rows would mix, or that needs more than full causal attention.
    """
    fault = why_rows_would_mix(model)
    if fault is not None:
        raise ValueError(
            f"{type(model).__name__} cannot be packed: {fault}. Set padding_free to false; "
            "train_sampling_strategy=group_by_length saves most of the padding too"
        )
    if model.config._attn_implementation in VARLEN:
        return
    AttentionInterface.register(PER_ROW, _attend_per_row)
    AttentionMaskInterface.register(PER_ROW, sdpa_mask)
    model.set_attn_implementation(PER_ROW)


def why_rows_would_mix(model: PreTrainedModel) -> str | None:
    """What about `model` keeps rows in one sequence from being held apart by mask and positions; None if nothing."""
    settings = model.config.get_text_config().to_dict()
    partial = sorted(set(settings.get("layer_types") or ()) - {"full_attention"})
    if model._is_stateful:
        return "it is recurrent, and carries its state from one row into the next"
    if partial:
        return f"it has layers of {', '.join(partial)}, needed full_attention alone"
    if "layer_types" not in settings and settings.get("sliding_window") is not None:
        return f"it attends within a sliding_window of {settings['sliding_window']}, needed full attention"
    if "position_ids" not in inspect.signature(_trunk(model).forward).parameters:
        return "it takes no position_ids, so that positions cannot restart with each row"
    if not model._can_set_attn_implementation():
        return "its attention is not one of transformers' AttentionInterface, so that it cannot be told where rows end"
    return None


def _attend_per_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """scaled_dot_product_attention of each row of a pack [1, heads, N, d] apart: Σ n² in time, never N² in memory.

    A pack brings its row lengths in the place of the mask. With a mask, or none, it is transformers' own function.
    """
    beyond = {name: asked[name] for name in BEYOND_CAUSAL if asked.get(name) is not None}
    if beyond:
        raise ValueError(f"{type(module).__name__} asks for {beyond}, which {PER_ROW!r} would leave out")
    settings = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    rows = zip(*(x.split(attention_mask.flatten().tolist(), dim=2) for x in (query, key, value)), strict=True)
    attended = [sdpa_attention_forward(module, *row, attention_mask=None, **settings)[0] for row in rows]
    return torch.cat(attended, dim=1), None


def _as_mask(lengths: list[int]) -> dict[str, Any]:
    """Row lengths [1, 1, 1, B] in the place of the attention mask, on the CPU, where they are needed as numbers.

    transformers hands a mask of four axes to every layer as it is, and builds no [N, N] one. Keywords of its own some
    architectures (Nemotron, StableLM) drop on the way, and rows would mix without a word.
    """
    return {"attention_mask": torch.tensor(lengths).view(1, 1, 1, -1)}


def _varlen_bounds(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """Where rows begin and end, under the names of transformers' FlashAttentionKwargs."""
    ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _trunk(model: PreTrainedModel) -> nn.Module:
    return model.base_model
