"""Scoring by tiles and by called chunks against the dense computation, and the closed forms of its gradients.

A head without hooks is read in tiles of the vocabulary, one with a hook (ZeRO-3's way to gather weights) is called.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from posttrain.models.logprobs import TokenLogProbs, score_chosen, score_tokens
from posttrain.models.vocabulary_tiles import tiles
from tests import reference

N, D, V = 7, 5, 11
EXACT = {"rtol": 0, "atol": 1e-12}  # float64 rounding of sums over 11 tokens and 7 positions


def ignore_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A hook that changes nothing."""


def with_hook(inputs: tuple) -> tuple:
    inputs[1].register_forward_pre_hook(ignore_inputs)
    return inputs


WAYS = {"tiles": lambda inputs: inputs, "called": with_hook}


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
    kl_forward = torch.distributions.kl_divergence(ref, policy)
    return TokenLogProbs(policy.log_prob(chosen), ref.log_prob(chosen), kl, policy.entropy().detach(), kl_forward)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk_size", [1, 3, N, N + 5])
def test_scores_and_gradients_equal_the_dense_ones_for_every_chunk_size(chunk_size, way):
    inputs = WAYS[way](problem())
    hidden, head = inputs[:2]
    ours, expected = score_tokens(*inputs, chunk_size=chunk_size, has_kl_forward=True), dense(*inputs)
    for name in ("logp", "ref_logp", "kl", "entropy", "kl_forward"):
        assert_close(getattr(ours, name), getattr(expected, name), **EXACT)
    weight = torch.linspace(-1, 1, N, dtype=torch.float64)
    for scored in (ours, expected):
        (weight * scored.logp + weight.square() * scored.kl + weight.exp() * scored.kl_forward).sum().backward()
        scored_grads = hidden.grad.clone(), head.weight.grad.clone()
        hidden.grad = head.weight.grad = None
        if scored is ours:
            our_grads = scored_grads
    for grad, expected_grad in zip(our_grads, scored_grads, strict=True):
        assert_close(grad, expected_grad, **EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_exact_kl_equals_the_loop_over_the_vocabulary(way):
    hidden, head, ref_hidden, ref_head, chosen = WAYS[way](problem())
    ours = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3, has_kl_forward=True)
    logits, ref_logits = head(hidden).detach().numpy(), ref_head(ref_hidden).detach().numpy()
    for i in range(N):
        log_pi, log_ref = reference.log_softmax(logits[i]), reference.log_softmax(ref_logits[i])
        assert ours.kl[i].item() == pytest.approx(reference.exact_kl(log_pi, log_ref), abs=1e-12)
        assert ours.kl_forward[i].item() == pytest.approx(reference.exact_kl(log_ref, log_pi), abs=1e-12)
        assert ours.logp[i].item() == pytest.approx(log_pi[chosen[i]], abs=1e-12)
        assert ours.ref_logp[i].item() == pytest.approx(log_ref[chosen[i]], abs=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_asking_for_the_forward_kl_leaves_the_other_scores_and_gradients_as_they_are(way):
    scored = []
    for has_kl_forward in (False, True):
        inputs = WAYS[way](problem(dtype=torch.float32))
        scores = score_tokens(*inputs, chunk_size=3, has_kl_forward=has_kl_forward)
        assert (scores.kl_forward is not None) == has_kl_forward
        grads = torch.autograd.grad((scores.logp + scores.kl).sum(), (inputs[0], inputs[1].weight))
        scored.append((scores.logp, scores.ref_logp, scores.kl, scores.entropy, *grads))
    for without, beside in zip(*scored, strict=True):
        assert torch.equal(without, beside)


@pytest.mark.parametrize("is_head_trained", [True, False])
@pytest.mark.parametrize("shift", [-600.0, 600.0])
def test_forward_kl_does_not_depend_on_a_shift_of_one_heads_logits(shift, is_head_trained):
    # softmax(z + c) = softmax(z). exp(600) is within float64, but its square is not, and float32 ends at exp(88).
    scored = []
    for bias in (0.0, shift):
        hidden, head, ref_hidden, ref_head, chosen = problem()
        head.requires_grad_(is_head_trained)
        ref_head.bias = nn.Parameter(torch.full((V,), bias, dtype=torch.float64))
        kl = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3, has_kl_forward=True).kl_forward
        scored.append((kl, torch.autograd.grad(kl.sum(), hidden)[0]))
    for shifted, plain in zip(*scored, strict=True):
        assert_close(shifted, plain, rtol=0, atol=1e-11)  # float64 near 600 has steps of 1e-13


def test_gradient_of_the_forward_kl_by_logits_is_pi_minus_the_reference():
    generator = torch.Generator().manual_seed(1)
    logits, ref_logits = (torch.randn(N, V, dtype=torch.float64, generator=generator) for _ in range(2))
    logits.requires_grad_(True)
    chosen, identity = torch.randint(V, (N,), generator=generator), nn.Identity()
    scored = score_tokens(logits, identity, ref_logits, identity, chosen, chunk_size=2, has_kl_forward=True)
    (grad,) = torch.autograd.grad(scored.kl_forward.sum(), logits)
    assert_close(grad, logits.softmax(-1) - ref_logits.softmax(-1), **EXACT)


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


@pytest.mark.parametrize("way", WAYS)
def test_reference_scores_and_entropy_carry_no_gradient(way):
    hidden, head, ref_hidden, ref_head, chosen = WAYS[way](problem())
    scored = score_tokens(hidden, head, ref_hidden.requires_grad_(True), ref_head, chosen, chunk_size=3)
    assert not scored.ref_logp.requires_grad
    assert not scored.entropy.requires_grad
    (scored.logp + scored.kl).sum().backward()
    assert ref_hidden.grad is None
    assert ref_head.weight.grad is None


@pytest.mark.parametrize("way", WAYS)
def test_no_positions_give_empty_scores_and_zero_gradients(way):
    hidden, head, ref_hidden, ref_head, chosen = WAYS[way](problem(0))
    scored = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3)
    assert [len(x) for x in (scored.logp, scored.ref_logp, scored.kl, scored.entropy)] == [0, 0, 0, 0]
    (scored.logp.sum() + scored.kl.sum()).backward()
    assert hidden.grad.shape == (0, D)
    assert torch.count_nonzero(head.weight.grad) == 0


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_states_are_reduced_in_float32(way):
    # The logits are bfloat16 numbers; everything after them must be as exact as float32: 1e-6 on log-probs near 10,
    # where a bfloat16 reduction would err by its step of 2^-5.
    inputs = WAYS[way](problem(dtype=torch.bfloat16))
    scored = score_tokens(*inputs, chunk_size=3)
    logits = inputs[1](inputs[0]).double()
    expected = torch.log_softmax(logits, -1).gather(-1, inputs[4][:, None]).squeeze(-1)
    assert scored.logp.dtype == scored.kl.dtype == torch.float32
    assert_close(scored.logp.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [0, N])
def test_scores_of_one_network_equal_those_beside_a_reference(way, n):
    inputs = WAYS[way](problem(n))
    hidden, head, _, _, chosen = inputs
    pair, alone = score_tokens(*inputs, chunk_size=3), score_chosen(hidden, head, chosen, chunk_size=3)
    assert_close(alone.logp, pair.logp, **EXACT)
    assert_close(alone.entropy, pair.entropy, **EXACT)
    weight = torch.linspace(-1, 1, n, dtype=torch.float64)
    grads = [torch.autograd.grad((weight * x.logp).sum(), (hidden, head.weight)) for x in (alone, pair)]
    for grad, expected in zip(*grads, strict=True):
        assert_close(grad, expected, **EXACT)


def test_equal_networks_have_equal_log_probs_and_zero_kl_exactly():
    hidden, head, _, _, chosen = problem(dtype=torch.float32)
    scored = score_tokens(hidden, head, hidden, head, chosen, chunk_size=3, has_kl_forward=True)
    assert torch.equal(scored.logp, scored.ref_logp)
    assert torch.count_nonzero(scored.kl) == torch.count_nonzero(scored.kl_forward) == 0
    (grad,) = torch.autograd.grad(scored.kl_forward.sum(), head.weight)
    assert torch.count_nonzero(grad) == 0


def test_frozen_head_passes_the_same_gradient_to_the_hidden_states():
    hidden, head, ref_hidden, ref_head, chosen = problem()
    grads = []
    for is_trained in (True, False):
        head.requires_grad_(is_trained)
        scored = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3, has_kl_forward=True)
        weight = torch.linspace(-1, 1, N, dtype=torch.float64)
        loss = weight * scored.logp + weight.square() * scored.kl + weight.exp() * scored.kl_forward
        grads += torch.autograd.grad(loss.sum(), hidden)
    assert_close(*grads, **EXACT)
    assert head.weight.grad is None


def test_tied_head_adds_its_gradient_to_that_of_the_embedding():
    head, chosen = problem()[1], torch.tensor([3, 1, 4, 1, 5])
    embedding = nn.Embedding.from_pretrained(head.weight, freeze=False)
    head.weight = embedding.weight
    hidden = embedding(torch.tensor([2, 7, 1, 8, 2]))
    ours = score_chosen(hidden, head, chosen, chunk_size=2).logp.sum()
    dense_sum = head(hidden).log_softmax(-1).gather(-1, chosen[:, None]).sum()
    assert_close(*(torch.autograd.grad(x, head.weight, retain_graph=True)[0] for x in (ours, dense_sum)), **EXACT)


def test_head_with_lora_adapters_trains_the_adapters_alone():
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    hidden, head, ref_hidden, ref_head, chosen = problem()
    config = peft.LoraConfig(r=2, target_modules=["head"], init_lora_weights=False)
    model = peft.get_peft_model(nn.ModuleDict({"head": head}), config).double()
    adapted = model.base_model.model["head"]
    inputs = (hidden, adapted, ref_hidden, ref_head, chosen)
    adapters = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert len(adapters) == 2
    grads = []
    for scored in (score_tokens(*inputs, chunk_size=3), dense(*inputs)):
        grads.append(torch.autograd.grad((scored.logp + scored.kl).sum(), [hidden, *adapters]))
    for grad, expected in zip(*grads, strict=True):
        assert_close(grad, expected, **EXACT)


def test_autocast_scores_as_a_head_that_is_stored_in_its_dtype():
    hidden, head, ref_hidden, ref_head, chosen = problem(dtype=torch.float32)
    rounded = problem(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = score_tokens(hidden, head, ref_hidden, ref_head, chosen, chunk_size=3)
    expected = score_tokens(*rounded, chunk_size=3)
    for name in ("logp", "ref_logp", "kl", "entropy"):
        assert torch.equal(getattr(scored, name), getattr(expected, name))
    grads = torch.autograd.grad((scored.logp + scored.kl).sum(), (hidden, head.weight))
    rounded_grads = torch.autograd.grad((expected.logp + expected.kl).sum(), (rounded[0], rounded[1].weight))
    for grad, rounded_grad in zip(grads, rounded_grads, strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, rounded_grad.float())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_loss_has_the_gradients_of_the_eager_one(backend):
    # float32, 1e-5: the compiler may fuse and so reorder the few operations around the scores.
    inputs = problem(dtype=torch.float32)

    def loss(hidden: Tensor, head: nn.Linear, ref_hidden: Tensor, ref_head: nn.Linear, chosen: Tensor) -> Tensor:
        scored = score_tokens(torch.tanh(hidden), head, torch.tanh(ref_hidden), ref_head, chosen, chunk_size=3)
        return (scored.logp - scored.ref_logp).square().sum() + 0.1 * scored.kl.sum()

    values = [run(*inputs) for run in (loss, torch.compile(loss, backend=backend))]
    assert_close(*values, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value, (inputs[0], inputs[1].weight)) for value in values]
    for eager, compiled in zip(*grads, strict=True):
        assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_tokens", "width"), [(1000, 384), (100, 42)])
def test_rows_of_a_tile_begin_on_cache_lines_unless_a_tile_is_narrower_than_one_step(monkeypatch, n_tokens, width):
    # As many logits as 3 positions have, on 7: 3 · 1000 / 7 = 428 columns, down to 6 · 64; 3 · 100 / 7 = 42, below 64.
    widths = []

    def recorded(n_vocabulary: int, n_columns: int):
        widths.append(n_columns)
        return tiles(n_vocabulary, n_columns)

    monkeypatch.setattr("posttrain.models.tiled_scores.tiles", recorded)
    score_chosen(torch.randn(N, D), nn.Linear(D, n_tokens), torch.zeros(N, dtype=torch.int64), chunk_size=3)
    assert widths == [width]
