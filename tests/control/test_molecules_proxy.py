"""The sEH proxy against the published rewards, and the rewards that are made of scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from rdkit import Chem

from posttrain.control.molecules.blocks import read_blocks
from posttrain.control.molecules.chemistry import assemble
from posttrain.control.molecules.molecule import Bond, Molecule
from posttrain.control.molecules.rewards import BLOCKS_FILE, PROXY_FILE, RewardName, data_file, make_reward
from posttrain.control.molecules.seh_proxy import SehProxy, atom_graphs

GOLDEN_FILE = "seh_golden_950.jsonl"


def need(name: str) -> Path:
    try:
        return data_file(name, None)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_proxy_gives_the_950_published_rewards() -> None:
    blocks, proxy = read_blocks(need(BLOCKS_FILE)), SehProxy.read(need(PROXY_FILE))
    rows = [json.loads(line) for line in need(GOLDEN_FILE).read_text().splitlines()]
    mols = []
    for row in rows:
        fragments = tuple(blocks.blocks[index].fragment for index in row["blockidxs"])
        stems = tuple(tuple(sorted(atom for at, atom in row["stems"] if at == node)) for node in range(len(fragments)))
        bonds = tuple(Bond(a, at_a, b, at_b) for a, b, at_a, at_b in row["jbonds"])
        mols.append(assemble(blocks, Molecule(fragments, stems, bonds)))
    with torch.no_grad():
        score = torch.cat([proxy(atom_graphs(mols[start : start + 50])) for start in range(0, 950, 50)]).double()
    reward = (score.clamp(min=0.1) / 8) ** 10
    published = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    # Float32 on both sides: a relative 3e-6 of a score is ten times that of a reward.
    torch.testing.assert_close(reward, published, rtol=5e-5, atol=2e-6)
    assert ((reward - published).abs() / published).max() < 5e-5


def test_score_of_a_molecule_does_not_depend_on_the_others_in_its_batch() -> None:
    torch.manual_seed(0)
    proxy = SehProxy().double()
    mols = [(Chem.MolFromSmiles(smiles), ()) for smiles in ("CC(=O)Oc1ccccc1", "F", "C#N", "c1ccncc1")]

    def score(which: list) -> torch.Tensor:
        graphs = atom_graphs(which)
        return proxy(type(graphs)(graphs.features.double(), *(getattr(graphs, n) for n in graphs.__slots__[1:])))

    torch.testing.assert_close(score(mols), torch.cat([score([mol]) for mol in mols]), rtol=1e-10, atol=1e-12)


def test_atoms_are_read_as_the_proxy_was_trained() -> None:
    graphs = atom_graphs([(Chem.MolFromSmiles("C#N"), (0,)), (Chem.MolFromSmiles("c1ccccc1"), ())])
    # H-C≡N: carbon is type 1, sp (10), one hydrogen (13), atomic number 6 (14 + 5), and has the stem (70).
    assert torch.nonzero(graphs.features[0]).flatten().tolist() == [1, 10, 13, 19, 70]
    assert torch.nonzero(graphs.features[1]).flatten().tolist() == [2, 10, 20]  # nitrogen, no hydrogen
    # Benzene has no stem: its first atom is marked. Aromatic (9), sp2 (11).
    assert torch.nonzero(graphs.features[2]).flatten().tolist() == [1, 9, 11, 13, 19, 70]
    assert torch.nonzero(graphs.features[3]).flatten().tolist() == [1, 9, 11, 13, 19]
    assert graphs.n_of_kind == (0, 0, 2, 12)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, p00=np.zeros((64, 70), dtype=np.float32))
    with pytest.raises(ValueError, match=r"p00 is \(64, 70\), needed \(64, 71\): is this the sEH proxy"):
        SehProxy.read(path)


def test_log_reward_has_the_floor_and_scale_of_its_name() -> None:
    reward = make_reward(RewardName.QED, None, exponent=4.0)
    assert reward.log_reward(0.5) == pytest.approx(4 * math.log(0.5))
    assert reward.log_reward(-3.0) == pytest.approx(4 * math.log(0.01))  # the floor
    # QED of aspirin is 0.550 (Bickerton et al. 2012, table of drugs, as RDKit computes it).
    assert reward.score([(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"), ())]) == pytest.approx([0.55], abs=0.005)
    with pytest.raises(ValueError, match="exponent is 0"):
        make_reward(RewardName.QED, None, exponent=0.0)


def test_missing_files_are_named_with_the_places_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=f"no {PROXY_FILE} in {tmp_path}: point POSTTRAIN_DATA"):
        make_reward(RewardName.SEH, tmp_path, exponent=10.0)
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    (tmp_path / "molecules").mkdir()
    (tmp_path / "molecules" / "one.txt").write_text("")
    assert data_file("one.txt", None) == tmp_path / "molecules" / "one.txt"
