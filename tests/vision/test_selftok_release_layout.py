"""Sizes, key names and the schedule of the published Selftok files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from posttrain.vision.selftok_release.decoders import sample_flow
from posttrain.vision.selftok_release.layout import (
    SELFTOK_512,
    SELFTOK_1024,
    UNUSED,
    ReleaseSizes,
    kappa,
    unused_keys,
)
from posttrain.vision.selftok_release.load import build_networks, wanted_shapes

K_512 = SELFTOK_512.k_per_stage

# The shapes below were worked out by hand from the constructors of the reference at 4695474 and its configs
# 256-eval.yml and renderer-eval.yml. A linear layer `a <- b` has a weight [a, b] and a bias [a].
ENCODER_LINEARS = {  # of each of the 16 blocks; image stream 64 wide, queries 512 wide, MLPs 4 times as wide
    "attn.qkv": (192, 64),  # q, k and v of the image: 3 x 64
    "attn.proj": (64, 64),
    "attn.to_query_kv": (1024, 64),  # k and v that the image shows to the queries: 2 x 512
    "attn.query_linear": (1536, 512),
    "attn.query_proj": (512, 512),
    "mlp.fc1": (256, 64),
    "mlp.fc2": (64, 256),
    "q_mlp.fc1": (2048, 512),
    "q_mlp.fc2": (512, 2048),
    "t_embedder.mlp.0": (512, 256),  # 256 waves
    "t_embedder.mlp.2": (512, 512),
    "adaLN_modulation.1": (3072, 512),  # 6 parts
}
STREAM_LINEARS = {  # of either stream of a joint block, 24 heads of 64 = 1536 wide
    "attn.qkv": (4608, 1536),
    "attn.proj": (1536, 1536),
    "mlp.fc1": (6144, 1536),
    "mlp.fc2": (1536, 6144),
    "adaLN_modulation.1": (9216, 1536),
}
TIME_LINEARS = {"t_embedder.mlp.0": (1536, 256), "t_embedder.mlp.2": (1536, 1536)}


def with_biases(linears: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}.weight": shape for name, shape in linears.items()} | {
        f"{prefix}{name}.bias": shape[:1] for name, shape in linears.items()
    }


def published_shapes(n_tokens: int, *, is_renderer: bool) -> dict[str, tuple[int, ...]]:
    """Every key that a decoder needs, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.x_embedder.proj.weight": (64, 16, 2, 2),
        "encoder.x_embedder.proj.bias": (64,),
        # enable_enc_variable_size: the table has side 2 x 32 latent pixels, whatever the image's is
        "encoder.pos_embed": (1, 4096, 64),
        "encoder.query_tokens": (1, n_tokens, 512),
        "encoder.final_layer_norm3.weight": (16,),
        "encoder.final_layer_norm3.bias": (16,),
        "encoder.quantizer._codebook.embed": (1, 32768, 16),
        "model.context_pos_embed": (1, n_tokens, 1536),
    }
    shapes |= with_biases({"quantizer.project_in": (16, 512)}, "encoder.")
    for i in range(16):
        shapes |= with_biases(ENCODER_LINEARS, f"encoder.blocks.{i}.")
    shapes |= with_biases(TIME_LINEARS, "model.")
    shapes |= with_biases({"context_embedder": (1536, 16)}, "model.")
    shapes |= with_biases({"linear": (64, 1536), "adaLN_modulation.1": (3072, 1536)}, "model.final_layer.")
    for i in range(24):
        shapes |= with_biases(STREAM_LINEARS, f"model.joint_blocks.{i}.x_block.")
        if i < 23:
            shapes |= with_biases(STREAM_LINEARS | TIME_LINEARS, f"model.joint_blocks.{i}.context_block.")
    # pre_only: 2 parts, and neither output projection nor MLP
    last = {"attn.qkv": (4608, 1536), "adaLN_modulation.1": (3072, 1536)}
    shapes |= with_biases(last, "model.joint_blocks.23.context_block.")
    if is_renderer:
        # `repeat: True` of the newer config: one canvas vector for 16 x 16 patches
        return shapes | {"model.mask_token": (1, 1, 1536), "model.positional_embedding": (256, 1536)}
    return shapes | {
        "model.x_embedder.proj.weight": (1536, 16, 2, 2),
        "model.x_embedder.proj.bias": (1536,),
        "model.pos_embed": (1, 36864, 1536),  # SD3's 192 x 192
    }


@pytest.mark.parametrize("sizes", [SELFTOK_512, SELFTOK_1024], ids=lambda sizes: str(sizes.n_tokens))
@pytest.mark.parametrize("is_renderer", [False, True])
def test_full_size_networks_have_the_keys_and_shapes_of_the_published_files(sizes, is_renderer):
    expected = published_shapes(sizes.n_tokens, is_renderer=is_renderer)
    with torch.device("meta"):
        networks = build_networks(sizes, {"model.mask_token": (1, 1, 1536)} if is_renderer else {})
    assert wanted_shapes(networks) == expected


def test_full_size_networks_have_two_billion_weights():
    # A stream is qkv + proj + fc1 + fc2 + adaLN. 23 are of tokens, each with an embedding of positions, and 24 of the
    # image; the last block's tokens have qkv and two modulations. Outside the blocks are the embeddings of the time,
    # codes and patches, and the final layer. The tables of positions are not counted.
    stream = 7_082_496 + 2_360_832 + 9_443_328 + 9_438_720 + 14_164_992
    time = 394_752 + 2_360_832
    last_tokens = 7_082_496 + 4_721_664
    outside = time + 26_112 + 99_840 + (98_368 + 4_721_664)
    with torch.device("meta"):
        decoder = build_networks(SELFTOK_512, {}).decoder
    n_weights = sum(weight.numel() for weight in decoder.parameters())
    assert n_weights == 47 * stream + 23 * time + last_tokens + outside == 2_079_931_456


def test_unused_keys_are_none_that_a_network_wants():
    for is_renderer in (False, True):
        wanted = published_shapes(512, is_renderer=is_renderer)
        unused = unused_keys(SELFTOK_512, is_renderer=is_renderer)
        assert [name for name in wanted if name.startswith(unused)] == []
    assert "model.joint_blocks.23.context_block.t_embedder.mlp.0.weight".startswith(
        unused_keys(SELFTOK_512, is_renderer=False)
    )
    assert all(UNUSED.values())  # each says why


def test_kappa_has_the_boundary_values_of_the_published_schedule():
    # 192 indexes in the first fifth: 199 * 192 / 200 = 191.04. Then 192 + 0; 376 = 192 + 184; 511 = K - 1.
    assert [kappa(step, K_512) for step in (0, 199, 200, 399, 400, 600, 800, 1000)] == [
        *(0, 191, 192, 375, 376, 448, 496, 511)
    ]
    visible = [kappa(step, K_512) for step in range(1001)]
    assert visible == sorted(visible)
    assert set(visible) == set(range(512))
    assert [kappa(step, (512,)) for step in (0, 1, 500, 1000)] == [0, 0, 256, 511]  # uniform: floor(t K)


def test_kappa_is_exact_where_float_arithmetic_falls_short():
    # 0.175 * 192 / 0.2 is 168, and in float64 0.175 * 192 / 0.2 = 167.99999999999997.
    assert kappa(175, K_512) == 168
    assert int(0.175 * 192 / 0.2) == 167


def test_times_truncated_in_float32_hide_one_more_index_in_seven_of_fifty_steps():
    # The reference's way; ours is exact, and this is all that it costs.
    truncated = (torch.linspace(1.0, 0.0, 51)[:-1] * 1000).long().tolist()
    exact = [1000 - 20 * i for i in range(50)]
    behind = [kappa(b, K_512) - kappa(a, K_512) for a, b in zip(truncated, exact, strict=True) if a != b]
    assert len(behind) == 7
    assert max(behind) == 1


def test_sampling_sees_the_tokens_of_kappa_at_each_of_its_steps():
    seen = []

    def velocity(x, t, is_token):
        seen.append((round(float(t[0]), 6), int(is_token.sum())))
        return torch.zeros_like(x)

    is_written = torch.ones(1, 512, dtype=torch.bool)
    sample_flow(velocity, torch.zeros(1, 1, 2, 2), is_written, k_per_stage=K_512, n_steps=50)
    assert len(seen) == 50
    assert [seen[0], seen[10], seen[40], seen[49]] == [(1.0, 512), (0.8, 497), (0.2, 193), (0.02, 20)]


def test_sampling_shows_a_prefix_at_noisy_times_only():
    # The coarse half is written: indexes 256 to 511. kappa(0.2) = 192 shows none of them.
    seen = []

    def velocity(x, t, is_token):
        seen.append(int(is_token.sum()))
        return torch.zeros_like(x)

    is_written = (torch.arange(512) >= 256).unsqueeze(0)
    sample_flow(velocity, torch.zeros(1, 1, 2, 2), is_written, k_per_stage=K_512, n_steps=5)
    assert seen == [256, 497 - 256, 449 - 256, 377 - 256, 0]


@pytest.mark.parametrize("n_steps", [1, 7, 50])
def test_sampling_with_the_true_velocity_of_one_image_ends_at_that_image(n_steps):
    # x_t = t eps + (1 - t) x along a straight line, so v = (x_t - x) / t and every Euler step stays on it.
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def velocity(x, t, is_token):
        return (x - image) / t[:, None, None, None]

    is_written = torch.ones(2, 512, dtype=torch.bool)
    found = sample_flow(velocity, noise, is_written, k_per_stage=K_512, n_steps=n_steps)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-12)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="the stages sum to the number of tokens"):
        replace(SELFTOK_512, n_tokens=511)
    with pytest.raises(ValueError, match="fit into both tables"):
        replace(SELFTOK_512, latent_px=130)
    assert isinstance(SELFTOK_1024, ReleaseSizes) and SELFTOK_1024.side == 16
