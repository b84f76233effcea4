"""MARS, PPO and chance on molecules."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment
from posttrain.control.molecules.rewards import Reward
from posttrain.control.molecules.small_blocks import small_blocks
from posttrain.studies.molecules.baselines import RESTART, MarsLearner, MarsSettings, RandomLearner, random_molecule
from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.evaluations import Evaluations
from posttrain.studies.molecules.network import MoleculeNetwork
from posttrain.studies.molecules.ppo import PpoLearner, PpoSettings, advantages

ENVIRONMENT = MoleculeEnvironment(small_blocks(), max_blocks=4)


def ring_scores(mols) -> list[float]:
    """Aromatic atoms: a score that blocks can raise one at a time."""
    return [sum(atom.GetIsAromatic() for atom in mol.GetAtoms()) / 24 for mol, _ in mols]


def evaluations() -> Evaluations:
    return Evaluations(ENVIRONMENT.blocks, Reward(ring_scores, floor=0.05, scale=1.0, exponent=4.0), threshold=0.5)


def network() -> tuple[MoleculeNetwork, MoleculeEncoder]:
    torch.manual_seed(0)
    encoder = MoleculeEncoder(ENVIRONMENT)
    return MoleculeNetwork(encoder, width=16, n_rounds=2), encoder


def mars() -> MarsLearner:
    settings = MarsSettings(n_chains=8, n_updates=2, update_batch=16, n_kept=50, learning_rate=1e-2)
    return MarsLearner(*network(), evaluations(), settings, torch.Generator().manual_seed(0))


def ppo() -> PpoLearner:
    settings = PpoSettings(
        batch_size=16,
        n_epochs=4,
        clip=0.2,
        gae_decay=0.95,
        entropy=0.01,
        value=0.5,
        learning_rate=1e-2,
        max_grad_norm=10.0,
    )
    return PpoLearner(*network(), evaluations(), settings, torch.Generator().manual_seed(0))


def chance() -> RandomLearner:
    return RandomLearner(ENVIRONMENT, evaluations(), 8, torch.Generator().manual_seed(0))


def mean_log_reward(learner, n_steps: int) -> tuple[float, float]:
    """Of the first and of the last five of n steps."""
    seen = [float(learner.step(step)["log_reward"]) for step in range(n_steps)]
    return sum(seen[:5]) / 5, sum(seen[-5:]) / 5


@pytest.mark.parametrize(("make", "n_steps"), [(mars, 60), (ppo, 60)], ids=["mars", "ppo"])
def test_learner_raises_the_reward_of_what_it_makes(make, n_steps: int) -> None:
    first, last = mean_log_reward(make(), n_steps)
    # Four aromatic rings of six atoms have the highest score, 1, log R = 0; one ring has 0.25, log R = -5.5.
    assert first < -4.5
    assert last > -2.0


def test_chance_does_not_raise_the_reward() -> None:
    first, last = mean_log_reward(chance(), 60)
    assert abs(first - last) < 2.0


def test_random_molecules_have_every_size_and_end_early_only_without_stems() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [random_molecule(ENVIRONMENT, generator) for _ in range(200)]
    sizes = [len(molecule) for molecule in drawn]
    assert {2, 3, 4} == set(sizes)
    assert all(ENVIRONMENT.may_stop(molecule) for molecule in drawn)


def test_edits_of_mars_are_one_block_more_or_less() -> None:
    learner = mars()
    learner.step(0)
    before = list(learner.chains)
    edits = learner._propose()
    assert {edit.is_addition for edit in edits} == {True, False}
    for molecule, edit in zip(before, edits, strict=True):
        if edit.choice == RESTART:
            continue
        assert len(edit.result) == len(molecule) + (1 if edit.is_addition else -1)
        if edit.is_addition:
            again = ENVIRONMENT.step(molecule, Action(*divmod(edit.choice, len(ENVIRONMENT.blocks))))
        else:
            again = next(s.parent for s in ENVIRONMENT.steps_into(molecule) if s.removed == edit.choice)
        assert edit.result == again


def test_chain_that_no_edit_changes_starts_anew() -> None:
    learner = mars()
    fluorine = [block.name for block in ENVIRONMENT.blocks.blocks].index("fluorine")
    stuck = ENVIRONMENT.step(ENVIRONMENT.step(EMPTY, Action(0, fluorine)), Action(0, fluorine))
    learner.chains, learner.log_rewards = [stuck] * 8, [-100.0] * 8
    learner.step(0)
    assert stuck not in learner.chains
    assert learner.improving == []  # a restart is no edit to imitate


def test_advantages_are_the_generalised_ones() -> None:
    value, result = torch.tensor([0.5, -1.0, 2.0]), torch.tensor(3.0)
    # By hand: deltas −1.5, 3, 1; with λ = 0.5: 1, 3 + 0.5, −1.5 + 0.5 · 3.5
    torch.testing.assert_close(advantages(value, result, 0.5), torch.tensor([0.25, 3.5, 1.0]))
    # λ = 1 is the result minus the value, λ = 0 the one-step difference.
    torch.testing.assert_close(advantages(value, result, 1.0), result - value)
    torch.testing.assert_close(advantages(value, result, 0.0), torch.tensor([-1.5, 3.0, 1.0]))


@pytest.mark.parametrize("make", [mars, ppo, chance], ids=["mars", "ppo", "random"])
def test_restored_learner_goes_on_bit_for_bit(make) -> None:
    through, first, second = make(), make(), make()
    for step in range(6):
        through.step(step)
    for step in range(3):
        first.step(step)
    second.load_state(first.state())
    for step in range(3, 6):
        second.step(step)
    assert through.evaluate() == second.evaluate()
    assert through.evaluations.best == second.evaluations.best
    assert torch.equal(through.generator.get_state(), second.generator.get_state())
