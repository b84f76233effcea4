"""Chunked scoring against the dense computation, its memory, and the closed-form gradients of log-prob and KL."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.models.logprobs import TokenLogProbs, score_tokens
from tests import reference

N, D, V = 7, 5, 11
EXACT = {"rtol": 0, "atol": 1e-12}


def problem(n: int = N, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Linear, Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden = (torch.randn(n, D, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    heads = [nn.Linear(D, V, bias=False, dtype=dtype) for _ in range(2)]
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(torch.randn(V, D, dtype=torch.float64, generator=generator))
    chosen = torch.randint(V, (n,), generator=generator)
    return hidden.requires_grad_(True), heads[0], ref_hidden, heads[1], chosen


def dense(hidden: Tensor, head: nn.Linear, ref_hidden: Tensor, ref_head: nn.Linear, chosen: Tensor) -> TokenLogProbs:
    """All logits at once."""
    policy = torch.distributions.Categorical(logits=head(hidden))
    ref = torch.distributions.Categorical(logits=ref_head(ref_hidden).detach())
    kl = torch.distributions.kl_divergence(policy, ref)
    return TokenLogProbs(policy.log_prob(chosen), ref.log_prob(chosen), kl, policy.entropy().detach())


@pytest.mark.parametrize("chunk_size", [1, 3, N, N + 5])
def test_chunked_scores_and_gradients_equal_the_dense_ones(chunk_size):
    inputs = problem()
    hidden, head = inputs[:2]
    ours, expected = score_tokens(*inputs, chunk_size=chunk_size), dense(*inputs)
    for name in ("logp", "ref_logp", "kl", "entropy"):
        assert_close(getattr(ours, name), getattr(expected, name), **EXACT)
    weight = torch.linspace(-1, 1, N, dtype=torch.float64)
    for scored in (ours, expected):
        (weight * scored.logp + weight.square() * scored.kl).sum().backward()
        scored_grads = hidden.grad.clone(), head.weight.grad.clone()
        hidden.grad = head.weight.grad = None
        if scored is ours:
            our_grads = scored_grads
    for grad, expected_grad in zip(our_grads, scored_grads, strict=True):
        assert_close(grad, expected_grad, **EXACT)


def test_exact_kl_equals_the_loop_over_the_vocabulary():
    hidden, head, ref_hidden, ref_head, chosen = problem()
    ours = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3)
    logits, ref_logits = head(hidden).detach().numpy(), ref_head(ref_hidden).detach().numpy()
    for i in range(N):
        log_pi, log_ref = reference.log_softmax(logits[i]), reference.log_softmax(ref_logits[i])
        assert ours.kl[i].item() == pytest.approx(reference.exact_kl(log_pi, log_ref), abs=1e-12)
        assert ours.logp[i].item() == pytest.approx(log_pi[chosen[i]], abs=1e-12)
        assert ours.ref_logp[i].item() == pytest.approx(log_ref[chosen[i]], abs=1e-12)


def test_gradient_of_kl_by_logits_is_pi_times_log_ratio_minus_kl():
    # O8. With an identity head the hidden states are the logits. The derivative of the chosen log-prob is 1[a] − π.
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(N, V, dtype=torch.float64, generator=generator, requires_grad=True)
    ref_logits = torch.randn(N, V, dtype=torch.float64, generator=generator)
    chosen = torch.randint(V, (N,), generator=generator)
    identity = nn.Identity()
    scored = score_tokens(logits, identity, ref_logits, identity, chosen, chunk_size=2)
    (kl_grad,) = torch.autograd.grad(scored.kl.sum(), logits, retain_graph=True)
    (logp_grad,) = torch.autograd.grad(scored.logp.sum(), logits)
    for i in range(N):
        log_pi = reference.log_softmax(logits[i].detach().numpy())
        expected = reference.kl_logit_grad(log_pi, reference.log_softmax(ref_logits[i].numpy()))
        assert_close(kl_grad[i], torch.from_numpy(expected), **EXACT)
        assert_close(
            logp_grad[i], torch.eye(V, dtype=torch.float64)[chosen[i]] - torch.from_numpy(log_pi).exp(), **EXACT
        )


def test_log_prob_and_kl_pass_gradcheck():
    hidden, head, ref_hidden, ref_head, chosen = problem(4)

    def scores(h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        def project(x: Tensor) -> Tensor:
            return x @ weight.T

        scored = score_tokens(h, project, ref_hidden, ref_head, chosen, chunk_size=3)
        return scored.logp, scored.kl

    assert torch.autograd.gradcheck(scores, (hidden, head.weight.detach().clone().requires_grad_(True)))


def test_reference_scores_and_entropy_carry_no_gradient():
    hidden, head, ref_hidden, ref_head, chosen = problem()
    scored = score_tokens(hidden, head, ref_hidden.requires_grad_(True), ref_head, chosen, chunk_size=3)
    assert not scored.ref_logp.requires_grad
    assert not scored.entropy.requires_grad
    (scored.logp + scored.kl).sum().backward()
    assert ref_hidden.grad is None
    assert ref_head.weight.grad is None


def test_no_positions_give_empty_scores_and_zero_gradients():
    hidden, head, ref_hidden, ref_head, chosen = problem(0)
    scored = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3)
    assert [len(x) for x in (scored.logp, scored.ref_logp, scored.kl, scored.entropy)] == [0, 0, 0, 0]
    (scored.logp.sum() + scored.kl.sum()).backward()
    assert hidden.grad.shape == (0, D)
    assert torch.count_nonzero(head.weight.grad) == 0


def test_bfloat16_states_are_reduced_in_float32():
    # The logits are bfloat16 numbers; everything after them must be as exact as float32: 1e-6 on log-probs near 10,
    # where a bfloat16 reduction would err by its step of 2^-5.
    inputs = problem(dtype=torch.bfloat16)
    scored = score_tokens(*inputs, chunk_size=3)
    logits = inputs[1](inputs[0]).double()
    expected = torch.log_softmax(logits, -1).gather(-1, inputs[4][:, None]).squeeze(-1)
    assert scored.logp.dtype == scored.kl.dtype == torch.float32
    assert_close(scored.logp.double(), expected, rtol=0, atol=1e-5)


class VocabularyRows(TorchDispatchMode):
    """The largest number of rows of any [*, V] tensor that an operation returned."""

    n_largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[-1] == V:
                self.n_largest = max(self.n_largest, tensor.numel() // V)
        return out


@pytest.mark.parametrize("n", [24, 240])
def test_no_more_than_one_chunk_of_logits_exists_in_forward_or_backward(n):
    # Chunks of 12 rows. [D, V] tensors (D = 5 rows, the head's gradient) stay below a chunk. Dense scoring has n rows.
    def n_rows(score) -> int:
        with VocabularyRows() as rows:
            scored = score()
            (scored.logp + scored.kl).sum().backward()
        return rows.n_largest

    inputs = problem(n)
    assert n_rows(lambda: score_tokens(*inputs, chunk_size=12)) == 12
    assert n_rows(lambda: dense(*inputs)) == n


@pytest.mark.parametrize("n", [24, 240])
def test_nothing_with_a_vocabulary_axis_is_kept_for_the_backward_pass(n):
    def kept(score) -> int:
        n_kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal n_kept
            if tensor.ndim == 2 and tensor.shape[-1] == V:
                n_kept += tensor.shape[0]
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            score()
        return n_kept

    inputs = problem(n)
    assert kept(lambda: score_tokens(*inputs, chunk_size=12)) == 0
    assert kept(lambda: dense(*inputs)) >= n
