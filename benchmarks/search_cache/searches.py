"""Whole step-level searches of one shape that differ in what policy and value model remember, and their scoring alone.

Every one starts with nothing remembered, draws from the same random streams and ranks by the same V, so that all grow
the same trees.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.measure import Step
from benchmarks.networks import smollm2_proportions
from posttrain.models.prefix_cache import PrefixCache
from posttrain.models.value import ValueHead
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.cached_scorer import CachedScorer, SharedTrunkScorer
from posttrain.search.scorer import ReencodingScorer, ValueScorer
from posttrain.search.tree import SearchTree

N_PROMPT, N_STEPS, N_STEP_TOKENS = 120, 8, 25  # of GSM8K: tokens of a prompt, steps, mean tokens of a step
WIDTH = EXPANSIONS = 4
MAX_STEP_TOKENS = 3 * N_STEP_TOKENS
MAX_TOKENS = 32_768  # remembered: more than a search reads, so that nothing makes room
BATCH = 16  # sequences scored at a time
SAMPLING = SamplingParams(max_new_tokens=MAX_STEP_TOKENS, temperature=1.0, seed=0, stop=("\n",))
PARAMS = BeamParams(width=WIDTH, expansions=EXPANSIONS, max_steps=N_STEPS, sampling=SAMPLING)


@dataclass(frozen=True, slots=True)
class Case:
    """Policy and value model of SmolLM2's proportions, see benchmarks/packing; problems that are searched together."""

    n_vocabulary: int
    width: int  # a multiple of 192
    n_layers: int
    n_problems: int


@dataclass(frozen=True, slots=True)
class Networks:
    policy: PreTrainedModel
    value: PreTrainedModel  # a copy of the policy's trunk under a head: all scorers give the same V
    tokenizer: PreTrainedTokenizerFast
    prompts: list[tuple[int, ...]]


class _Recorded:
    """A scorer that notes what it is asked."""

    def __init__(self, scorer: ValueScorer) -> None:
        self.scorer = scorer
        self.calls: list[tuple[str, Sequence[Sequence[int]]]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        self.calls.append(("score", sequences))
        return self.scorer.score(sequences)

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        self.calls.append(("forget", sequences))


def search(name: str, networks: Networks) -> Step:
    """A search of all problems; returns the tokens that were read and a checksum of the trees."""

    def step() -> dict[str, float]:
        engine, scorer = _engine_and_scorer(name, networks)
        trees = beam_search(engine, scorer, networks.prompts, PARAMS)
        if engine.prefix_cache is None:
            n_prefilled = sum(_prefilled(tree) for tree in trees)
        else:
            is_shared = isinstance(scorer, SharedTrunkScorer)
            n_prefilled = engine.prefix_cache.n_tokens_read - (scorer.n_tokens_read if is_shared else 0)
        return {
            "n_value_tokens": scorer.n_tokens_read,
            "n_prefilled_tokens": n_prefilled,
            "n_generated_tokens": sum(tree.n_generated_tokens for tree in trees),
            "trees": _checksum(trees),
        }

    return step


def scoring(name: str, networks: Networks) -> Step:
    """What a search asks of its scorer, asked again without the policy."""
    recorded = _Recorded(CachedScorer(networks.value, max_tokens=MAX_TOKENS, batch_size=BATCH))
    beam_search(_engine(networks, None), recorded, networks.prompts, PARAMS)

    def step() -> dict[str, float]:
        scorer = _scorer(name, networks)
        values: list[float] = []
        for kind, sequences in recorded.calls:
            if kind == "score":
                values += scorer.score(sequences)
            else:
                scorer.forget(sequences)
        return {"n_value_tokens": scorer.n_tokens_read, "mean_value": sum(values) / len(values)}

    return step


def make_networks(case: Case) -> Networks:
    torch.manual_seed(0)
    config = smollm2_proportions(n_vocabulary=case.n_vocabulary, width=case.width, n_layers=case.n_layers)
    policy = LlamaForCausalLM(config).eval()
    value = LlamaForSequenceClassification(config).eval()
    value.base_model.load_state_dict(policy.base_model.state_dict())
    value.score = ValueHead(0.02 * torch.randn(1, case.width))
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, case.n_vocabulary) for _ in range(N_PROMPT)) for _ in range(case.n_problems)]
    return Networks(policy, value, make_tokenizer(case.n_vocabulary), prompts)


def make_tokenizer(n_vocabulary: int) -> PreTrainedTokenizerFast:
    """One token in N_STEP_TOKENS ends a step: a policy of random weights, nearly uniform, takes as many on average."""
    pieces = {f"t{i}" + "\n" * (i % N_STEP_TOKENS == 0): i for i in range(n_vocabulary)}
    core = Tokenizer(models.WordLevel(pieces, unk_token="t1"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _engine_and_scorer(name: str, networks: Networks) -> tuple[TransformersEngine, ValueScorer]:
    match name:
        case "re-encoded" | "value cache":
            return _engine(networks, None), _scorer(name, networks)
        case "value and policy cache":
            cache = PrefixCache(networks.policy.base_model, max_tokens=MAX_TOKENS)
            return _engine(networks, cache), _scorer("value cache", networks)
        case "shared trunk":
            cache = PrefixCache(networks.policy.base_model, max_tokens=MAX_TOKENS)
            return _engine(networks, cache), SharedTrunkScorer(networks.value, prefix_cache=cache, batch_size=BATCH)
    raise ValueError(f"no search {name!r}")


def _scorer(name: str, networks: Networks) -> ReencodingScorer | CachedScorer:
    if name == "re-encoded":
        return ReencodingScorer(networks.value, batch_size=BATCH)
    return CachedScorer(networks.value, max_tokens=MAX_TOKENS, batch_size=BATCH)


def _engine(networks: Networks, cache: PrefixCache | None) -> TransformersEngine:
    n_rows = len(networks.prompts) * WIDTH * EXPANSIONS
    return TransformersEngine(networks.policy, networks.tokenizer, batch_size=n_rows, device="cpu", prefix_cache=cache)


def _prefilled(tree: SearchTree) -> int:
    """Tokens of the prefixes that were expanded, each read from its first token."""
    parents = {node.parent for node in tree.nodes if node.parent is not None}
    return sum(len(tree.prompt) + len(tree.completion(tree.nodes[parent])) for parent in parents)


def _checksum(trees: Sequence[SearchTree]) -> int:
    told = [[(node.parent, node.token_ids, node.state.value) for node in tree.nodes] for tree in trees]
    return zlib.crc32(repr(told).encode())
