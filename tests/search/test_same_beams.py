"""All scorers choose the same beams in float32, and each reads what it says it reads."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain.models.actor_critic import ActorCritic
from posttrain.models.policy import load_policy
from posttrain.models.prefix_cache import PrefixCache
from posttrain.models.reference import ReferenceFrom
from posttrain.models.roles import HeadOnTrunk
from posttrain.models.value import ValueHead, load_value_model
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.cached_scorer import CachedScorer, SharedTrunkScorer
from posttrain.search.scorer import ReencodingScorer
from posttrain.search.tree import NodeState, SearchTree
from posttrain.training.network_files import save_network
from tests.models.tiny_models import FAMILIES, VOCAB, config_of, write_policy

NEWLINE = range(30, VOCAB)  # tokens that end a step, about a fifth of all
PARAMS = BeamParams(
    width=3,
    expansions=3,
    max_steps=6,
    sampling=SamplingParams(max_new_tokens=8, temperature=1.0, seed=1, stop=("\n",)),
)
PROMPTS = [(3, 4, 5, 6), (3, 4), (3, 4, 5, 9, 9, 9), (11,)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<bos>", "<eos>", *(f"t{i}" + "\n" * (i in NEWLINE) for i in range(3, VOCAB))]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<pad>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def networks(family: str, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A policy, and a value model that is a head on the same trunk."""
    torch.manual_seed(seed)
    config = config_of(family)
    policy = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.ndim == 2:
                weight.mul_(3.0)
    config.num_labels = 1
    value = AutoModelForSequenceClassification.from_config(config).eval()
    value.base_model.load_state_dict(policy.base_model.state_dict())
    value.score = ValueHead(0.2 * torch.randn(1, 32))
    return policy, value


def shape(tree: SearchTree) -> list[tuple]:
    return [(node.parent, node.token_ids, node.state, node.n_merged) for node in tree.nodes]


@pytest.mark.parametrize("max_tokens", [60, 10_000])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_scorer_leads_to_the_same_tree(family, seed, max_tokens, tokenizer):
    policy, value = networks(family, seed)
    shared = PrefixCache(policy.base_model, max_tokens=max_tokens)
    engines = [
        TransformersEngine(policy, tokenizer, batch_size=12, device="cpu", prefix_cache=c) for c in (None, shared)
    ]
    scorers = {
        "anew": (engines[0], ReencodingScorer(value, batch_size=8)),
        "remembered": (engines[0], CachedScorer(value, max_tokens=max_tokens, batch_size=8)),
        "shared trunk": (engines[1], SharedTrunkScorer(value, prefix_cache=shared, batch_size=8)),
    }
    trees = {name: beam_search(engine, scorer, PROMPTS, PARAMS) for name, (engine, scorer) in scorers.items()}
    states = {node.state for tree in trees["anew"] for node in tree.nodes}
    assert states == set(NodeState)  # steps, answers, prunings and cut ends all occur
    for name in ("remembered", "shared trunk"):
        for expected, found in zip(trees["anew"], trees[name], strict=True):
            assert shape(found) == shape(expected)
            values = [[node.value for node in tree.nodes[1:]] for tree in (found, expected)]
            # 2e-5 is what rounding does to such values (test_cached_scorer measures it), and four times that here
            torch.testing.assert_close(*map(torch.tensor, values), rtol=0, atol=8e-5)
            assert found.best().index == expected.best().index
    if max_tokens == 10_000:  # nothing made room, so the counts are those of plain sets
        scored = [tree.scored_prefix(node) for tree in trees["anew"] for node in tree.nodes[1:]]
        n_read = {name: scorer.n_tokens_read for name, (_, scorer) in scorers.items()}
        assert n_read["anew"] == sum(map(len, scored))
        assert n_read["remembered"] == len({row[:n] for row in scored for n in range(1, len(row) + 1)})
        assert n_read["shared trunk"] == len(set(scored) - set(PROMPTS))  # one token each; prompts the engine has read
        assert all(
            scorer.n_tokens_read + scorer.n_tokens_cached == n_read["anew"]
            for scorer in (scorers["remembered"][1], scorers["shared trunk"][1])
        )


def test_a_value_model_on_another_trunk_is_refused():
    policy, value = networks("llama", seed=0)
    shared = PrefixCache(policy.base_model, max_tokens=10)
    with torch.no_grad():
        value.base_model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    with pytest.raises(ValueError, match=r"not stand on the policy's trunk: layers.1.mlp.up_proj.weight differs"):
        SharedTrunkScorer(value, prefix_cache=shared, batch_size=8)
    with pytest.raises(ValueError, match=r"not stand on the policy's trunk: embed_tokens.weight differs"):
        SharedTrunkScorer(networks("llama", seed=0)[1].double(), prefix_cache=shared, batch_size=8)


def test_a_value_model_saved_from_a_head_on_the_policys_trunk_is_served_by_it(tmp_path):
    folder = write_policy(tmp_path / "policy", "qwen2")
    policy = load_policy(folder, dtype=torch.float32)
    trained = ActorCritic(
        policy,
        HeadOnTrunk(policy, gradient_scale=0.0),
        None,
        chunk_size=4,
        reference_from=ReferenceFrom.CACHED_LOG_PROBS,
    )
    torch.nn.init.normal_(trained.value.score.weight, generator=torch.Generator().manual_seed(5))
    save_network(tmp_path / "value", trained, trained.state_dict(), name="value")
    value = load_value_model(tmp_path / "value", dtype=torch.float32)
    shared = PrefixCache(load_policy(folder, dtype=torch.float32).base_model, max_tokens=100)
    rows = [(3, 4, 5), (3, 4, 6, 7)]
    found = SharedTrunkScorer(value, prefix_cache=shared, batch_size=2).score(rows)
    expected = ReencodingScorer(value, batch_size=2).score(rows)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
