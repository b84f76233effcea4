"""The interface of visual tokenizers: order, prefixes, determinism, and a codebook that data cannot move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.provenance import file_sha256
from posttrain.vision.flow_decoder import guided, sample_flow
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import all_prompts
from posttrain.vision.reconstruction import do_test, prefix_errors
from posttrain.vision.tokenizer import WEIGHTS, TokenizerKind, load_visual_tokenizer
from posttrain.vision.world import Thing, World, render
from tests.vision.tiny_tokenizer import tiny_tokenizer

KINDS = list(TokenizerKind)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return draw_pictures(World(), all_prompts(World()), 12, torch.Generator().manual_seed(0))[1]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_picture_do_not_depend_on_its_batch(kind: TokenizerKind, images: Tensor):
    tokenizer, order = tiny_tokenizer(kind), torch.randperm(12)
    ids = tokenizer.encode(images)
    assert ids.shape == (12, 9) and ids.dtype == torch.int64
    assert tokenizer.encode(images[order]).equal(ids[order])
    assert tokenizer.encode(images[3:4]).equal(ids[3:4])


def test_tokens_of_a_picture_do_not_depend_on_time_or_noise(images: Tensor):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(images)
    for seed, n_steps in ((1, 2), (2, 5)):  # sampling draws noise and visits times; the encoder is told of neither
        torch.manual_seed(seed)
        assert tokenizer.flow is not None
        codes, _ = tokenizer.look_up(ids)
        predict = guided(tokenizer.flow, codes, guidance=2.0)
        noise = torch.randn(images.shape)
        sample_flow(predict, noise, tokenizer.config.schedule, n_steps=n_steps, shift=tokenizer.config.shift)
        assert tokenizer.encode(images).equal(ids)


def test_selftok_writes_the_last_index_first_and_spatial_tokens_row_by_row(images: Tensor):
    for kind, is_reversed in ((TokenizerKind.SELFTOK, True), (TokenizerKind.CELLS, False)):
        tokenizer = tiny_tokenizer(kind)
        indexed = tokenizer.quantiser.nearest(tokenizer.encoder(images))
        assert tokenizer.encode(images).equal(indexed.flip(-1) if is_reversed else indexed)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_puts_the_tokens_back_in_index_order(kind: TokenizerKind, images: Tensor):
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer.encode(images)
    codes, is_visible = tokenizer.look_up(ids)
    torch.testing.assert_close(
        codes, tokenizer.quantiser.codebook[tokenizer.quantiser.nearest(tokenizer.encoder(images))]
    )
    assert is_visible.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_rendered_as_if_nothing_were_behind_it(kind: TokenizerKind):
    tokenizer = tiny_tokenizer(kind)
    ids = torch.randint(32, (2, 9))
    for length in (0, 1, 4):
        _, is_visible = tokenizer.look_up(ids[:, :length])
        assert is_visible.sum(-1).tolist() == [length, length]
        full_codes, _ = tokenizer.look_up(ids)
        with torch.no_grad():
            expected = tokenizer.renderer(full_codes, is_visible).clamp(-1, 1)
        assert tokenizer.decode(ids[:, :length]).equal(expected)
    assert not tokenizer.decode(ids[:, :4]).equal(tokenizer.decode(ids[:, :5]))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_a_function_of_the_tokens(kind: TokenizerKind):
    tokenizer, ids = tiny_tokenizer(kind), torch.randint(32, (3, 9))
    first = tokenizer.decode(ids)
    torch.manual_seed(99)
    assert tokenizer.decode(ids).equal(first)
    assert float(first.min()) >= -1 and float(first.max()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_codebook_is_the_same_file_after_a_data_set_was_tokenized(kind: TokenizerKind, images: Tensor, tmp_path: Path):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.save(tmp_path / "before")
    tokenizer.decode(tokenizer.encode(images))
    with pytest.raises(RuntimeError, match="encode on a tokenizer in training mode"):
        tokenizer.train().encode(images)
    tokenizer.quantiser(tokenizer.encoder(images))  # a forward in training mode, as an eval by accident would be
    tokenizer.save(tmp_path / "after")
    assert file_sha256(tmp_path / "after" / WEIGHTS) == file_sha256(tmp_path / "before" / WEIGHTS)


def test_training_mode_refuses_to_decode():
    with pytest.raises(RuntimeError, match="decode on a tokenizer in training mode"):
        tiny_tokenizer().train().decode(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_comes_back_with_its_world_and_its_tokens(kind: TokenizerKind, images: Tensor, tmp_path: Path):
    tokenizer = tiny_tokenizer(kind, seed=3)
    tokenizer.save(tmp_path)
    loaded = load_visual_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config and not loaded.training
    assert loaded.encode(images).equal(tokenizer.encode(images))
    assert loaded.decode(loaded.encode(images)).equal(tokenizer.decode(tokenizer.encode(images)))


def test_folder_without_a_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no visual_tokenizer\.json"):
        load_visual_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 10, dtype=torch.int64), r"needed \[B, k\] with k <= 9"),
        (torch.full((1, 9), 32), "run from 32 to 32, the codebook has 0 to 31"),
    ],
)
def test_tokens_that_cannot_be_decoded_are_refused(ids: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_tokenizer().decode(ids)


def test_pictures_of_another_world_are_refused():
    with pytest.raises(ValueError, match=r"needed \[B, 3, 12, 12\]"):
        tiny_tokenizer().encode(torch.zeros(1, 3, 16, 16))


@torch.no_grad()
def places_that_change(kind: TokenizerKind, cell: tuple[int, int]) -> list[int]:
    """Places whose code vector changes when a red square is put into an empty cell beside a blue ring."""
    tokenizer, ring = tiny_tokenizer(kind), Thing(1, 2, 0, 1)
    without, with_square = tokenizer.encoder(render(World(), [(ring,), (ring, Thing(0, 0, *cell))]))
    return (without != with_square).any(-1).nonzero().flatten().tolist()


def test_token_of_a_cell_tells_of_that_cell_alone():
    assert places_that_change(TokenizerKind.CELLS, (2, 2)) == [8]


def test_shifted_patches_cut_a_thing_in_four():
    # A thing of the middle cell, pixels 4 to 6, lies in the patches of 4 px that start at 2 and at 6.
    assert places_that_change(TokenizerKind.SHIFTED, (1, 1)) == [0, 1, 3, 4]


def test_prefix_errors_end_with_the_error_of_the_whole_picture(images: Tensor):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(images)
    errors = prefix_errors(tokenizer, images, ids)
    assert len(errors) == 10
    assert errors[-1] == pytest.approx(float((tokenizer.decode(ids) - images).square().mean()))


def test_do_test_counts_the_earlier_tokens_that_a_later_one_changes(monkeypatch: pytest.MonkeyPatch):
    # A picture that is its tokens, so that decode and encode lose nothing: no earlier token changes. If encoding then
    # gives each place the sum of all modulo 32, every earlier one changes: row i holds 9 i + k, so the exchange
    # adds -9, or +36 in the first row, neither a multiple of 32.
    tokenizer = tiny_tokenizer()
    ids = torch.arange(5 * 9).view(5, 9) % 32
    monkeypatch.setattr(tokenizer, "decode", lambda tokens: tokens)
    monkeypatch.setattr(tokenizer, "encode", lambda tokens: tokens)
    assert do_test(tokenizer, ids, torch.Generator().manual_seed(0)) == 0.0
    monkeypatch.setattr(tokenizer, "encode", lambda tokens: (tokens.sum(-1, keepdim=True) % 32).expand(-1, 9))
    assert do_test(tokenizer, ids, torch.Generator().manual_seed(0)) == 1.0


def test_do_test_takes_near_copies_of_a_code_for_the_same(monkeypatch: pytest.MonkeyPatch):
    tokenizer = tiny_tokenizer()
    ids = torch.arange(5 * 9).view(5, 9) % 32
    monkeypatch.setattr(tokenizer, "decode", lambda tokens: tokens)
    # Every other id, 0 or 1 by the sum of all: the exchange adds -9 to it, so ids 0 and 1 change places.
    monkeypatch.setattr(tokenizer, "encode", lambda tokens: (tokens.sum(-1, keepdim=True) % 2).expand(-1, 9))
    assert do_test(tokenizer, ids[1:], torch.Generator().manual_seed(0)) > 0.5
    tokenizer.quantiser.codebook[1] = tokenizer.quantiser.codebook[0]
    assert do_test(tokenizer, ids[1:], torch.Generator().manual_seed(0)) == 0.0
