"""The fragment environment: its steps, its symmetries, and what a zero-loss policy samples. Float64 throughout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.control.molecules.chemistry import assemble, smiles_of
from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment
from posttrain.control.molecules.molecule import Bond, Molecule
from posttrain.control.molecules.small_blocks import small_blocks
from posttrain.studies.molecules.baselines import random_molecule
from posttrain.studies.molecules.trajectories import draw_backward
from tests.control.molecule_oracle import MICRO_BLOCKS, States
from tests.control.molecule_symmetries import marked_smiles

MICRO = sorted(MICRO_BLOCKS)


def micro(name: str) -> States:
    return States(MoleculeEnvironment(MICRO_BLOCKS[name], max_blocks=3))


def rewards(states: States) -> np.ndarray:
    """[n] some positive rewards, all different, 0 where a molecule may not stop."""
    values = 1.0 + np.modf(np.arange(1, len(states.molecules) + 1) * (math.sqrt(5) - 1) / 2)[0]
    return np.where(states.is_terminal(), values, 0.0)


def backward_flows(states: States, reward: np.ndarray) -> np.ndarray:
    """F(x) = R(x) + Σ over children F(child) P_B, along the steps that the environment lists backward."""
    flow = reward.copy()
    for index in range(len(states.molecules) - 1, 0, -1):
        steps = states.environment.steps_into(states.molecules[index])
        for step in steps:
            flow[states.place[states.environment.code(step.parent)]] += flow[index] / len(steps)
    return flow


def random_molecules(n: int) -> tuple[MoleculeEnvironment, list[Molecule]]:
    environment = MoleculeEnvironment(small_blocks())
    generator = torch.Generator().manual_seed(0)
    return environment, [random_molecule(environment, generator) for _ in range(n)]


@pytest.mark.parametrize("name", MICRO)
def test_zero_loss_policy_samples_in_proportion_to_reward_when_symmetric_actions_are_counted(name: str) -> None:
    states = micro(name)
    reward = rewards(states)
    flow = backward_flows(states, reward)
    environment = states.environment

    def policy(molecule: Molecule) -> list[float]:
        # F(s) · count · π(a|s) = F(s') · P_B: a step's flow is shared by the actions that are one with it.
        at = states.place[environment.code(molecule)]
        p = []
        for action, child in zip(states.actions(molecule), states.children[at], strict=True):
            log_count, log_pb = environment.log_counts(molecule, action, environment.step(molecule, action))
            p.append(flow[child] * math.exp(log_pb - log_count) / flow[at])
        return [*p, reward[at] / flow[at]]

    totals = [sum(policy(molecule)) for molecule in states.molecules]
    np.testing.assert_allclose(totals, 1.0, rtol=1e-12)  # the counts are those of the drawn actions
    sampled = states.terminal_distribution(policy)
    np.testing.assert_allclose(sampled, reward / reward.sum(), rtol=1e-10, atol=1e-15)
    assert flow[0] == pytest.approx(reward.sum(), rel=1e-12)


@pytest.mark.parametrize("name", ["symmetric", "chains"])
def test_molecules_of_these_micro_environments_have_one_state_each_so_smiles_are_sampled_by_reward(name: str) -> None:
    states = micro(name)
    smiles = [one for one, is_terminal in zip(states.smiles(), states.is_terminal(), strict=True) if is_terminal]
    assert len(set(smiles)) == len(smiles)


def test_leaving_the_counts_out_biases_the_sample_by_the_symmetries_on_the_way() -> None:
    states = micro("symmetric")
    environment, reward = states.environment, rewards(states)
    n_removals = [max(1, len(environment.steps_into(molecule))) for molecule in states.molecules]
    # What trajectory balance converges to if each drawn action is a step of its own, P_B = 1 / removals.
    flow = reward.copy()
    for at in range(len(states.molecules) - 1, -1, -1):
        flow[at] += sum(flow[child] / n_removals[child] for child in states.children[at])

    def policy(molecule: Molecule) -> list[float]:
        at = states.place[environment.code(molecule)]
        return [*(flow[c] / n_removals[c] / flow[at] for c in states.children[at]), reward[at] / flow[at]]

    # w(x): the mean over backward paths of Π count / removal_count.
    weight = np.ones(len(states.molecules))
    for at, molecule in enumerate(states.molecules[1:], start=1):
        steps = environment.steps_into(molecule)
        parents = [states.place[environment.code(step.parent)] for step in steps]
        ratios = [step.count / step.removal_count for step in steps]
        weight[at] = np.mean([weight[p] * ratio for p, ratio in zip(parents, ratios, strict=True)])
    sampled = states.terminal_distribution(policy)
    np.testing.assert_allclose(sampled, reward * weight / (reward * weight).sum(), rtol=1e-10, atol=1e-15)
    # Fluorobenzene by hand: onto a bare ring at 6 sites, or a ring onto fluorine at 1; removals 1 and 1: (6 + 1) / 2.
    fluorobenzene = environment.step(environment.step(EMPTY, Action(0, 0)), Action(3, 2))
    assert weight[states.place[environment.code(fluorobenzene)]] == pytest.approx(3.5)
    assert 0.5 * np.abs(sampled - reward / reward.sum()).sum() > 0.2


@pytest.mark.parametrize("name", MICRO)
def test_number_of_drawn_paths_agrees_forward_and_backward(name: str) -> None:
    states = micro(name)
    forward = np.zeros(len(states.molecules))
    forward[0] = 1.0
    for at, children in enumerate(states.children):
        for child in children:
            forward[child] += forward[at]
    # A class of `count` actions is listed once for each of its `removal_count` removals.
    backward = np.zeros(len(states.molecules))
    backward[0] = 1.0
    for at, molecule in enumerate(states.molecules[1:], start=1):
        for step in states.environment.steps_into(molecule):
            parent = states.place[states.environment.code(step.parent)]
            backward[at] += backward[parent] * step.count / step.removal_count
    np.testing.assert_allclose(backward, forward, rtol=1e-12)


def test_every_parent_steps_to_its_child_and_removals_lead_to_the_empty_molecule() -> None:
    environment, molecules = random_molecules(100)
    generator = torch.Generator().manual_seed(1)
    for molecule in molecules:
        for step in environment.steps_into(molecule):
            assert environment.code(environment.step(step.parent, step.action)) == environment.code(molecule)
        trajectory = draw_backward(environment, molecule, generator)
        assert trajectory.states[0] == EMPTY
        assert [len(state) for state in trajectory.states] == list(range(len(molecule) + 1))


def test_step_forward_is_among_the_steps_into_its_child_with_the_same_counts() -> None:
    environment, molecules = random_molecules(60)
    n_blocks = len(environment.blocks)
    for index, molecule in enumerate(molecules):
        if environment.must_stop(molecule):
            continue
        action = Action(*divmod(97 * index % environment.n_actions(molecule), n_blocks))
        child = environment.step(molecule, action)
        steps = environment.steps_into(child)
        (found,) = [step for step in steps if step.removed == len(molecule) and step.action.block == action.block]
        log_count, log_pb = environment.log_counts(molecule, action, child)
        assert (math.exp(log_count), math.exp(log_pb)) == pytest.approx(
            (found.count, found.removal_count / len(steps))
        )
        assert found.parent == molecule


def test_sites_are_counted_alike_exactly_where_rdkit_writes_the_marked_molecules_alike() -> None:
    environment, molecules = random_molecules(60)
    n_above_one = 0
    for molecule in molecules:
        marked = [marked_smiles(environment.blocks, molecule, site) for site in molecule.sites()]
        assert environment.site_counts(molecule) == [marked.count(one) for one in marked]
        n_above_one += sum(marked.count(one) > 1 for one in marked)
    assert n_above_one > 50  # symmetric sites were among them


def test_molecule_has_one_code_whatever_the_order_of_its_nodes() -> None:
    environment, molecules = random_molecules(60)
    codes = {}
    for molecule in molecules:
        order = list(reversed(range(len(molecule))))
        renumbered = Molecule(
            tuple(molecule.fragments[node] for node in order),
            tuple(molecule.stems[node] for node in order),
            tuple(Bond(order[b.other], b.other_atom, order[b.node], b.atom) for b in molecule.bonds),
        )
        assert environment.code(renumbered) == environment.code(molecule)
        written = marked_smiles(environment.blocks, molecule, None)
        assert codes.setdefault(environment.code(molecule), written) == written
    assert len(set(codes.values())) == len(codes)


def test_stop_is_illegal_below_two_blocks_and_forced_at_eight_blocks_or_without_stems() -> None:
    environment = MoleculeEnvironment(small_blocks())
    names = [block.name for block in environment.blocks.blocks]
    fluorine, ethylene = (Action(0, names.index(name)) for name in ("fluorine", "ethylene"))
    alone = environment.step(EMPTY, fluorine)
    assert not environment.may_stop(EMPTY) and not environment.may_stop(alone)
    both = environment.step(alone, fluorine)  # F-F has no stem left
    assert environment.must_stop(both) and environment.may_stop(both) and environment.n_actions(both) == 0
    chain = EMPTY
    for size in range(8):
        assert not environment.must_stop(chain) and environment.may_stop(chain) == (size >= 2)
        chain = environment.step(chain, ethylene)
    assert environment.must_stop(chain) and any(chain.stems)


def test_assembly_takes_hydrogens_that_are_written_out_from_the_atoms_it_joins() -> None:
    environment = MoleculeEnvironment(small_blocks())
    names = [block.name for block in environment.blocks.blocks]
    sulfonyl, amine, benzene = (names.index(name) for name in ("sulfonyl", "amine", "benzene"))
    molecule = environment.step(EMPTY, Action(0, benzene))
    molecule = environment.step(molecule, Action(0, sulfonyl))
    sulfur = [place for place, site in enumerate(molecule.sites()) if site.node == 1]
    molecule = environment.step(molecule, Action(sulfur[0], amine))
    mol, stems = assemble(environment.blocks, molecule)
    assert smiles_of(mol) == "NS(=O)(=O)c1ccccc1"
    assert len(stems) == 6  # five carbons of the ring, and nitrogen, which takes two blocks and is named once


def test_environment_refuses_sizes_that_no_molecule_has() -> None:
    with pytest.raises(ValueError, match="min_blocks 3, max_blocks 2"):
        MoleculeEnvironment(small_blocks(), min_blocks=3, max_blocks=2)
