"""Log-probability of the chosen token, entropy and exact KL to a reference, without ever holding [N, V]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from posttrain.models.tiled_scores import TiledScores

# A tile that stays in the caches between its product and its exponentials. Measured on one CPU core at 512 positions;
# accelerators want fewer and larger kernels. See docs/log_probs.md.
TILE_ELEMENTS_CPU = 2**21
TILE_ELEMENTS_ACCELERATOR = 2**26
TILE_COLUMNS_STEP = 64  # rows of a tile begin on cache lines: products into odd widths took 1.4 times as long
MIN_TILE_COLUMNS = 256  # with fewer the tile is smaller than the hidden states, and nothing is gained


@dataclass(frozen=True, slots=True)
class ChosenLogProbs:
    """One entry per scored position N, in nats, float32 (float64 stays float64)."""

    logp: Tensor  # [N] log π of the chosen token
    entropy: Tensor  # [N] entropy of π, no gradient


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """One entry per scored position N, in nats, float32 (float64 stays float64)."""

    logp: Tensor  # [N] log π of the chosen token
    ref_logp: Tensor  # [N] log π_ref of the chosen token, no gradient
    kl: Tensor  # [N] Σ_a π(a) (log π(a) − log π_ref(a)), exact over the vocabulary
    entropy: Tensor  # [N] entropy of π, no gradient
    kl_forward: Tensor | None = None  # [N] Σ_a π_ref(a) (log π_ref(a) − log π(a)), exact; None where not asked for


def score_chosen(hidden: Tensor, head: nn.Module, chosen: Tensor, *, chunk_size: int) -> ChosenLogProbs:
    """Score `chosen` [N] from final hidden states [N, D]: all that DPO and policy gradients need of one network.

    Under no_grad, as for a reference, it is one pass over the vocabulary. For `chunk_size` see score_tokens.
    """
    if _is_bare_linear(head):
        columns = _columns_per_tile(chosen, head, chunk_size)
        logp, entropy, *_ = _score_in_tiles(hidden, head, None, None, chosen, columns)
    else:
        logp, entropy = _score_in_chunks(_score_logits, (hidden, chosen), (head,), chunk_size)
    return ChosenLogProbs(logp, entropy)


def score_tokens(
    hidden: Tensor,
    head: nn.Module,
    ref_hidden: Tensor,
    ref_head: nn.Module,
    chosen: Tensor,
    *,
    chunk_size: int,
    has_kl_forward: bool = False,
) -> TokenLogProbs:
    """Score `chosen` [N] under policy and reference from their final hidden states [N, D].

    `kl_forward` costs a sum per tile, and its gradient one product more where the head is frozen.

    At most as many logits exist at a time as `chunk_size` positions have, so memory does not grow with N times V.
    Products run in the dtype of the head (or autocast's), everything after them in float32 (float64 stays float64).

    Two plain nn.Linear heads are read in tiles of the vocabulary. Any other head, such as one with LoRA adapters or
    one whose weights ZeRO-3 gathers by hooks, is called with `chunk_size` positions at a time and once more in the
    backward pass. If it has hooks, all ranks must call this function together: each calls its head equally often.
    """
    if _is_bare_linear(head) and _is_bare_linear(ref_head):
        columns = _columns_per_tile(chosen, head, chunk_size)
        logp, entropy, ref_logp, kl, kl_forward = _score_in_tiles(
            hidden, head, ref_hidden, ref_head, chosen, columns, has_kl_forward=has_kl_forward
        )
        return TokenLogProbs(logp, ref_logp, kl, entropy, kl_forward)
    inputs, heads = (hidden, ref_hidden, chosen), (head, ref_head)
    score = _score_both_ways if has_kl_forward else _score_both_logits
    logp, entropy, ref_logp, kl, *rest = _score_in_chunks(score, inputs, heads, chunk_size)
    return TokenLogProbs(logp, ref_logp, kl, entropy, *rest)


def _is_bare_linear(head: nn.Module) -> bool:
    """Whether logits are hidden @ weight.T + bias with a weight that lies here, so that no call is needed."""
    has_hooks = bool(head._forward_pre_hooks or head._forward_hooks)
    is_replaced = "forward" in vars(head)  # accelerate's offloading does that
    return type(head) is nn.Linear and not has_hooks and not is_replaced and not isinstance(head.weight, DTensor)


def _columns_per_tile(chosen: Tensor, head: nn.Linear, chunk_size: int) -> int:
    n_positions = max(1, len(chosen))
    is_cpu = chosen.device.type == "cpu"
    fitting = (TILE_ELEMENTS_CPU if is_cpu else TILE_ELEMENTS_ACCELERATOR) // n_positions
    n_columns = max(1, min(max(fitting, MIN_TILE_COLUMNS), chunk_size * len(head.weight) // n_positions))
    return n_columns if n_columns < TILE_COLUMNS_STEP else n_columns - n_columns % TILE_COLUMNS_STEP


@torch.compiler.disable(reason="unrolled, its loop over tiles would be a graph of thousands of nodes")
def _score_in_tiles(
    hidden: Tensor,
    head: nn.Linear,
    ref_hidden: Tensor | None,
    ref_head: nn.Linear | None,
    chosen: Tensor,
    n_columns: int,
    *,
    has_kl_forward: bool = False,
) -> tuple[Tensor, ...]:
    device = hidden.device.type
    dtype = head.weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    reference = (None, None, None)
    if ref_hidden is not None and ref_head is not None:
        reference = (ref_hidden.detach().to(dtype), ref_head.weight.detach(), ref_head.bias)
    with torch.autocast(device, enabled=False):
        return TiledScores.apply(
            hidden.to(dtype), head.weight, head.bias, *reference, chosen, n_columns, has_kl_forward
        )


def _score_in_chunks(
    score: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    heads: Sequence[nn.Module],
    chunk_size: int,
) -> list[Tensor]:
    n_chunks = max(1, -(-len(inputs[0]) // chunk_size))
    n_empty = _most_chunks(n_chunks, inputs[0].device, heads) - n_chunks
    chunks = zip(*(_chunks(x, chunk_size, n_empty=n_empty) for x in inputs), strict=True)
    scored = [checkpoint(score, *heads, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return [torch.cat(parts) for parts in zip(*scored, strict=True)]


def _chunks(x: Tensor, chunk_size: int, *, n_empty: int) -> tuple[Tensor, ...]:
    return (*x.split(chunk_size), *(x[:0] for _ in range(n_empty)))


def _most_chunks(n_chunks: int, device: torch.device, heads: Sequence[nn.Module]) -> int:
    """Chunks of the rank that has most. Hooks may gather weights in a collective, which every rank must enter."""
    has_hooks = any(module._forward_pre_hooks for head in heads for module in head.modules())
    if not (has_hooks and dist.is_available() and dist.is_initialized()):
        return n_chunks
    most = torch.tensor(n_chunks, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most.item())


def _score_logits(head: nn.Module, hidden: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    return _chosen_and_entropy(_log_softmax(head(hidden)), chosen)


def _score_both_logits(
    head: nn.Module, ref_head: nn.Module, hidden: Tensor, ref_hidden: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_pi, log_ref = _both_log_softmaxes(head, ref_head, hidden, ref_hidden)
    return _score_dense(log_pi, log_ref, chosen)


def _score_both_ways(
    head: nn.Module, ref_head: nn.Module, hidden: Tensor, ref_hidden: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    log_pi, log_ref = _both_log_softmaxes(head, ref_head, hidden, ref_hidden)
    return *_score_dense(log_pi, log_ref, chosen), (log_ref.exp() * (log_ref - log_pi)).sum(-1)


def _both_log_softmaxes(
    head: nn.Module, ref_head: nn.Module, hidden: Tensor, ref_hidden: Tensor
) -> tuple[Tensor, Tensor]:
    log_pi = _log_softmax(head(hidden))
    with torch.no_grad():
        return log_pi, _log_softmax(ref_head(ref_hidden))


def _score_dense(log_pi: Tensor, log_ref: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kl = (log_pi.exp() * (log_pi - log_ref)).sum(-1)
    return *_chosen_and_entropy(log_pi, chosen), log_ref.gather(-1, chosen[:, None]).squeeze(-1), kl


def _chosen_and_entropy(log_pi: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    fixed = log_pi.detach()
    return log_pi.gather(-1, chosen[:, None]).squeeze(-1), -(fixed.exp() * fixed).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
