"""Both sides of benchmarks/ddpg do the same work: from the same weights and rows they reach the same weights."""

import pytest
import torch

pytest.importorskip("stable_baselines3", reason="the peer of benchmarks/ddpg")
from benchmarks.ddpg.peers import Case, copy_weights, our_learner, sb3_model


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_update_reaches_the_weights_of_stable_baselines3(algorithm: str, monkeypatch):
    case = Case(algorithm, 16, 32)
    model, learner = sb3_model(case, seed=0), our_learner(case, seed=0)
    if algorithm == "td3":  # the two draw their target noise from different streams
        model.target_policy_noise = 0.0
        object.__setattr__(learner.agent.more, "target_noise", 0.0)
    model.learn(1000)  # random actions alone: no update yet
    copy_weights(model, learner)
    for seed in range(4):
        place = torch.randint(1000, (32,), generator=torch.Generator().manual_seed(seed)).numpy()
        rows = model.replay_buffer._get_samples(place)
        monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, rows=rows, **__: rows)
        model.train(gradient_steps=1, batch_size=32)
        batch = {
            "observation": rows.observations,
            "action": rows.actions,
            "reward": rows.rewards.squeeze(-1),
            "next_observation": rows.next_observations,
            "is_terminal": rows.dones.squeeze(-1) > 0,
        }
        learner.agent.update(batch, learner.generator)
    agent = learner.agent
    pairs = [
        (model.actor.mu, agent.actor.network),
        (model.actor_target.mu, agent.actor.slow),
        *zip(model.critic.q_networks, agent.critics.network.each, strict=True),
        *zip(model.critic_target.q_networks, agent.critics.slow.each, strict=True),
    ]
    for a, b in (
        (a, b) for theirs, ours in pairs for a, b in zip(theirs.parameters(), ours.parameters(), strict=True)
    ):
        # Adam divides by the gradient's own size, so that float32 rounding of 1e-7 can grow to 1e-4 of a step of 1e-3.
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
