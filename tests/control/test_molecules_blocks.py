"""Reading blocks, and the symmetries of their fragments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.control.molecules.blocks import BlocksError, make_blocks, read_blocks
from posttrain.control.molecules.rewards import BLOCKS_FILE, data_file
from posttrain.control.molecules.small_blocks import small_blocks


def published_blocks() -> Path:
    try:
        return data_file(BLOCKS_FILE, None)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_published_file_has_105_blocks_of_72_fragments_with_the_known_numbers_of_atoms_to_join_at() -> None:
    blocks = read_blocks(published_blocks())
    assert (len(blocks), len(blocks.fragments)) == (105, 72)
    counts = [len(block.stems_as_first) for block in blocks.blocks]
    assert {n: counts.count(n) for n in sorted(set(counts))} == {1: 47, 2: 30, 3: 9, 4: 9, 5: 8, 6: 2}


@pytest.mark.parametrize(
    ("smiles", "n_symmetries"),
    [
        ("c1ccccc1", 12),  # rotations and reflections of the hexagon
        ("c1ccncc1", 2),  # the mirror through nitrogen
        ("c1cn[nH]c1", 1),  # pyrazole: n and [nH] are different, though one element
        ("FC(F)F", 6),  # any order of the three fluorines
        ("O=C[O-]", 1),  # charges are written on one oxygen
    ],
)
def test_symmetries_of_a_fragment_keep_elements_charges_and_hydrogens(smiles: str, n_symmetries: int) -> None:
    (fragment,) = make_blocks([("one", smiles, [1])]).fragments
    assert len(fragment.symmetries) == n_symmetries


def test_pairs_of_ring_atoms_have_one_class_per_distance() -> None:
    fragment = small_blocks().fragments[0]
    assert fragment.atom_class == (0,) * 6
    # From atom 0: itself, ortho, meta, para, meta, ortho.
    first = fragment.pair_class[0]
    assert len(set(first)) == 4
    assert (first[1], first[2]) == (first[5], first[4])
    assert fragment.pair_class[3][0] == first[3]


def test_subset_keeps_the_named_blocks_and_their_fragments_alone() -> None:
    subset = small_blocks().subset(["chlorine", "piperidine-4"])
    assert [block.name for block in subset.blocks] == ["chlorine", "piperidine-4"]
    assert [subset.fragments[block.fragment].smiles for block in subset.blocks] == ["Cl", "C1CCNCC1"]
    assert len(subset.fragments) == 2
    with pytest.raises(BlocksError, match="no block 'bromine': blocks are amide, "):
        small_blocks().subset(["bromine"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("b", "c1ccccc", [0]), "block 'b': RDKit cannot read the SMILES 'c1ccccc'"),
        (("b", "CC", []), r"block 'b': block_r is \[\]; needed one atom or more"),
        (("b", "CC", [0, 2]), r"block_r is \[0, 2\]; needed one atom or more, each from 0 to 1"),
        (("b", "CF", [1]), r"'CF' cannot take a bond at each of \[1\].*no more often than it has hydrogens"),
        (("b", "CO", [1, 1]), r"'CO' cannot take a bond at each of \[1, 1\]"),
    ],
)
def test_block_that_no_molecule_can_use_is_refused_by_name(row: tuple, message: str) -> None:
    with pytest.raises(BlocksError, match=message):
        make_blocks([row])


def test_block_names_must_differ() -> None:
    with pytest.raises(BlocksError, match="block 'a' is there twice"):
        make_blocks([("a", "C", [0]), ("a", "F", [0])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON.*is the download whole"),
        ("[]", "needs the columns block_name, block_smi, block_r"),
        (json.dumps({"block_name": {"0": "a"}, "block_smi": {"0": "C"}}), "needs the columns"),
        (
            json.dumps({"block_name": {"0": "a"}, "block_smi": {"0": "C"}, "block_r": {"1": [0]}}),
            "block_r has other rows than block_name",
        ),
    ],
)
def test_file_that_holds_no_blocks_is_refused_by_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "blocks.json"
    path.write_text(text)
    with pytest.raises(BlocksError, match=f"blocks.json: {message}"):
        read_blocks(path)
