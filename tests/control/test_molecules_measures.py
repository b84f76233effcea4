"""Measures of sets of molecules, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.control.molecules.measures import count_modes, count_scaffolds, mean_tanimoto, top_mean
from posttrain.control.molecules.pictures import draw_grid


def test_top_mean_is_that_of_the_highest_and_undefined_where_there_are_fewer() -> None:
    assert top_mean([1.0, 5.0, 3.0], 2) == 4.0
    assert top_mean([1.0], 2) is None


def test_mean_tanimoto_is_one_for_equal_molecules_and_weighs_all_pairs() -> None:
    assert mean_tanimoto(["CCO", "OCC"]) == 1.0
    assert mean_tanimoto(["CCO"]) is None
    # Methane and fluorine share no bit: of the three pairs one is alike.
    assert mean_tanimoto(["C", "C", "F"]) == pytest.approx(1 / 3)


def test_scaffolds_are_counted_once_above_the_threshold_and_no_ring_is_one_scaffold() -> None:
    scores = {"Cc1ccccc1": 8.0, "Fc1ccccc1": 7.5, "CC1CCCCC1": 7.2, "CCO": 7.1, "CN": 7.6, "c1ccncc1": 7.0}
    # benzene, cyclohexane, none; pyridine is at the threshold, not above
    assert count_scaffolds(scores, above=7.0) == 3


def test_modes_are_taken_best_first_and_exclude_what_is_like_a_better_one() -> None:
    scores = {"CCCCCCCC": 9.0, "CCCCCCCCC": 8.0, "c1ccncc1": 7.5, "CO": 6.0}
    # Octane and nonane have the same bits; pyridine is unlike; methanol is below.
    assert count_modes(scores, above=7.0) == 2
    assert count_modes(scores, above=5.0) == 3
    assert count_modes({}, above=5.0) == 0


def test_grid_of_pictures_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    smiles, legends = ["c1ccccc1", "CCO", "CN"], ["1", "2", "3"]
    first, second = (
        draw_grid(tmp_path / name, smiles, legends, n_columns=2, cell_px=120).read_bytes() for name in ("a", "b")
    )
    assert first == second
    # PNG: width and height of two columns and two rows, big endian at bytes 16 to 24
    assert (int.from_bytes(first[16:20], "big"), int.from_bytes(first[20:24], "big")) == (240, 240)
    with pytest.raises(ValueError, match="no molecules to draw"):
        draw_grid(tmp_path / "c.png", [], [], n_columns=2, cell_px=120)
