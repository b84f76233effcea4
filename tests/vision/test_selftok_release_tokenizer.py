"""The published tokenizer behind the library's interface: order, prefixes, both decoders, and its autoencoder."""

from __future__ import annotations

import sys

import pytest
import torch

from posttrain.vision.selftok_release import latents
from posttrain.vision.selftok_release.latents import SD3Latents
from posttrain.vision.selftok_release.tokenizer import ReleasedSelftok, load_selftok_release
from tests.vision.selftok_release_small import SMALL, IdentityLatents, draw, small_networks


@pytest.fixture(scope="module")
def tokenizer():
    return ReleasedSelftok(
        IdentityLatents(), small_networks(is_renderer=True), small_networks(is_renderer=False, seed=1)
    )


def images(n, seed=0):
    return IdentityLatents().decode(draw(n, 3, 4, 4, seed=seed))


def noise():
    return torch.Generator().manual_seed(0)


def test_encoding_gives_the_encoders_indexes_in_reverse(tokenizer):
    ids = tokenizer.encode(images(2))
    assert ids.shape == (2, tokenizer.n_tokens)
    assert torch.equal(ids.flip(-1), tokenizer.encoder(draw(2, 3, 4, 4, seed=0)))


def test_encoding_depends_on_the_image_alone(tokenizer):
    batch = images(3)
    alone = torch.cat([tokenizer.encode(each.unsqueeze(0)) for each in batch])
    assert torch.equal(tokenizer.encode(batch), alone)
    assert torch.equal(tokenizer.encode(batch.flip(0)), alone.flip(0))


def test_a_prefix_is_the_coarse_end_of_the_index_order(tokenizer):
    ids = torch.arange(10).unsqueeze(0)
    codes, is_token = tokenizer.look_up(ids[:, :3])
    assert is_token.tolist() == [[False] * 7 + [True] * 3]
    # The first token written has the last index.
    torch.testing.assert_close(codes[0, 7:], tokenizer.encoder.look_up(torch.tensor([[2, 1, 0]]))[0])


def test_decoding_is_one_pass_of_the_renderer_over_all_tokens(tokenizer):
    ids = tokenizer.encode(images(2))
    codes, is_token = tokenizer.look_up(ids)
    assert is_token.all()
    expected = IdentityLatents().decode(tokenizer.renderer(codes, is_token)).clamp(-1, 1)
    found = tokenizer.decode(ids)
    assert torch.equal(found, expected)
    assert torch.equal(found, tokenizer.decode(ids))
    assert found.abs().max() <= 1


def test_tokens_after_a_prefix_change_nothing(tokenizer):
    # A prefix of 4 tokens and the same with any other ids behind the 4 are the same image where those ids are hidden.
    codes, is_token = tokenizer.look_up(torch.tensor([[3, 1, 4, 1]]))
    other = codes.clone()
    other[~is_token] = 50.0
    assert (tokenizer.renderer(codes, is_token) - tokenizer.renderer(other, is_token)).abs().max() == 0.0
    assert not torch.equal(tokenizer.decode(torch.tensor([[3, 1, 4, 1]])), tokenizer.decode(torch.tensor([[3, 1, 4]])))


def test_flow_gives_the_image_of_its_noise(tokenizer):
    ids = tokenizer.encode(images(1))
    first, second = (tokenizer.decode_by_flow(ids, generator=noise(), n_steps=4) for _ in range(2))
    assert torch.equal(first, second)
    other = tokenizer.decode_by_flow(ids, generator=torch.Generator().manual_seed(1), n_steps=4)
    assert (first - other).abs().max() > 1e-3


def test_one_step_of_flow_is_noise_less_the_velocity_at_time_one(tokenizer):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    codes, is_token = tokenizer.look_up(ids)
    start = torch.randn(1, 3, 4, 4, generator=noise()).double()
    velocity = tokenizer.flow(start, torch.ones(1, dtype=torch.float64), codes, is_token)
    found = tokenizer.decode_by_flow(ids, generator=noise(), n_steps=1)
    assert torch.equal(found, IdentityLatents().decode(start - velocity).clamp(-1, 1))


def test_either_file_is_enough_for_what_it_holds():
    by_renderer = ReleasedSelftok(IdentityLatents(), small_networks(is_renderer=True))
    by_flow = ReleasedSelftok(IdentityLatents(), small_networks(is_renderer=False))
    ids = torch.tensor([[3, 1, 4]])
    with pytest.raises(RuntimeError, match="load tokenizer_"):
        by_renderer.decode_by_flow(ids, generator=noise())
    with pytest.raises(RuntimeError, match="load renderer_"):
        by_flow.decode(ids)
    assert by_renderer.codebook_size == SMALL.codebook_size


def test_files_with_different_codes_are_refused():
    other = small_networks(is_renderer=False)
    other.encoder.codes[0, 0] = -other.encoder.codes[0, 0]
    with pytest.raises(ValueError, match="different codebooks"):
        ReleasedSelftok(IdentityLatents(), small_networks(is_renderer=True), other)


def test_ids_and_images_that_cannot_be_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"images are \(1, 3, 8, 8\), needed \[B, 3, 32, 32\]"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8))
    for ids in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 11, dtype=torch.long)):
        with pytest.raises(ValueError, match="1 to 10 tokens"):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="are they token ids of a policy"):
        tokenizer.decode(torch.tensor([[24]]))


def test_no_step_runs_in_training_mode():
    tokenizer = ReleasedSelftok(IdentityLatents(), small_networks(is_renderer=True)).train()
    with pytest.raises(RuntimeError, match="training mode"):
        tokenizer.encode(images(1))
    with pytest.raises(RuntimeError, match="training mode"):
        tokenizer.decode(torch.tensor([[1]]))


def test_without_diffusers_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in [name for name in sys.modules if name.startswith("diffusers.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'posttrain\[selftok"):
        SD3Latents(tmp_path, dtype=torch.float32, device=torch.device("cpu"))


def test_loading_wants_a_file(tmp_path):
    with pytest.raises(ValueError, match="no file given"):
        load_selftok_release(vae_folder=tmp_path)


def save_autoencoder(folder, *, shift=latents.SHIFT):
    diffusers = pytest.importorskip("diffusers", reason="SD3's autoencoder needs diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=latents.SCALE,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.save_pretrained(folder)
    return model.eval()


def test_autoencoder_of_a_folder_shifts_and_scales_its_mean(tmp_path):
    model = save_autoencoder(tmp_path)
    codec = SD3Latents(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean = model.encode(image).latent_dist.mean
        expected = model.decode(mean).sample
    torch.testing.assert_close(codec.encode(image), (mean - 0.0609) * 1.5305)
    torch.testing.assert_close(codec.decode((mean - 0.0609) * 1.5305), expected, rtol=0, atol=1e-5)


def test_autoencoder_of_another_model_is_refused(tmp_path):
    save_autoencoder(tmp_path, shift=0.1)
    with pytest.raises(ValueError, match="is it the one of another model"):
        SD3Latents(tmp_path, dtype=torch.float32, device=torch.device("cpu"))


def test_a_folder_that_is_no_autoencoder_is_named(tmp_path):
    pytest.importorskip("diffusers", reason="SD3's autoencoder needs diffusers")
    with pytest.raises(FileNotFoundError, match="give the `vae` folder"):
        SD3Latents(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
