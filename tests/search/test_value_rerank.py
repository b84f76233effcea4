"""Value-guided re-ranking of tokens on real networks: against prefixes read one by one, and its telescoping sum."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from posttrain.models.value import ValueHead
from posttrain.search.token_beam import TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer
from posttrain.search.tree import NodeState
from posttrain.search.value_rerank import ValueRerankScorer

VOCAB, PAD, EOS = 12, 0, 1
PROMPTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11), (2, 2)]  # of different lengths: batches are padded
N_NEW = 8


def config(**more) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        **more,
    )


def networks(seed: int) -> tuple[LlamaForCausalLM, LlamaForSequenceClassification]:
    """float64, so that no two paths are as close as rounding."""
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(config()).double().eval()
    value_model = LlamaForSequenceClassification(config(num_labels=1)).double().eval()
    value_model.score = ValueHead(torch.randn(1, 32, dtype=torch.float64))
    return policy, value_model


@torch.no_grad()
def logp_after(policy, ids: tuple[int, ...]) -> torch.Tensor:
    return policy(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def value_of(value_model, ids: tuple[int, ...]) -> float:
    hidden = value_model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(hidden @ value_model.score.weight[0])


def path_score(networks, prompt, path, weight) -> float:
    """(1 − w) Σ log π + w (V(end) − V(start)), an answer read before its EOS."""
    policy, value_model = networks
    logp = sum(logp_after(policy, (*prompt, *path[:t]))[path[t]].item() for t in range(len(path)))
    end = path[:-1] if path[-1] == EOS else path
    gain = value_of(value_model, (*prompt, *end)) - value_of(value_model, prompt)
    return (1 - weight) * logp + weight * gain


def beams_by_enumeration(networks, prompt, *, width, top_k, weight):
    """What each round keeps: paths of the policy's top_k tokens, ranked by the score of the whole path."""
    beam, answers, kept = [()], [], []
    for _ in range(N_NEW):
        paths = [
            (*path, token)
            for path in beam
            for token in logp_after(networks[0], (*prompt, *path)).topk(top_k).indices.tolist()
        ]
        scored = sorted(((path_score(networks, prompt, path, weight), path) for path in paths), reverse=True)
        ended = [item for item in scored[:width] if item[1][-1] == EOS]
        opened = [item for item in scored if item[1][-1] != EOS][:width]
        kept.append({path: score for score, path in ended + opened})
        answers = sorted([*answers, *(score for score, _ in ended)], reverse=True)[:width]
        beam = [path for _, path in opened]
        if len(answers) == width and all(score <= answers[-1] for score, _ in opened):
            break
    return kept


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize(("width", "top_k"), [(1, 3), (2, 2), (3, 4), (2, VOCAB)])
def test_beams_are_those_of_enumeration_and_their_scores_telescope(width, top_k, weight):
    own = networks(0)
    scorer = ValueRerankScorer(*own, {EOS}, top_k=top_k, value_weight=weight)
    trees = token_beam_search(scorer, PROMPTS, {EOS}, TokenBeamParams(width, N_NEW, 16))
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        kept = beams_by_enumeration(own, prompt, width=width, top_k=top_k, weight=weight)
        found = [
            {tree.completion(node): node.score for node in tree.nodes if node.depth == depth}
            for depth in range(1, max(node.depth for node in tree.nodes) + 1)
        ]
        assert len(found) == len(kept)
        for one, other in zip(found, kept, strict=True):
            assert one == pytest.approx(other, abs=1e-9)  # padded batches with a cache against single prefixes


def test_without_the_value_it_is_likelihood_search_and_the_value_changes_the_answers():
    own = networks(1)
    params = TokenBeamParams(2, N_NEW, 16)

    def answers(scorer):
        return [tree.completion(tree.best()) for tree in token_beam_search(scorer, PROMPTS, {EOS}, params)]

    likelihood = answers(LikelihoodScorer(own[0]))
    assert answers(ValueRerankScorer(*own, {EOS}, top_k=VOCAB, value_weight=0.0)) == likelihood
    assert answers(ValueRerankScorer(*own, {EOS}, top_k=VOCAB, value_weight=0.9)) != likelihood


def test_a_token_that_the_policy_rules_out_is_never_taken_whatever_its_value():
    policy, value_model = networks(2)
    bias = torch.zeros(VOCAB, dtype=torch.float64)
    bias[5:] = -torch.inf
    head = torch.nn.Linear(32, VOCAB, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(policy.lm_head.weight)
        head.bias.copy_(bias)
    policy.lm_head = head
    scorer = ValueRerankScorer(policy, value_model, {EOS}, top_k=VOCAB, value_weight=1.0)
    trees = token_beam_search(scorer, PROMPTS, {EOS}, TokenBeamParams(3, N_NEW, 16))
    assert max(node.token_ids[0] for tree in trees for node in tree.nodes[1:]) < 5
    assert any(node.state is NodeState.ANSWER for tree in trees for node in tree.nodes)


def test_min_probability_keeps_the_search_to_tokens_that_the_policy_would_take():
    policy, value_model = networks(0)

    def smallest(min_probability):
        scorer = ValueRerankScorer(
            policy, value_model, {EOS}, top_k=VOCAB, value_weight=1.0, min_probability=min_probability
        )
        trees = token_beam_search(scorer, PROMPTS, {EOS}, TokenBeamParams(2, 4, 16))
        return min(
            logp_after(policy, tree.prompt + tree.completion(node)[:-1])[node.token_ids[0]].exp().item()
            for tree in trees
            for node in tree.nodes[1:]
        )

    assert smallest(0.0) < 0.1 <= smallest(0.1)


def test_numbers_out_of_range_and_networks_of_two_vocabularies_are_refused():
    policy, value_model = networks(0)
    with pytest.raises(ValueError, match="top_k is 13, needs 1 up to"):
        ValueRerankScorer(policy, value_model, {EOS}, top_k=13, value_weight=0.5)
    with pytest.raises(ValueError, match=r"value_weight is 1\.5"):
        ValueRerankScorer(policy, value_model, {EOS}, top_k=2, value_weight=1.5)
    policy.resize_token_embeddings(VOCAB + 4)
    with pytest.raises(ValueError, match="policy has 16 tokens, value model 12"):
        ValueRerankScorer(policy, value_model, {EOS}, top_k=2, value_weight=0.5)
