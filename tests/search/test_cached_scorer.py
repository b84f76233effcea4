"""Scorers that remember what they read, against the one that reads everything anew."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from posttrain.models.value import ValueHead
from posttrain.search.cached_scorer import CachedScorer
from posttrain.search.scorer import ReencodingScorer
from tests.models.tiny_models import FAMILIES, config_of

Row = tuple[int, ...]


def value_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = config_of(family)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5.0)
    model = model.to(dtype).eval()
    model.score = ValueHead((0.2 * torch.randn(1, 32)).to(dtype))
    return model


def random_tree(rng: random.Random, *, n_steps: int, width: int, expansions: int) -> list[list[Row]]:
    """Candidates of each step of a search whose survivors are drawn at random; siblings often begin alike."""
    beam: list[Row] = [tuple(rng.randrange(3, 8) for _ in range(rng.randint(1, 9)))]
    rounds = []
    for _ in range(n_steps):
        candidates = [
            parent + tuple(rng.randrange(3, 8) for _ in range(rng.randint(1, 5)))
            for parent in beam
            for _ in range(expansions)
        ]
        rounds.append(candidates)
        beam = rng.sample(candidates, min(width, len(candidates)))
    return rounds


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("max_tokens", [64, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_random_trees_are_those_of_reading_everything_anew(family, max_tokens, batch_size):
    model, exact = value_model(family), value_model(family, dtype=torch.float64)
    scorer = CachedScorer(model, max_tokens=max_tokens, batch_size=batch_size)
    anew = ReencodingScorer(model, batch_size=8)
    precise = ReencodingScorer(exact, batch_size=8)
    for candidates in random_tree(random.Random(batch_size), n_steps=6, width=2, expansions=3):
        expected, plain, found = (
            torch.tensor(one.score(candidates), dtype=torch.float64) for one in (precise, anew, scorer)
        )
        # What rounding does is known from the plain scorer: its own distance to float64, and some units of 2^-24.
        rounding = (plain - expected).abs().max().item() + 1e-6
        torch.testing.assert_close(found, expected, rtol=0, atol=4 * rounding)
        assert rounding < 2e-5
    assert expected.std() > 0.1
    assert scorer.n_tokens_read + scorer.n_tokens_cached == anew.n_tokens_read


def test_values_agree_in_float64():
    # Norms of GPT-2 compute in float64 (those of Llama in float32): what is left is 2^-52 and sums of 128 terms.
    model = value_model("gpt2", dtype=torch.float64)
    scorer, anew = CachedScorer(model, max_tokens=80, batch_size=4), ReencodingScorer(model, batch_size=4)
    for candidates in random_tree(random.Random(0), n_steps=7, width=3, expansions=3):
        torch.testing.assert_close(
            torch.tensor(scorer.score(candidates)), torch.tensor(anew.score(candidates)), rtol=0, atol=1e-12
        )


def test_a_search_costs_the_prompt_and_every_new_step_once():
    # P = 12, S = 5 rounds, m = 4 tokens a step, K = B E = 4. Anew: K (S P + m S (S + 1) / 2); remembered: P + K S m.
    n_prompt, n_rounds, n_step, width, expansions = 12, 5, 4, 2, 2
    n_rows = width * expansions
    model = value_model("llama")
    scorer, anew = CachedScorer(model, max_tokens=1_000, batch_size=64), ReencodingScorer(model, batch_size=64)
    fresh = iter(range(10_000))
    beam = [tuple(3 + i for i in range(n_prompt))] * width  # of the prompt K branches, as in every later round
    for _ in range(n_rounds):
        # Numbers to the base 20, so that no two steps begin alike.
        steps = [divmod(next(fresh), 20) for _ in range(n_rows)]
        candidates = [
            (*beam[i // expansions], *(3 + digit for digit in step), *(3,) * (n_step - 2))
            for i, step in enumerate(tuple(reversed(step)) for step in steps)
        ]
        scorer.score(candidates)
        anew.score(candidates)
        scorer.forget(candidates[width:])
        beam = candidates[:width]
    assert anew.n_tokens_read == n_rows * (n_rounds * n_prompt + n_step * n_rounds * (n_rounds + 1) // 2)
    assert scorer.n_tokens_read == n_prompt + n_rows * n_rounds * n_step
    # Each round dropped the steps of all but `width` candidates; the last survivors' steps are counted in.
    assert scorer.prefix_cache.n_tokens == n_prompt + width * n_rounds * n_step


def test_scores_at_every_token_are_those_of_the_prefixes_and_cost_nothing_after_a_search():
    model = value_model("qwen2")
    scorer, anew = CachedScorer(model, max_tokens=100, batch_size=8), ReencodingScorer(model, batch_size=8)
    row = (3, 4, 5, 6, 7, 8)
    scorer.score([row, row[:3]])
    n_read = scorer.n_tokens_read
    expected = anew.score([row[: t + 1] for t in range(len(row))])
    scored = scorer.score_all(row)
    torch.testing.assert_close(torch.tensor(scored.values), torch.tensor(expected), rtol=0, atol=1e-5)
    assert (scored.n_tokens_read, scorer.n_tokens_read, scorer.n_tokens_cached) == (0, n_read, 3 + len(row))


def test_each_group_has_its_own_values_and_its_share_of_the_tokens_read():
    model = value_model("llama")
    scorer, anew = CachedScorer(model, max_tokens=100, batch_size=2), ReencodingScorer(model, batch_size=2)
    groups = [[(5, 6, 7), (3, 4, 5)], [], [(3, 4, 6), (5, 6, 7, 8)], [(3, 4)]]
    found, plain = scorer.score_groups(groups), anew.score_groups(groups)
    for group, scored in zip(groups, found, strict=True):
        torch.testing.assert_close(torch.tensor(scored.values), torch.tensor(anew.score(group)), rtol=0, atol=1e-5)
    # In order of their tokens: 3 4 counts for the last group, 5 and 6 after it for whom they are; 5 6 7 for the first.
    assert [scored.n_tokens_read for scored in found] == [1 + 3, 0, 1 + 1, 2]
    assert [scored.n_tokens_read for scored in plain] == [6, 0, 7, 2]
    assert sum(scored.n_tokens_read for scored in found) == scorer.n_tokens_read == 8
    assert scorer.n_tokens_cached == 15 - 8


def test_an_empty_sequence_and_an_empty_batch_are_refused():
    scorer = CachedScorer(value_model("llama"), max_tokens=10, batch_size=2)
    with pytest.raises(ValueError, match="empty sequence"):
        scorer.score([(3,), ()])
    with pytest.raises(ValueError, match="batch_size is 0, needs at least 1"):
        CachedScorer(value_model("llama"), max_tokens=10, batch_size=0)
    assert scorer.score([]) == []
