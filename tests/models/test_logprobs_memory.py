"""What the scoring holds: no tensor of N times V elements, and O(N D) for the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.models.logprobs import score_tokens

N, D, V, CHUNK = 240, 4, 512, 12
DENSE = N * V  # 122,880 elements
BOUND = CHUNK * V  # 6,144: the logits of one chunk; above N * D and V * D, the inputs


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returned."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return out


def problem(*, is_head_trained: bool = True, has_hook: bool = False) -> tuple:
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden = (torch.randn(N, D, generator=generator) for _ in range(2))
    head, ref_head = (nn.Linear(D, V, bias=False).requires_grad_(is_head_trained) for _ in range(2))
    if has_hook:
        head.register_forward_pre_hook(lambda module, inputs: None)
    return hidden.requires_grad_(True), head, ref_hidden, ref_head, torch.randint(V, (N,), generator=generator)


def dense_loss(hidden: Tensor, head: nn.Linear, ref_hidden: Tensor, ref_head: nn.Linear, chosen: Tensor) -> Tensor:
    log_pi = head(hidden).log_softmax(-1)
    log_ref = ref_head(ref_hidden).detach().log_softmax(-1)
    return log_pi.gather(-1, chosen[:, None]).sum() + (log_pi.exp() * (log_pi - log_ref)).sum()


def loss(*inputs) -> Tensor:
    scored = score_tokens(*inputs, chunk_size=CHUNK)
    return scored.logp.sum() + scored.kl.sum()


def largest(function: Callable[..., Tensor], inputs: tuple) -> int:
    with LargestTensor() as seen:
        function(*inputs).backward()
    return seen.n_elements


@pytest.mark.parametrize("has_hook", [False, True])
@pytest.mark.parametrize("is_head_trained", [True, False])
def test_no_tensor_exceeds_one_chunk_of_logits_in_forward_or_backward(is_head_trained, has_hook):
    assert largest(loss, problem(is_head_trained=is_head_trained, has_hook=has_hook)) <= BOUND
    assert largest(dense_loss, problem(is_head_trained=is_head_trained)) == DENSE


@pytest.mark.parametrize(
    ("is_head_trained", "expected"),
    [
        # hidden, ref_hidden; chosen, lse and the mean gap
        (True, 2 * N * D + 3 * N),
        # the two vectors that the incoming gradients scale
        (False, 2 * N * D),
    ],
)
def test_what_is_kept_for_the_backward_pass_does_not_depend_on_the_vocabulary(is_head_trained, expected):
    inputs = problem(is_head_trained=is_head_trained)
    weights = {inputs[1].weight.data_ptr(), inputs[3].weight.data_ptr()}
    n_kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal n_kept
        n_kept += 0 if tensor.data_ptr() in weights else tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scored = score_tokens(*inputs, chunk_size=CHUNK)
    assert n_kept == expected
    (scored.logp + scored.kl).sum().backward()


def test_tiles_of_any_width_give_the_same_gradients():
    # 12 positions per chunk are tiles of 25 columns here, 240 are one tile; float32 sums over 512 tokens.
    results = []
    for chunk_size in (CHUNK, N):
        hidden, *rest = problem()
        torch.manual_seed(0)
        for head in (rest[0], rest[2]):
            nn.init.normal_(head.weight)
        scored = score_tokens(hidden, *rest, chunk_size=chunk_size)
        results.append(torch.autograd.grad((scored.logp + scored.kl).sum(), (hidden, rest[0].weight)))
    for narrow, wide in zip(*results, strict=True):
        assert_close(narrow, wide, rtol=1e-4, atol=1e-4)
