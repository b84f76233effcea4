"""Credits of an answer against numbers computed the plain way, and the colourings made of them."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.data.encode import encode_trajectory
from posttrain.data.rows import parse_trajectory
from posttrain.evaluation.credit import AnswerCredits, Networks, Panel, TokenCredit, answer_credits, panels_of
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from tests.evaluation.tiny_policy import word_tokenizer, write_policy, write_value_model
from tests.models.tiny_models import write_policy as write_other_policy

# 2 +1 \n a 3 \n #### 3 <eos>: the policy chose "a 3" and "#### 3 <eos>"; the line break between came from elsewhere.
IDS = (6, 9, 2, 8, 7, 2, 3, 7, 1)
ACTIONS = (3, 4, 6, 7, 8)
ROW = {
    "task_id": "t",
    "prompt": "2 +1 \n",
    "input_ids": list(IDS),
    "action_spans": [[3, 5], [6, 9]],
    "reward": 1.0,
    "finish_reason": "stop",
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    reference = write_policy(folder / "reference", seed=0)
    policy = write_policy(folder / "policy", seed=1)
    value = write_value_model(folder / "value", policy)
    return Networks(
        load_policy(policy, dtype=torch.float32),
        load_policy(reference, dtype=torch.float32),
        load_value_model(value, dtype=torch.float32),
    )


def credits_of(networks: Networks, *, beta: float = 0.5, is_rewarded: bool = True) -> AnswerCredits:
    encoded = encode_trajectory(parse_trajectory(ROW, "f:1"), word_tokenizer(), 0, step_delimiters=())
    return answer_credits(encoded, networks, word_tokenizer(), beta=beta, where="f:1", is_rewarded=is_rewarded)


@torch.no_grad()
def plain_logp(model) -> list[float]:
    """log-probability of each action, from transformers' own logits."""
    logp = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    return [logp[index - 1, IDS[index]].item() for index in ACTIONS]


@torch.no_grad()
def plain_values(model) -> list[float]:
    """V before each action: the classifier's own output for the prefix, one prefix at a time."""
    return [model(torch.tensor([IDS[:index]])).logits.item() for index in ACTIONS]


def test_implicit_credit_is_beta_times_the_log_ratio_of_each_action_and_sums_to_the_implicit_return(networks):
    answer = credits_of(networks, beta=0.5)
    expected = [
        0.5 * (a - b) for a, b in zip(plain_logp(networks.policy), plain_logp(networks.reference), strict=True)
    ]
    assert [credit.index for credit in answer.credits] == list(ACTIONS)
    assert [credit.implicit for credit in answer.credits] == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 0.1  # the two policies differ, so this says something
    assert answer.implicit_return == pytest.approx(sum(expected), abs=1e-5)


def test_explicit_credit_steps_from_action_to_action_over_observations(networks):
    answer = credits_of(networks)
    v = plain_values(networks.value_model)
    # The reward 1 falls on the last action, after which V = 0; token 5 is no action, so V goes from token 4 to 6.
    expected = [v[1] - v[0], v[2] - v[1], v[3] - v[2], v[4] - v[3], 1.0 - v[4]]
    assert [credit.value for credit in answer.credits] == pytest.approx(v, abs=1e-5)
    assert [credit.explicit for credit in answer.credits] == pytest.approx(expected, abs=1e-5)
    assert answer.explicit_return() == pytest.approx(1.0 - v[0], abs=1e-5)


def test_all_credits_are_zero_when_policy_is_its_reference(networks):
    answer = credits_of(Networks(networks.policy, networks.policy, None))
    assert [credit.implicit for credit in answer.credits] == [0.0] * 5
    panel = panels_of([answer])[0]
    assert [panel.position(credit) for credit in answer.credits] == [0.0] * 5


def test_last_explicit_step_is_unknown_when_the_row_has_no_reward(networks):
    answer = credits_of(networks, is_rewarded=False)
    v = plain_values(networks.value_model)
    steps = [credit.explicit for credit in answer.credits]
    assert steps[:-1] == pytest.approx([v[1] - v[0], v[2] - v[1], v[3] - v[2], v[4] - v[3]], abs=1e-5)
    assert steps[-1] is None
    assert answer.explicit_return() is None
    assert answer.reward is None


def test_value_model_of_another_vocabulary_is_refused(networks, tmp_path):
    folder = write_value_model(tmp_path / "value", write_other_policy(tmp_path / "policy", "llama"))  # 37 tokens
    other = load_value_model(folder, dtype=torch.float32)
    with pytest.raises(ValueError, match="policy has 11 tokens, value model 37"):
        credits_of(Networks(networks.policy, networks.reference, other))


def answer_with(implicit: list[float]) -> AnswerCredits:
    credits = tuple(TokenCredit(i, -1.0, -1.0, x, None, None) for i, x in enumerate(implicit))
    return AnswerCredits("f:1", ("x",) * len(implicit), credits, 0.1, math.fsum(implicit), None)


def test_colours_reach_their_end_at_the_quantile_of_all_answers_and_are_neutral_at_zero():
    # 40 sizes 0.01 .. 0.40: the nearest rank of 0.95 is the 38th, 0.38.
    sizes = [i / 100 for i in range(1, 41)]
    panel, *others = panels_of([answer_with(sizes[:20]), answer_with([-x for x in sizes[20:]])])
    assert others == []
    assert panel.reach == 0.38
    positions = [panel.position(TokenCredit(0, 0.0, 0.0, x, None, None)) for x in (-0.4, -0.19, 0.0, 0.38)]
    assert positions == pytest.approx([-1.0, -0.5, 0.0, 1.0])


def test_position_is_unknown_where_the_number_is():
    panel = Panel("explicit advantage", lambda credit: credit.explicit, 0.0, 1.0)
    assert panel.position(TokenCredit(0, 0.0, 0.0, 0.5, 0.5, None)) is None
