"""The policy network over molecules: it sees what symmetries leave, and nothing else."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment
from posttrain.control.molecules.molecule import Bond, Molecule
from posttrain.control.molecules.small_blocks import small_blocks
from posttrain.studies.molecules.baselines import random_molecule
from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.network import MoleculeNetwork

ENVIRONMENT = MoleculeEnvironment(small_blocks())
NAMES = [block.name for block in ENVIRONMENT.blocks.blocks]
N_BLOCKS = len(NAMES)


@pytest.fixture
def encoder() -> MoleculeEncoder:
    return MoleculeEncoder(ENVIRONMENT)


@pytest.fixture
def network(encoder: MoleculeEncoder) -> MoleculeNetwork:
    torch.manual_seed(0)
    return MoleculeNetwork(encoder, width=16, n_rounds=3).double()


def built(*actions: tuple[int, str]) -> Molecule:
    molecule = EMPTY
    for site, name in actions:
        molecule = ENVIRONMENT.step(molecule, Action(site, NAMES.index(name)))
    return molecule


def test_sites_that_a_symmetry_exchanges_have_equal_logits_and_ortho_meta_para_differ(
    encoder: MoleculeEncoder, network: MoleculeNetwork
) -> None:
    toluene = built((0, "benzene"), (0, "methyl"))  # sites: atoms 1 to 5 of the ring
    logits = network(encoder.encode([toluene])).logits[0, :-1].view(5, N_BLOCKS)
    torch.testing.assert_close(logits[0], logits[4], rtol=1e-12, atol=1e-12)  # ortho
    torch.testing.assert_close(logits[1], logits[3], rtol=1e-12, atol=1e-12)  # meta
    ortho, meta, para = logits[0], logits[1], logits[2]
    assert min((ortho - meta).abs().max(), (meta - para).abs().max(), (ortho - para).abs().max()) > 1e-3


def test_logits_do_not_depend_on_the_numbers_of_nodes_nor_on_the_rest_of_the_batch(
    encoder: MoleculeEncoder, network: MoleculeNetwork
) -> None:
    generator = torch.Generator().manual_seed(0)
    molecules = [random_molecule(ENVIRONMENT, generator) for _ in range(12)]
    together = network(encoder.encode([EMPTY, *molecules]))
    for row, molecule in enumerate(molecules, start=1):
        order = list(reversed(range(len(molecule))))
        renumbered = Molecule(
            tuple(molecule.fragments[node] for node in order),
            tuple(molecule.stems[node] for node in order),
            tuple(Bond(order[b.node], b.atom, order[b.other], b.other_atom) for b in molecule.bonds),
        )
        alone = network(encoder.encode([renumbered]))
        expected = {site: i for i, site in enumerate(molecule.sites())} if ENVIRONMENT.n_actions(molecule) else {}
        for place, site in enumerate(renumbered.sites() if expected else ()):
            column = expected[(order[site.node], site.atom)] * N_BLOCKS
            torch.testing.assert_close(
                alone.logits[0, place * N_BLOCKS : (place + 1) * N_BLOCKS],
                together.logits[row, column : column + N_BLOCKS],
            )
        torch.testing.assert_close(alone.logits[0, -1], together.logits[row, -1])
        torch.testing.assert_close(alone.value[0], together.value[row])


def test_finite_logits_are_the_legal_actions(encoder: MoleculeEncoder, network: MoleculeNetwork) -> None:
    full = EMPTY
    for _ in range(8):
        full = ENVIRONMENT.step(full, Action(0, NAMES.index("ethylene")))
    molecules = [EMPTY, built((0, "fluorine")), built((0, "fluorine"), (0, "chlorine")), full, full]
    is_finite = network(encoder.encode(molecules)).logits.isfinite()
    assert is_finite.sum(-1).tolist() == [N_BLOCKS, N_BLOCKS, 1, 1, 1]  # FCl has no stem, the chain is full
    assert is_finite[:, -1].tolist() == [False, False, True, True, True]


def test_distant_blocks_are_heard_after_as_many_rounds_as_bonds_lie_between(encoder: MoleculeEncoder) -> None:
    # The far end of a chain of four blocks differs; its first block's site hears it through three bonds.
    chains = [built((0, "amine"), (0, "ethylene"), (1, "ethylene"), (1, end)) for end in ("fluorine", "chlorine")]
    assert chains[0].sites()[0].node == 0
    for n_rounds, hears in ((2, False), (3, True)):
        torch.manual_seed(0)
        network = MoleculeNetwork(encoder, width=16, n_rounds=n_rounds).double()
        into_first = []
        for batch in (encoder.encode([chain]) for chain in chains):
            messages = network._messages(batch, network.fragment(batch.node_fragment))
            into_first.append(messages[batch.bond_target == 0])
        assert bool((into_first[0] - into_first[1]).abs().max() > 1e-9) is hears
