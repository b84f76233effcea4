"""The trie of stored tokens against a plain set of prefixes."""

from __future__ import annotations

import random

import pytest

from posttrain.models.token_trie import TokenTrie, n_common


def prefixes(rows) -> set[tuple[int, ...]]:
    return {tuple(row[: t + 1]) for row in rows for t in range(len(row))}


def random_row(rng: random.Random, n_most: int = 9) -> tuple[int, ...]:
    return tuple(rng.randrange(2) for _ in range(rng.randint(1, n_most)))  # two tokens: beginnings are often shared


def insert(trie: TokenTrie, row: tuple[int, ...]) -> list[int]:
    path = trie.find(row)
    path = path + trie.add(path, row[len(path) :])
    trie.hold(path[-1])
    return path


@pytest.mark.parametrize("seed", range(20))
def test_rows_take_one_slot_for_each_distinct_prefix(seed):
    rng = random.Random(seed)
    trie, stored = TokenTrie(1_000), {}
    trie.begin()
    for _ in range(60):
        row = random_row(rng)
        path = insert(trie, row)
        assert len(path) == len(row)
        for t, slot in enumerate(path):
            assert stored.setdefault(row[: t + 1], slot) == slot  # the slot of a prefix never changes
        assert trie.n_tokens == len(stored) == len(set(stored.values()))
        probe = random_row(rng)
        known = max((t for t in range(len(probe) + 1) if t == 0 or probe[:t] in stored), default=0)
        assert trie.find(probe) == [stored[probe[: t + 1]] for t in range(known)]


@pytest.mark.parametrize("seed", range(20))
def test_forgetting_leaves_the_prefixes_of_the_rows_that_are_held(seed):
    rng = random.Random(seed)
    trie, held = TokenTrie(1_000), set()
    trie.begin()
    for _ in range(200):
        row = random_row(rng, 6)
        if rng.random() < 0.5:
            insert(trie, row)
            held.add(row)
        else:
            row = rng.choice(sorted(held)) if held and rng.random() < 0.8 else row
            trie.forget(row)
            held.discard(row)
        assert trie.n_tokens == len(prefixes(held))
        assert all(len(trie.find(row)) == len(row) for row in held)
    for row in held:
        trie.forget(row)
    assert trie.n_tokens == 0


@pytest.mark.parametrize("seed", range(20))
def test_room_is_made_without_touching_this_turn_and_every_stored_prefix_stays_whole(seed):
    rng = random.Random(seed)
    trie = TokenTrie(12)
    for _ in range(100):
        trie.begin()
        rows = [random_row(rng, 4) for _ in range(3)]  # at most 12 tokens: they always fit
        paths = {row: insert(trie, row) for row in rows}
        assert trie.n_tokens <= 12
        assert all(trie.find(row) == path for row, path in paths.items())
        slots = [slot for path in paths.values() for slot in path]
        assert len(set(slots)) == len(prefixes(rows))


def test_what_was_used_least_recently_makes_room_first_and_from_its_end():
    trie = TokenTrie(6)
    for row in ([1, 2, 3], [1, 5], [7, 8]):  # six tokens: 1, 12, 123, 15, 7, 78
        trie.begin()
        insert(trie, tuple(row))
    trie.begin()
    trie.find([1, 2])  # used again; its end 123 was not
    trie.begin()
    insert(trie, (9,))
    assert len(trie.find([1, 2, 3])) == 2
    trie.begin()
    insert(trie, (9, 9))
    assert [len(trie.find(row)) for row in ([1, 5], [7, 8], [1, 2], [9, 9])] == [1, 2, 2, 2]


def test_rows_of_one_turn_that_do_not_fit_are_refused_and_change_nothing():
    trie = TokenTrie(4)
    trie.begin()
    insert(trie, (1, 2, 3))
    with pytest.raises(ValueError, match=r"2 more tokens are to be stored beside 3 .* max_tokens is 4: raise it"):
        insert(trie, (4, 5))
    assert trie.n_tokens == 3
    trie.begin()
    insert(trie, (4, 5))
    assert len(trie.find([1, 2, 3])) == 2
    with pytest.raises(ValueError, match="max_tokens is 0, needs at least 1"):
        TokenTrie(0)


def test_a_prefix_and_a_row_that_was_never_read_are_forgotten_without_harm():
    trie = TokenTrie(9)
    trie.begin()
    insert(trie, (1, 2))
    insert(trie, (1, 2, 3))
    for row in ((1, 2), (1, 2), (1,), (4, 4), (1, 2, 3, 4), ()):
        trie.forget(row)
    assert trie.n_tokens == 3  # (1, 2, 3) is held
    trie.forget((1, 2, 3))
    assert trie.n_tokens == 0


def test_common_beginnings_are_counted():
    assert [n_common(a, b) for a, b in (((1, 2), (1, 3)), ((), (1,)), ((1, 2), (1, 2, 3)), ((2,), (1,)))] == [
        1,
        0,
        2,
        0,
    ]
