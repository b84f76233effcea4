"""The grammar: what it says, what it holds out, and scenes that are what their prompt says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from posttrain.vision.prompts import (
    Family,
    ImagePrompt,
    Relation,
    Wanted,
    all_prompts,
    draw_scene,
    prompt_of,
    split_prompts,
    words,
)
from posttrain.vision.world import COLOURS, SHAPES, Thing, World
from tests.vision.prompt_logic import entails, is_true

DEFAULT = World()
WORLDS = (
    DEFAULT,
    World(n_cells=4, cell_px=8, shapes=SHAPES, colours=tuple(COLOURS)),
    World(n_cells=5, shapes=SHAPES[:4], colours=tuple(COLOURS)[:5]),
    World(n_cells=2, shapes=("cross", "square"), colours=("cyan", "red", "pink")),
)


def test_the_default_world_has_717_prompts_by_family() -> None:
    # 3 shapes and 12 kinds: 3 single, 3·2 two, 12·3 counting, 12 colours, 12·11·4 position, 12·11 attribution
    counts = Counter(p.family for p in all_prompts(DEFAULT))
    assert counts == {
        Family.SINGLE: 3,
        Family.TWO: 6,
        Family.COUNTING: 36,
        Family.COLOURS: 12,
        Family.POSITION: 528,
        Family.ATTRIBUTION: 132,
    }


@pytest.mark.parametrize(
    ("text", "family", "wanted", "relation"),
    [
        ("a ring", Family.SINGLE, (Wanted(1, None, 1),), None),
        ("a ring and a cross", Family.TWO, (Wanted(1, None, 1), Wanted(2, None, 1)), None),
        ("three green crosses", Family.COUNTING, (Wanted(2, 1, 3),), None),
        ("a red ring", Family.COLOURS, (Wanted(1, 0, 1),), None),
        ("a red square left of a blue ring", Family.POSITION, (Wanted(0, 0, 1), Wanted(1, 2, 1)), Relation.LEFT),
        ("a red square and a blue ring", Family.ATTRIBUTION, (Wanted(0, 0, 1), Wanted(1, 2, 1)), None),
    ],
)
def test_a_text_of_each_family_means_what_it_says(
    text: str, family: Family, wanted: tuple[Wanted, ...], relation: Relation | None
) -> None:
    assert prompt_of(DEFAULT, text) == ImagePrompt(family, text, wanted, relation)


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: f"{w.n_cells}x{w.cell_px}")
def test_every_text_names_one_prompt(world: World) -> None:
    prompts = all_prompts(world)
    assert len({p.text for p in prompts}) == len(prompts)
    assert [prompt_of(world, p.text) for p in prompts] == list(prompts)


def test_an_unknown_text_is_refused_with_the_nearest_prompt() -> None:
    with pytest.raises(ValueError, match="nearest is 'a red ring left of a blue cross'"):
        prompt_of(DEFAULT, "a red ring left of the blue cross")


def test_the_words_are_those_of_all_texts() -> None:
    assert words(DEFAULT) == (
        *("a", "square", "ring", "cross", "and", "two", "red", "squares", "three", "four", "green", "blue", "yellow"),
        *("rings", "crosses", "left", "of", "right", "above", "below"),
    )


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: f"{w.n_cells}x{w.cell_px}")
def test_a_drawn_scene_is_what_its_prompt_says_and_nothing_else(world: World) -> None:
    prompts = all_prompts(world)
    generator = torch.Generator().manual_seed(0)
    for prompt in [p for p in prompts[:: max(1, len(prompts) // 700)] for _ in range(3)]:
        assert is_true(world, prompt.text, draw_scene(prompt, world, generator)), prompt.text


def test_scenes_are_equal_for_equal_seeds_and_cells_are_all_used() -> None:
    prompt = prompt_of(DEFAULT, "a red ring above a blue cross")
    drawn = [[draw_scene(prompt, DEFAULT, torch.Generator().manual_seed(s)) for s in range(200)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    # One row apart the columns must be equal: 2·3 pairs. Two rows apart they may differ by one: 3 + 2·2 pairs.
    # 200 draws miss one of these 13 with a probability below 13·(12/13)^200 = 1.5e-6.
    assert len({((a.row, a.column), (b.row, b.column)) for a, b in drawn[0]}) == 13


def test_free_colours_are_all_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(draw_scene(prompt_of(DEFAULT, "a ring"), DEFAULT, generator)[0].colour for _ in range(400))
    # 100 each expected, standard deviation 8.7
    assert set(drawn) == {0, 1, 2, 3}
    assert min(drawn.values()) > 65


@pytest.mark.parametrize(
    ("second", "holds"),
    [
        ((1, 2), {Relation.LEFT}),
        ((1, 0), {Relation.RIGHT}),
        ((2, 1), {Relation.ABOVE}),
        ((0, 1), {Relation.BELOW}),
        ((0, 0), set()),
        ((0, 2), set()),
        ((2, 0), set()),
        ((2, 2), set()),
        ((0, 3), {Relation.LEFT}),  # one up and two to the right: right is the larger offset
    ],
)
def test_a_relation_is_the_larger_offset_and_no_diagonal(second: tuple[int, int], holds: set[Relation]) -> None:
    middle, other = Thing(0, 0, 1, 1), Thing(1, 1, *second)
    assert {relation for relation in Relation if relation.holds(middle, other)} == holds


def test_a_fifth_of_three_families_is_held_out_by_meaning() -> None:
    train, held_out = split_prompts(DEFAULT)
    # meanings: 36 counting; 528/2 position, as every one has two wordings; 132/2 attribution
    meanings = {family: {p.meaning for p in held_out if p.family is family} for family in Family}
    assert {family: len(found) for family, found in meanings.items() if found} == {
        Family.COUNTING: 7,  # round(7.2)
        Family.POSITION: 53,  # round(52.8)
        Family.ATTRIBUTION: 13,  # round(13.2)
    }
    assert Counter(p.family for p in held_out) == {
        Family.COUNTING: 7,
        Family.POSITION: 106,
        Family.ATTRIBUTION: 26,
    }
    assert sorted(p.text for p in train + held_out) == sorted(p.text for p in all_prompts(DEFAULT))


def test_no_held_out_prompt_has_a_wording_in_training() -> None:
    train, held_out = split_prompts(DEFAULT, seed=3)
    assert not any(entails(p, q) and entails(q, p) for p in train for q in held_out)


def test_training_has_every_word_and_every_kind_counted_and_related() -> None:
    train, _ = split_prompts(DEFAULT)
    assert {word for p in train for word in p.text.split()} == set(words(DEFAULT))
    assert {p.relation for p in train} == {None, *Relation}


def test_the_split_follows_its_seed_and_share() -> None:
    assert split_prompts(DEFAULT, seed=1) == split_prompts(DEFAULT, seed=1)
    assert split_prompts(DEFAULT, seed=1)[1] != split_prompts(DEFAULT, seed=2)[1]
    assert split_prompts(DEFAULT, held_out_share=0.0)[1] == ()
    with pytest.raises(ValueError, match="held_out_share 1"):
        split_prompts(DEFAULT, held_out_share=1.0)
