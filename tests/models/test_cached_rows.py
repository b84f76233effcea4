"""Rows that join a cache and leave it, against each row read alone."""

from __future__ import annotations

import pytest
import torch

from posttrain.models.cached_rows import CachedRows, read_prompts
from tests.rollout.tiny_engines import model_of

N_VOCAB = 30


def next_logits(model, row: list[int]) -> torch.Tensor:
    return model(torch.tensor([row])).logits[0, -1]


def assert_rows_are(read: CachedRows, rows: list[list[int]]) -> None:
    assert read.position.tolist() == [len(row) for row in rows]
    expected = torch.stack([next_logits(read.model, row) for row in rows])
    torch.testing.assert_close(read.logits, expected, atol=1e-10, rtol=1e-10)  # float64: other orders of sums


@pytest.mark.parametrize("family", ["llama", "gpt2", "sliding"])
@torch.inference_mode()
def test_rows_go_on_as_if_alone_when_others_join_and_leave(family):
    model = model_of(family, torch.float64, N_VOCAB).eval()
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, N_VOCAB, (n,), generator=generator).tolist()

    rows = [tokens(3), tokens(20)]  # beyond the window of 8 of the sliding family
    read = read_prompts(model, rows)

    def grow(n: int) -> None:
        for _ in range(n):
            new = tokens(len(rows))
            read.append(torch.tensor(new))
            for row, token_id in zip(rows, new, strict=True):
                row.append(token_id)
            assert_rows_are(read, rows)

    def join(*joining: list[int]) -> None:
        read.join(read_prompts(model, joining))
        rows.extend(joining)
        assert_rows_are(read, rows)

    def keep(*kept: int) -> None:
        read.select(torch.tensor(kept))
        read.drop_padding()
        rows[:] = [list(rows[i]) for i in kept]
        assert read.is_token.shape[1] == max(map(len, rows))
        for layer in read.cache.layers:
            assert layer.keys.shape[-2] == layer.values.shape[-2] <= max(map(len, rows))

    grow(2)
    join(tokens(1), tokens(9))  # shorter than what is there
    grow(2)
    keep(2, 0, 3)  # the longest leaves
    grow(3)
    join(tokens(40))  # longer than what is there
    grow(2)
    keep(1)
    grow(10)


@torch.inference_mode()
def test_row_past_the_last_position_does_no_harm_to_the_others():
    model = model_of("gpt2", torch.float64, N_VOCAB).eval()  # 128 learned positions
    rows = [[3] * 127, [4, 5]]
    read = read_prompts(model, rows)
    for token_id in (6, 7, 8):
        read.append(torch.tensor([9, token_id]))
    torch.testing.assert_close(read.logits[1], next_logits(model, [4, 5, 6, 7, 8]), atol=1e-10, rtol=1e-10)
