"""Decodings as text: what is read, what is refused, and which of them cannot stand in one file."""

import re

import pytest

from posttrain.evaluation.decoding import (
    Chosen,
    Greedy,
    LikelihoodBeam,
    LogRatioBeam,
    Sampled,
    Stepwise,
    ValueRerank,
    parse_decoding,
    require_distinct_records,
)
from posttrain.search.spec import Algorithm


@pytest.mark.parametrize(
    ("text", "decoding"),
    [
        ("greedy", Greedy()),
        ("sample:1", Sampled(1)),
        ("sample:16", Sampled(16)),
        ("best_of_n:4", Chosen(Algorithm.BEST_OF_N, 4)),
        ("majority:8", Chosen(Algorithm.MAJORITY, 8)),
        ("weighted_majority:1", Chosen(Algorithm.WEIGHTED_MAJORITY, 1)),
        ("beam:4x2", Stepwise(Algorithm.BEAM, 4, 2)),
        ("dvts:2x16", Stepwise(Algorithm.DVTS, 2, 16)),
        ("value_rerank:3x5", ValueRerank(3, 5)),
        ("likelihood:5", LikelihoodBeam(5)),
        ("log_ratio:12", LogRatioBeam(12)),
    ],
)
def test_a_decoding_is_read_from_its_text(text, decoding):
    assert parse_decoding(text) == decoding


@pytest.mark.parametrize(
    "text",
    [
        *("", "Greedy", "sample", "sample:0", "sample:-4", "sample:4 ", "sample:٤", "beam:4", "beam:4x0", "beam:x4"),
        *("best_of_n:4x4", "majority:0", "none:1", "dvts:4", "value_rerank:4", "beam:4x4x4"),
        *("likelihood", "likelihood:0", "log_ratio", "log_ratio:4x4", "log-ratio:4", "likelihood_ratio:4"),
    ],
)
def test_a_text_that_is_no_decoding_is_refused_with_the_forms_there_are(text):
    forms = re.escape(
        "greedy, sample:N (e.g. sample:16), best_of_n:N, majority:N or weighted_majority:N, beam:WxE or dvts:WxE "
        "(e.g. beam:4x4), likelihood:B or log_ratio:B (e.g. log_ratio:5), value_rerank:BxK"
    )
    with pytest.raises(ValueError, match=f"decoding '{re.escape(text)}' is none of: {forms}"):
        parse_decoding(text)


@pytest.mark.parametrize(("n", "sizes"), [(1, ()), (2, (2,)), (7, (2, 4)), (16, (2, 4, 8, 16))])
def test_samples_are_judged_at_the_powers_of_two_up_to_their_number(n, sizes):
    assert Sampled(n).prefix_sizes() == sizes


@pytest.mark.parametrize(
    ("texts", "method", "budget"),
    [
        (("greedy", "sample:4", "greedy"), "greedy", 1),
        (("sample:4", "sample:8"), "sample", 1),
        (("beam:4x1", "beam:2x2"), "beam", 4),  # both draw 4 samples per step
        (("sample:8", "majority:4"), "majority", 4),  # which eight samples give as well
        (("sample:8", "weighted_majority:2"), "weighted_majority", 2),
        (("dvts:8x2", "dvts:4x4"), "dvts", 16),
        (("value_rerank:3x2", "value_rerank:3x4"), "value_rerank", 3),
        (("log_ratio:3", "likelihood:3", "log_ratio:3"), "log_ratio", 3),
    ],
)
def test_decodings_whose_records_would_have_one_key_are_refused_together(texts, method, budget):
    with pytest.raises(ValueError, match=f"both give '{method}' answers with a budget of {budget}"):
        require_distinct_records(texts)


def test_beams_of_different_budgets_stand_beside_samples():
    texts = ("greedy", "sample:16", "best_of_n:32", "beam:2x2", "beam:4x4", "dvts:4x4", "value_rerank:4x8")
    require_distinct_records((*texts, "likelihood:2", "likelihood:4", "log_ratio:4"))
