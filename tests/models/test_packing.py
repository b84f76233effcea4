"""Packed rows against padded ones: equal numbers and gradients, no leak between rows, and what cannot be packed.

float64 tolerance 1e-12: rounding over two layers, whose products are cut into other shapes. Llama-like norms round to
float32 inside and would hide that, so `in_float64` puts torch's own in their place.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    NemotronConfig,
    PreTrainedModel,
    StableLmConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from posttrain.models.actor_critic import ActorCritic, path_scores
from posttrain.models.packing import PER_ROW, packed_hidden, padded_hidden, use_packed_attention
from posttrain.models.policy import load_policy
from posttrain.models.value import values_at_every_position
from posttrain.schema import TokenBatch
from tests.models.tiny_models import FAMILIES, PAD, VOCAB, actor_critic, batch, trained, write_policy

CLOSE = {"rtol": 0, "atol": 1e-12}
LENGTHS = (9, 2, 40, 1, 17)  # 2 is the shortest row with a state, 1 the shortest there is


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def in_float64(model: nn.Module) -> nn.Module:
    """`model` with RMS norms that stay in float64."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def networks(folder: Path) -> ActorCritic:
    return in_float64(trained(actor_critic(folder, dtype=torch.float64)))


def rows() -> TokenBatch:
    return batch(LENGTHS, n_columns=max(LENGTHS))


def without_row_bounds(model: PreTrainedModel, ids: Tensor, is_token: Tensor) -> Tensor:
    """Hidden states [N, D] of the packed tokens as one long sequence, which is what a leak would give."""
    positions = torch.arange(is_token.shape[1]).expand_as(is_token)[is_token]
    model.set_attn_implementation("sdpa")
    mask = torch.ones(1, 1, len(positions), len(positions), dtype=torch.bool).tril()
    return model.base_model(ids[is_token][None], attention_mask=mask, position_ids=positions[None]).last_hidden_state[
        0
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_hidden_states_equal_padded_ones_and_are_zero_on_padding(folders, family):
    model, b = networks(folders[family]).policy, rows()
    padded = padded_hidden(model, b.input_ids, b.is_token)
    use_packed_attention(model)
    packed = packed_hidden(model, b.input_ids, b.is_token)
    assert packed.shape == padded.shape
    assert_close(packed[b.is_token], padded[b.is_token], **CLOSE)
    assert torch.count_nonzero(packed[~b.is_token]) == 0
    leaking = without_row_bounds(model, b.input_ids, b.is_token)  # the test can tell: rows after the first would move
    assert (leaking - packed[b.is_token])[LENGTHS[0] :].abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_path_scores_are_the_same_on_packed_rows(folders, family):
    model, b = networks(folders[family]), rows()
    nets = (model.policy, model.reference)
    value = values_at_every_position(model.value, b.input_ids, b.is_token)
    scores = path_scores(*nets, b, chunk_size=5)
    for network in (*nets, model.value):
        use_packed_attention(network)
    packed = values_at_every_position(model.value, b.input_ids, b.is_token, hidden_states=packed_hidden)
    assert_close(packed[b.is_token], value[b.is_token], **CLOSE)
    packed_scores = path_scores(*nets, b, chunk_size=5, hidden_states=packed_hidden)
    assert_close(packed_scores.logp, scores.logp, **CLOSE)
    assert_close(packed_scores.ref_logp, scores.ref_logp, **CLOSE)
    assert scores.logp.abs().max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_a_token_of_one_row_changes_no_bit_of_another(folders, family):
    model, b = networks(folders[family]).policy, rows()
    use_packed_attention(model)
    before = packed_hidden(model, b.input_ids, b.is_token)
    for row in range(len(LENGTHS)):
        ids = b.input_ids.clone()
        ids[row, 0] = 3 if ids[row, 0] != 3 else 4
        moved = packed_hidden(model, ids, b.is_token) != before
        assert moved[row, : LENGTHS[row]].any(-1).all()  # every token of the row attends to its first
        moved[row] = False
        assert not moved.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_flows_from_one_row_into_the_tokens_of_another(folders, family):
    # Row r uses the ids 3 + 6 r ... 8 + 6 r alone, so the rows of the embedding tell whose tokens were reached. The
    # head is not read, so tied embeddings get no gradient from it.
    model = networks(folders[family]).policy
    use_packed_attention(model)
    n_ids, lengths = 6, (9, 2, 40, 17)
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = 3 + n_ids * torch.arange(len(lengths))[:, None] + torch.arange(max(lengths)) % n_ids
    ids = torch.where(is_token, ids, PAD)
    embeddings = model.get_input_embeddings().weight
    weight = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(lengths):
        hidden = packed_hidden(model, ids, is_token)
        [gradient] = torch.autograd.grad((hidden[row] @ weight).sum(), embeddings)
        reached = {i for i in range(VOCAB) if torch.count_nonzero(gradient[i]) > 0}
        assert reached == {3 + n_ids * row + i for i in range(min(length, n_ids))}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_recomputes_the_same_rows(folders, family):
    gradients = []
    for is_checkpointing in (False, True):
        model, b = networks(folders[family]).policy.train(), rows()
        use_packed_attention(model)
        if is_checkpointing:
            model.gradient_checkpointing_enable()
        packed_hidden(model, b.input_ids, b.is_token).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(recomputed, plain)


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor held that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = operation(*args, **(kwargs or {}))
        for item in returned if isinstance(returned, tuple | list) else (returned,):
            if isinstance(item, Tensor):
                self.n_elements = max(self.n_elements, item.numel())
        return returned


def test_nothing_quadratic_in_the_pack_is_ever_made(folders):
    # 60 rows of 8 tokens: N = 480, so a mask would hold N² = 230,400 numbers. The largest tensor that is needed is
    # the input of the MLP's last product, N · 48.
    model = load_policy(folders["llama"], dtype=torch.float32)
    use_packed_attention(model)
    b = batch((8,) * 60, n_columns=8)
    with LargestTensor() as largest:
        packed_hidden(model, b.input_ids, b.is_token).sum().backward()
    assert largest.n_elements == 480 * 48


def test_padded_batches_and_generation_go_on_as_before(folders, tmp_path):
    model, b = load_policy(folders["llama"], dtype=torch.float32), rows()
    prompts = torch.tensor([[PAD, PAD, 5, 6], [7, 8, 9, 10]])

    def seen() -> tuple[Tensor, Tensor]:
        settings = {"attention_mask": (prompts != PAD).long(), "max_new_tokens": 5, "do_sample": False}
        return padded_hidden(model, b.input_ids, b.is_token), model.generate(prompts, **settings)

    before = seen()
    use_packed_attention(model)
    for now, then in zip(seen(), before, strict=True):
        assert torch.equal(now, then)
    model.save_pretrained(tmp_path)
    assert PER_ROW not in (tmp_path / "config.json").read_text()


def test_a_model_that_was_not_prepared_is_refused(folders):
    model, b = load_policy(folders["llama"], dtype=torch.float32), rows()
    with pytest.raises(
        ValueError, match=r"is 'sdpa', which cannot be told where packed rows end.*use_packed_attention"
    ):
        packed_hidden(model, b.input_ids, b.is_token)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("mistral", {}, "attends within a sliding_window of 4096, needed full attention"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1},
            "has layers of sliding_attention, needed full",
        ),
        ("mamba", {}, "is recurrent, and carries its state"),
        ("bloom", {}, "takes no position_ids"),
        ("falcon", {}, "attention is not one of transformers' AttentionInterface"),
    ],
)
def test_architectures_in_which_rows_would_mix_are_refused(kind, settings, message):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    with pytest.raises(ValueError, match=rf"cannot be packed: it.*{message}.*Set padding_free to false"):
        use_packed_attention(model)


@pytest.mark.parametrize("config", [StableLmConfig, NemotronConfig])
def test_rows_stay_apart_in_architectures_that_drop_keywords_on_the_way_to_their_attention(config):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(config(vocab_size=VOCAB, num_key_value_heads=2, **shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5.0)
    b = rows()
    padded = padded_hidden(model, b.input_ids, b.is_token)
    use_packed_attention(model)
    packed = packed_hidden(model, b.input_ids, b.is_token)
    assert_close(packed[b.is_token], padded[b.is_token], rtol=0, atol=1e-5)  # float32; a leak moves them by 1 and more


def test_a_layer_that_asks_for_more_than_causal_attention_is_refused():
    use_packed_attention(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1)))
    q = torch.zeros(1, 1, 3, 8)
    with pytest.raises(ValueError, match=r"Linear asks for \{'softcap': 50.0\}, which 'sdpa_per_row' would leave out"):
        ALL_ATTENTION_FUNCTIONS[PER_ROW](nn.Linear(1, 1), q, q, q, None, softcap=50.0)


def varlen_attention(module, query, key, value, attention_mask, *, scaling, cu_seq_lens_q, cu_seq_lens_k, **rest):
    """What FlashAttention computes from the bounds of rows, in loops: a stand-in for a kernel that needs CUDA."""
    assert attention_mask is None
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    assert cu_seq_lens_q.dtype == torch.int32
    assert rest["max_length_q"] == rest["max_length_k"] == max(cu_seq_lens_q.diff().tolist())
    out = torch.zeros_like(query)
    n_shared = query.shape[1] // key.shape[1]
    for start, end in itertools.pairwise(cu_seq_lens_q.tolist()):
        for head, t in itertools.product(range(query.shape[1]), range(start, end)):
            scores = scaling * key[0, head // n_shared, start : t + 1] @ query[0, head, t]
            out[0, head, t] = scores.softmax(-1) @ value[0, head // n_shared, start : t + 1]
    return out.transpose(1, 2), None


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_is_kept_and_told_where_rows_begin_and_end(folders, family, monkeypatch):
    model, b = networks(folders[family]).policy, rows()
    padded = padded_hidden(model, b.input_ids, b.is_token)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", varlen_attention)
    model.config._attn_implementation = "flash_attention_2"  # as transformers sets it where the package is installed
    use_packed_attention(model)
    assert model.config._attn_implementation == "flash_attention_2"
    with torch.no_grad():
        packed = packed_hidden(model, b.input_ids, b.is_token)
    assert_close(packed[b.is_token], padded[b.is_token].detach(), **CLOSE)


def test_bfloat16_rows_differ_by_their_rounding_alone(folders):
    # Two layers of bfloat16 (2^-8 relative) on hidden states of size 1; a leak moves them by 1 and more.
    model, b = load_policy(folders["llama"], dtype=torch.bfloat16), rows()
    padded = padded_hidden(model, b.input_ids, b.is_token)
    use_packed_attention(model)
    packed = packed_hidden(model, b.input_ids, b.is_token)
    assert packed.dtype == torch.bfloat16
    assert (packed - padded)[b.is_token].float().square().mean().sqrt() < 2**-6
