"""Tables of pictures by family: shares, means that weigh families alike, gains seed by seed."""

from __future__ import annotations

import pytest

from posttrain.evaluation.picture_table import gain_table, means_of_families, picture_table
from posttrain.evaluation.statistics import seed_interval
from posttrain.schema import AnswerRecord, FinishReason, Grade


def answers(method: str, seed: int, **right_of_two: int) -> list[AnswerRecord]:
    """Two samples of one prompt for each family, so many of them right."""
    return [
        AnswerRecord(
            task_id=f"{family} 1",
            method=method,
            seed=seed,
            budget=1,
            text="<v0>",
            grade=Grade.CORRECT if place < right else Grade.WRONG,
            finish_reason=FinishReason.LENGTH,
            n_generated_tokens=9,
            value=None,
            tags=(("family", family),),
        )
        for family, right in right_of_two.items()
        for place in range(2)
    ]


SFT, PG = ("sft/sample", 1), ("pg/sample", 1)
RECORDS = [
    *answers("sft/sample", 0, counting=0, position=1),  # mean 0.25
    *answers("sft/sample", 1, counting=0, position=0),  # mean 0
    *answers("pg/sample", 0, counting=2, position=1),  # mean 0.75
    *answers("pg/sample", 1, counting=1, position=1),  # mean 0.5
]


def test_mean_of_families_weighs_a_family_of_one_prompt_like_one_of_many() -> None:
    many = [
        *answers("a/sample", 0, position=2),
        *answers("a/sample", 0, position=2),
        *answers("a/sample", 0, counting=0),
    ]
    assert means_of_families(many) == {0: 0.5}


def test_table_shows_families_and_their_mean_with_the_interval_over_seeds() -> None:
    table = picture_table(RECORDS, [SFT, PG])
    assert table.header[1:4] == ("counting, %", "position, %", "mean of families, %")
    sft, pg = table.rows
    assert sft[1].startswith("0.0 [") and sft[2].startswith("25.0 [")  # 0 of 4, 1 of 4
    assert pg[1].startswith("75.0 [") and pg[2].startswith("50.0 [")
    assert (sft[3], pg[3]) == ("12.5", "62.5")
    expected = seed_interval([0.75, 0.5])
    assert pg[4] == f"[{100 * expected.low:.1f}, {100 * expected.high:.1f}]"


def test_gain_is_taken_seed_by_seed() -> None:
    ((label, mean, interval, by_seed),) = gain_table(RECORDS, [(PG, SFT)]).rows
    assert label == "pg/sample, n = 1 over sft/sample, n = 1"
    assert (mean, by_seed) == ("+50.0", "+50.0, +50.0")
    assert interval == "[+50.0, +50.0]"  # both seeds gained the same


def test_seeds_must_be_the_same_and_families_known() -> None:
    with pytest.raises(ValueError, match="seeds"):
        gain_table([*RECORDS, *answers("pg/sample", 2, counting=1, position=1)], [(PG, SFT)])
    stray = [record for record in RECORDS if record.method == "sft/sample"]
    object.__setattr__(stray[0], "tags", ())
    with pytest.raises(ValueError, match="has no tag 'family'"):
        picture_table(stray, [SFT])
    object.__setattr__(stray[0], "tags", (("family", "counting"),))
