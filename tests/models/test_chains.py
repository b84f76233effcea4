"""How unread rows become forward passes: every token in one of them, once, beside as little padding as may be."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedModel

from posttrain.models import chains
from posttrain.models.prefix_cache import PrefixCache
from tests.models.prefix_rows import Row, grown_rows, hidden_alone, policy, prefixes, rounding
from tests.models.tiny_models import VOCAB


@pytest.mark.parametrize("limit", [1, 3, 512])
def test_no_token_is_read_twice_however_rows_are_laid_side_by_side(limit, monkeypatch):
    monkeypatch.setattr(chains, "MOST_SIDE_BY_SIDE", limit)
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=5_000)
    tolerance = rounding("llama")
    asked: list[Row] = []
    for rows in grown_rows(random.Random(limit), n_calls=15):
        n_before = cache.n_tokens_read
        read = cache.last_hidden(rows)
        asked += rows
        # An inner token's hidden state is kept too, so that a row that ends there costs nothing.
        assert cache.n_tokens_read == cache.n_tokens == len(prefixes(asked))
        assert sum(read.n_tokens_read) == cache.n_tokens_read - n_before
        for row, found in zip(rows, read.hidden, strict=True):
            torch.testing.assert_close(found, hidden_alone(trunk, row)[-1], rtol=0, atol=tolerance)


class Passes:
    """The shapes of the inputs that a trunk was given."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        self.shapes: list[tuple[int, int]] = []
        trunk.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, inputs) -> None:
        self.shapes.append(tuple(inputs["input_ids"].shape))


def test_branches_of_an_unread_prompt_are_read_in_one_pass_and_later_ones_beside_their_siblings():
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=1_000)
    passes = Passes(trunk)
    prompt = tuple(range(3, 13))
    branches = [(*prompt, 20 + i, 5, 6) for i in range(4)]
    cache.last_hidden(branches)
    cache.last_hidden([(*branch, 7 + i, 8) for branch in branches[:2] for i in range(3)])
    # 10 of the prompt and 4 x 3 beside each other; then two parents with 3 x 2 each. No padding anywhere.
    assert passes.shapes == [(1, 22), (2, 6)]


def test_long_prompts_with_a_common_first_token_are_not_compared_with_each_other():
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=5_000)
    passes = Passes(trunk)
    rng = random.Random(0)
    prompts = [(3, i + 4, *(rng.randrange(VOCAB) for _ in range(298))) for i in range(5)]
    cache.last_hidden(prompts)
    # 300 + 299 exceed what may stand side by side: the first prompt with the common token, then four alone.
    assert passes.shapes == [(1, 300), (4, 299)]


def test_short_groups_are_not_padded_to_a_much_longer_one():
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=5_000)
    short = [(3 + i, 3, 3) for i in range(3)]
    cache.last_hidden(short)
    passes = Passes(trunk)
    cache.last_hidden([*((*row, 9) for row in short), (9,) * 200])
    assert passes.shapes == [(1, 200), (3, 1)]
