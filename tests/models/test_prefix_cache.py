"""The prefix cache against rows read alone and anew."""

from __future__ import annotations

import random

import pytest
import torch

from posttrain.models.prefix_cache import PrefixCache
from tests.models.prefix_rows import MOST, Row, grown_rows, hidden_alone, policy, prefixes, rounding
from tests.models.tiny_models import FAMILIES


@pytest.fixture(scope="module")
def tolerance() -> dict[str, float]:
    found = {family: rounding(family) for family in FAMILIES}
    assert max(found.values()) < 1e-4  # of hidden states of order 1
    return found


@pytest.mark.parametrize("max_tokens", [MOST, 60, 100_000])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_rows_read_alone_whatever_the_room(family, attention, max_tokens, tolerance):
    trunk = policy(family, attention=attention).base_model
    cache = PrefixCache(trunk, max_tokens=max_tokens)
    for rows in grown_rows(random.Random(max_tokens), n_calls=12):
        hidden = cache.last_hidden(rows).hidden
        assert cache.n_tokens <= max_tokens
        for row, found in zip(rows, hidden, strict=True):
            expected = hidden_alone(trunk, row)[-1]
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance[family])
    assert expected.std() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_agree_to_the_last_digits_of_float64(attention):
    # GPT-2: the one of the families whose norms compute in float64 too. 2^-52 and sums of 32 to 128 terms: 1e-14.
    trunk = policy("gpt2", attention=attention, dtype=torch.float64).base_model
    cache = PrefixCache(trunk, max_tokens=70)
    for rows in grown_rows(random.Random(3), n_calls=12):
        for row, found in zip(rows, cache.last_hidden(rows).hidden, strict=True):
            torch.testing.assert_close(found, hidden_alone(trunk, row)[-1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_frees_what_no_other_row_begins_with_and_nothing_else(seed):
    rng = random.Random(seed)
    trunk = policy("gpt2").base_model
    cache = PrefixCache(trunk, max_tokens=5_000)
    held: set[Row] = set()
    for rows in grown_rows(rng, n_calls=15):
        cache.last_hidden(rows)
        held.update(rows)
        for row in rng.sample(sorted(held), k=len(held) // 2):
            cache.forget(row)
            held.discard(row)
        assert cache.n_tokens == len(prefixes(held))
    n_read = cache.n_tokens_read
    cache.last_hidden(sorted(held))
    assert cache.n_tokens_read == n_read  # what is held was not touched


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_meets_what_memory_happened_to_hold(family, tolerance):
    trunk = policy(family).base_model
    cache = PrefixCache(trunk, max_tokens=300)
    for pool in (cache._hidden, *(pool for pools in cache._pools for pool in pools)):
        pool[1:] = torch.nan
    for rows in grown_rows(random.Random(5), n_calls=5):
        for row, found in zip(rows, cache.read(rows).hidden, strict=True):
            torch.testing.assert_close(found, hidden_alone(trunk, row)[-1], rtol=0, atol=tolerance[family])


@pytest.mark.parametrize("max_tokens", [MOST + 5, 100_000])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_goes_on_from_rows_that_were_read_and_what_it_reads_is_stored(family, max_tokens, tolerance):
    model = policy(family)
    cache = PrefixCache(model.base_model, max_tokens=max_tokens)
    rng = random.Random(2)
    rows = [tuple(rng.randrange(3, 6) for _ in range(rng.randint(1, 12))) for _ in range(6)]
    cache.last_hidden(rows[:3])
    decoded = cache.read(rows).by(model)
    decoded.select(torch.tensor([0, 1, 1, 5, 3]))
    grown = [rows[i] for i in (0, 1, 1, 5, 3)]
    for step in range(4):
        for row, logits in zip(grown, decoded.logits, strict=True):
            expected = model.get_output_embeddings()(hidden_alone(model.base_model, row)[-1])
            # logits are sums over 32 states times weights of size 5 · 0.02
            torch.testing.assert_close(logits, expected, rtol=0, atol=32 * tolerance[family])
        token_ids = [(i + step) % 5 + 3 for i in range(len(grown))]
        grown = [(*row, token) for row, token in zip(grown, token_ids, strict=True)]
        decoded.append(torch.tensor(token_ids))
    places = [4, 0, 2, 1, 3]
    cache.store([grown[i][:-1] for i in places], decoded, places)  # a row may end before its columns do
    n_read = cache.n_tokens_read
    for row, found in zip(grown, cache.last_hidden(grown).hidden, strict=True):
        torch.testing.assert_close(found, hidden_alone(model.base_model, row)[-1], rtol=0, atol=tolerance[family])
    if max_tokens > MOST + 5:
        assert cache.n_tokens_read == n_read + len(set(grown))  # the last token of each, and no other


def test_the_hidden_state_of_a_stored_end_costs_that_token_and_then_nothing():
    model = policy("llama")
    cache = PrefixCache(model.base_model, max_tokens=100)
    with torch.no_grad():
        decoded = cache.read([(3, 4)]).by(model)
        decoded.append(torch.tensor([5]))
        decoded.append(torch.tensor([6]))
    cache.store([(3, 4, 5, 6)], decoded, [0])
    # Of both rows token 5 is asked for while 6, after it, is known: it is read again, once, and so is 6 as an end.
    asked = {((3, 4, 5), (3, 4, 5, 6, 7), (3, 4, 5)): [1, 1, 0], ((3, 4, 5, 6),): [1], ((3, 4, 5),): [0]}
    for rows, n_more in asked.items():
        n_before = cache.n_tokens_read
        read = cache.last_hidden(rows)
        for row, found in zip(rows, read.hidden, strict=True):
            torch.testing.assert_close(found, hidden_alone(model.base_model, row)[-1], rtol=0, atol=1e-5)
        assert read.n_tokens_read == n_more
        assert cache.n_tokens_read == n_before + sum(n_more)


@pytest.mark.parametrize("max_tokens", [5, 100])
def test_each_token_of_a_call_counts_for_one_of_its_rows_whatever_the_room(max_tokens):
    cache = PrefixCache(policy("llama").base_model, max_tokens=max_tokens)
    rows = [(4, 5, 6, 7), (3, 4), (4, 5, 8), (3, 4), (3,)]
    # In order of their tokens: 3, 3 4, 3 4, 4 5 6 7, 4 5 8. Of "3 4" and "4 5" the first such row reads what is new.
    # Five slots hold 3 4, then 4 5 6 7 with the end of 4 5 8: nothing is read twice for being read in two lots.
    assert cache.last_hidden(rows).n_tokens_read == [4, 1, 1, 0, 1]
    assert cache.n_tokens_read == 7


def test_hidden_states_at_every_token_are_free_after_reading_and_read_again_from_the_first_unknown_one():
    model = policy("qwen2")
    cache = PrefixCache(model.base_model, max_tokens=100)
    with torch.no_grad():
        decoded = cache.read([(3, 4, 5)]).by(model)
        for token in (6, 7):
            decoded.append(torch.tensor([token]))
    cache.store([(3, 4, 5, 6, 7)], decoded, [0])
    # 3 at first; of the stored 6 and 7 no hidden states are known; then nothing; 8; of one more row the 2 it has anew.
    asked = {(3, 4, 5): 3, (3, 4, 5, 6, 7): 5, (3, 4, 5, 6): 5, (3, 4, 5, 6, 7, 8): 6, (8, 9): 8}
    for row, n_read in asked.items():
        n_before = cache.n_tokens_read
        read = cache.every_hidden(row)
        torch.testing.assert_close(read.hidden, hidden_alone(model.base_model, row), rtol=0, atol=1e-5)
        assert cache.n_tokens_read == n_read
        assert read.n_tokens_read == [n_read - n_before]


def test_a_pass_that_fails_leaves_nothing_half_read(monkeypatch):
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=60)
    cache.last_hidden([(3, 4)])
    with monkeypatch.context() as patch:
        patch.setattr(trunk, "forward", lambda **inputs: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(MemoryError):
            cache.last_hidden([(3, 4, 5, 6), (3, 4, 5, 7), (8,)])
    assert cache.n_tokens == 2
    for row in ((3, 4, 5, 6), (8,)):
        torch.testing.assert_close(cache.last_hidden([row]).hidden[0], hidden_alone(trunk, row)[-1], rtol=0, atol=1e-5)


def test_a_cleared_cache_reads_with_the_weights_of_now():
    trunk = policy("llama").base_model
    cache = PrefixCache(trunk, max_tokens=60)
    row = (3, 4, 5)
    before = cache.last_hidden([row]).hidden
    with torch.no_grad():
        for weight in trunk.parameters():
            weight.mul_(1.1)
    cache.clear()
    found = cache.last_hidden([row]).hidden
    torch.testing.assert_close(found[0], hidden_alone(trunk, row)[-1], rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 0.1


def test_rows_that_are_empty_or_longer_than_the_room_are_refused():
    cache = PrefixCache(policy("llama").base_model, max_tokens=4)
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        cache.last_hidden([(3,), ()])
    with pytest.raises(ValueError, match="row 0 has 5 tokens and the cache room for 4: raise max_tokens"):
        cache.read([(3, 3, 3, 3, 3)])
    assert cache.last_hidden([]).hidden.shape == (0, 32)
