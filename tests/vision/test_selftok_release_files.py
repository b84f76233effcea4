"""Reading published files: strict, from safetensors alone, with errors that say what is likely wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from posttrain.vision.selftok_release.load import build_networks, load_networks, to_published
from tests.vision.selftok_release_small import SMALL, draw, small_networks

KNOWN = {SMALL.n_tokens: SMALL}


@pytest.fixture
def tensors():
    return to_published(small_networks(is_renderer=False))


def load(path, dtype=torch.float64, known=KNOWN):
    return load_networks(path, sizes=known, dtype=dtype)


@pytest.mark.parametrize("is_renderer", [False, True])
@pytest.mark.parametrize("n_canvas", [1, 4])
def test_loaded_networks_have_the_files_weights_and_ignore_what_only_training_needs(tmp_path, is_renderer, n_canvas):
    networks = small_networks(is_renderer=is_renderer, n_canvas=n_canvas)
    training_only = {
        "encoder.quantizer._codebook.cluster_size": torch.ones(1, 24),
        "encoder.quantizer.steps": torch.zeros(1),
        "encoder.final_layer_norm.weight": torch.ones(12),
        "model.y_embedder.mlp.0.weight": torch.ones(16, 4),
        "model.joint_blocks.2.context_block.t_embedder.mlp.0.weight": torch.ones(16, 256),
        "diffusion.timestep_map": torch.ones(100),
    }
    save_file(to_published(networks) | training_only, tmp_path / "file.safetensors")
    loaded = load(tmp_path / "file.safetensors")
    for ours, theirs in ((loaded.encoder, networks.encoder), (loaded.decoder, networks.decoder)):
        assert type(ours) is type(theirs)
        assert not ours.training
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_bfloat16_is_for_the_decoder_and_names_the_same_tokens(tmp_path, tensors):
    save_file(tensors, tmp_path / "file.safetensors")
    exact, short = (load(tmp_path / "file.safetensors", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {value.dtype for value in short.decoder.state_dict().values()} == {torch.bfloat16}
    latents = draw(4, 3, 4, 4, seed=0).float()
    indexes = short.encoder(latents)
    assert torch.equal(indexes, exact.encoder(latents))
    arguments = (latents, torch.full((4,), 0.5), short.encoder.look_up(indexes), torch.ones(4, 10, dtype=torch.bool))
    velocity, expected = short.decoder(*arguments), exact.decoder(*arguments)
    assert velocity.dtype == torch.float32  # so that steps add up in float32
    # bfloat16 has 8 bits; some ten roundings in a row of that size.
    assert (velocity - expected).norm() < 10 * 2**-8 * expected.norm()


def test_a_pickle_is_refused_before_it_is_opened(tmp_path):
    with pytest.raises(ValueError, match=r"no .safetensors file: convert the published .pth file once"):
        load(tmp_path / "tokenizer_512_ckpt.pth")


def test_a_missing_tensor_is_named(tmp_path, tensors):
    del tensors["encoder.blocks.1.q_mlp.fc1.bias"]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: encoder.blocks.1.q_mlp.fc1.bias. Is the file complete"):
        load(tmp_path / "file.safetensors")


def test_an_unexpected_tensor_is_named(tmp_path, tensors):
    tensors["model.joint_blocks.0.x_block.attn.ln_q.weight"] = torch.ones(8)
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"1 unexpected: model.joint_blocks.0.x_block.attn.ln_q.weight.*later model"):
        load(tmp_path / "file.safetensors")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, tensors):
    tensors["encoder.quantizer._codebook.embed"] = torch.ones(1, 16, 4)
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"embed \(1, 16, 4\) for \(1, 24, 4\).*another variant"):
        load(tmp_path / "file.safetensors")


def test_another_number_of_tokens_is_another_variant(tmp_path, tensors):
    save_file(tensors, tmp_path / "file.safetensors")
    other = replace(SMALL, n_tokens=11, k_per_stage=(11,))
    with pytest.raises(ValueError, match=r"has 10 tokens, known are the variants of \[11\] tokens"):
        load(tmp_path / "file.safetensors", known={11: other})
    assert load(tmp_path / "file.safetensors", known={11: other, 10: SMALL}).encoder.sizes is SMALL


def test_a_dictionary_from_inside_the_checkpoint_is_no_release_file(tmp_path, tensors):
    inner = {name.removeprefix("encoder."): value for name, value in tensors.items()}
    save_file(inner, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"no published Selftok file: needed encoder.query_tokens"):
        load(tmp_path / "file.safetensors")


def test_a_new_encoder_has_codes_of_length_one():
    codes = build_networks(SMALL, {}).encoder.codes
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(1, 24))
