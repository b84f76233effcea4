"""The published networks, at small widths, equal a plain NumPy form of them; and who may see what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.vision import selftok_release_reference as reference
from tests.vision.selftok_release_small import SMALL, arrays, draw, small_networks

# Both are float64 and add up some thousand products, each in its own order; positions are sines rounded to float32.
TOLERANCE = 1e-6
ALL = torch.ones(1, SMALL.n_tokens, dtype=torch.bool)


@pytest.fixture(scope="module")
def flow():
    return small_networks(is_renderer=False)


@pytest.fixture(scope="module")
def renderer():
    return small_networks(is_renderer=True)


def test_encoder_names_the_codes_that_the_plain_form_names(flow):
    latents = draw(3, 3, 4, 4, seed=1)
    weights = arrays(flow)
    expected = [reference.encode(weights, each.numpy(), patch=2, image_heads=2, query_heads=3) for each in latents]
    indexes = flow.encoder(latents)
    assert indexes.tolist() == np.array(expected).tolist()
    assert len(set(indexes.flatten().tolist())) > 5  # or the equality would say little


def test_code_vectors_are_layer_normed_codes(flow):
    indexes = torch.tensor([[0, 5, 23]])
    assert_allclose(
        flow.encoder.look_up(indexes)[0], reference.code_vectors(arrays(flow), indexes[0].numpy()), atol=1e-12
    )


def test_queries_of_the_encoder_change_no_image_and_later_queries_change_earlier_ones(flow):
    # No causal mask: the order of tokens comes from the decoder's schedule alone.
    attention = flow.encoder.blocks[0].attn
    image, queries = draw(1, 4, 8, seed=2), draw(1, 10, 12, seed=3)
    changed = queries.clone()
    changed[:, -1] += 1
    image_before, queries_before = attention(image, queries)
    image_after, queries_after = attention(image, changed)
    assert (image_after - image_before).abs().max() == 0.0
    assert (queries_after - queries_before)[:, 0].abs().max() > 1e-4


@pytest.mark.parametrize("n_hidden", [0, 6])
def test_flow_decoder_has_the_velocity_of_the_plain_form(flow, n_hidden):
    noisy, codes = draw(2, 3, 4, 4, seed=4), draw(2, 10, 4, seed=5)
    is_token = (torch.arange(10) < 10 - n_hidden).expand(2, -1)
    t = torch.tensor([1.0, 0.34], dtype=torch.float64)
    weights = arrays(flow)
    found = flow.decoder(noisy, t, codes, is_token)
    for b in range(2):
        expected = reference.velocity(
            weights, noisy[b].numpy(), float(t[b]), codes[b].numpy(), is_token[b].numpy(), patch=2, n_heads=2
        )
        assert_allclose(found[b], expected, rtol=0, atol=TOLERANCE)
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("n_canvas", [1, 4])
def test_renderer_has_the_latents_of_the_plain_form_with_either_canvas(n_canvas):
    networks = small_networks(is_renderer=True, n_canvas=n_canvas)
    codes = draw(1, 10, 4, seed=6)
    expected = reference.render(arrays(networks), codes[0].numpy(), ALL[0].numpy(), patch=2, n_heads=2)
    assert_allclose(networks.decoder(codes, ALL)[0], expected, rtol=0, atol=TOLERANCE)


def test_tokens_of_the_flow_read_the_image_and_those_of_the_renderer_do_not(flow, renderer):
    # In the first block, what the tokens read is watched while the image stream's start is changed.
    def read_by_tokens(networks, run):
        seen = []
        block = networks.decoder.joint_blocks[0].context_block
        handle = block.attn.proj.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
        run()
        handle.remove()
        return seen[0]

    codes = draw(1, 10, 4, seed=8)
    t = torch.ones(1, dtype=torch.float64)
    by_flow = [
        read_by_tokens(flow, lambda seed=seed: flow.decoder(draw(1, 3, 4, 4, seed=seed), t, codes, ALL))
        for seed in (1, 2)
    ]
    assert (by_flow[0] - by_flow[1]).abs().max() > 1e-3
    before = read_by_tokens(renderer, lambda: renderer.decoder(codes, ALL))
    other = small_networks(is_renderer=True)
    other.decoder.positional_embedding[:, 0] += 1
    after = read_by_tokens(other, lambda: other.decoder(codes, ALL))
    assert (before - after).abs().max() == 0.0
    assert (renderer.decoder(codes, ALL) - other.decoder(codes, ALL)).abs().max() > 1e-3


@pytest.mark.parametrize("is_renderer", [False, True])
def test_hidden_tokens_change_a_decoder_by_exactly_zero(flow, renderer, is_renderer):
    is_token = torch.arange(10).unsqueeze(0) < 4
    codes = draw(1, 10, 4, seed=9)
    hidden, visible = codes.clone(), codes.clone()
    hidden[:, 4:] = 100.0
    visible[:, 3] += 1.0

    def decode(of):
        if is_renderer:
            return renderer.decoder(of, is_token)
        return flow.decoder(draw(1, 3, 4, 4, seed=1), torch.full((1,), 0.3, dtype=torch.float64), of, is_token)

    assert (decode(codes) - decode(hidden)).abs().max() == 0.0
    assert (decode(codes) - decode(visible)).abs().max() > 1e-4


def test_masked_keys_alone_hide_tokens_exactly(flow):
    # The other of the two mechanisms, zeroed codes, is switched off by claiming that all tokens are there.
    codes = draw(1, 10, 4, seed=10)
    image = draw(1, 4, 16, seed=11)
    is_key = torch.cat([torch.arange(10) < 4, torch.ones(4, dtype=torch.bool)])[None, None, None]
    everything = torch.ones_like(is_key)
    times = torch.full((1,), 300.0, dtype=torch.float64)
    changed = codes.clone()
    changed[:, 4:] = 100.0

    def outcome(of, is_visible):
        return flow.decoder.transform(image, times, of, ALL, is_visible)

    assert (outcome(codes, is_key) - outcome(changed, is_key)).abs().max() == 0.0
    assert (outcome(codes, everything) - outcome(changed, everything)).abs().max() > 1e-3  # the control


def test_zeroed_codes_alone_hide_their_content_exactly(flow):
    codes, image = draw(1, 10, 4, seed=10), draw(1, 4, 16, seed=11)
    is_token = torch.arange(10).unsqueeze(0) < 4
    everything = torch.ones(1, 1, 1, 14, dtype=torch.bool)
    times = torch.full((1,), 300.0, dtype=torch.float64)
    changed = codes.clone()
    changed[:, 4:] = 100.0
    outcomes = [flow.decoder.transform(image, times, of, is_token, everything) for of in (codes, changed)]
    assert (outcomes[0] - outcomes[1]).abs().max() == 0.0
