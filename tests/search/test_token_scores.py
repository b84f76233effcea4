"""The two scores on real networks: against transformers' own beam search, and against prefixes read one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from posttrain.search.token_beam import TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer, LogRatioScorer
from posttrain.search.tree import NodeState

VOCAB, PAD, EOS = 12, 0, 1
PROMPTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11), (2, 2)]  # of different lengths: batches are padded
N_NEW = 12
WIDTHS = [1, 2, 3, 5]


def llama(seed: int) -> PreTrainedModel:
    """float64, so that no two paths are as close as rounding; EOS has about a tenth of the probability."""
    torch.manual_seed(seed)
    config = LlamaConfig(
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
    )
    return LlamaForCausalLM(config).double().eval()


def gpt2(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    ends = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS}
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, **ends
    )
    return GPT2LMHeadModel(config).double().eval()


@torch.no_grad()
def next_logp(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """log π after one unpadded prefix, read anew."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def path_score(prompt, answer, score_of) -> float:
    return sum(score_of((*prompt, *answer[:t]))[answer[t]].item() for t in range(len(answer)))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_likelihood_search_gives_the_answers_and_scores_of_generate_with_as_many_beams(make, width):
    n_compared = 0
    for seed in range(2):
        model = make(seed)
        params = TokenBeamParams(width, N_NEW, batch_size=16)
        trees = token_beam_search(LikelihoodScorer(model), PROMPTS, {EOS}, params)
        for prompt, tree in zip(PROMPTS, trees, strict=True):
            found = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                num_beams=width,
                do_sample=False,
                length_penalty=0.0,
                early_stopping=False,
                max_new_tokens=N_NEW,
                return_dict_in_generate=True,
                output_scores=True,
            )
            ids = found.sequences[0, len(prompt) :].tolist()
            if EOS not in ids:
                continue  # generate ranks paths that ran out of tokens among the answers; here they stand back
            best = tree.best()
            assert best.state is NodeState.ANSWER
            assert list(tree.completion(best)) == ids[: ids.index(EOS) + 1]
            assert best.score == pytest.approx(found.sequences_scores[0].item(), abs=1e-5)  # generate sums in float32
            n_compared += 1
    assert n_compared >= 4


def test_likelihood_search_of_width_one_is_greedy():
    model = llama(0)
    trees = token_beam_search(LikelihoodScorer(model), PROMPTS, {EOS}, TokenBeamParams(1, N_NEW, 16))
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        ids = prompt
        while len(ids) < len(prompt) + N_NEW and ids[-1] != EOS:
            ids = (*ids, int(next_logp(model, ids).argmax()))
        assert tree.completion(tree.best()) == ids[len(prompt) :]


@pytest.mark.parametrize("width", WIDTHS)
def test_log_ratio_beams_are_those_of_enumeration_over_prefixes_read_one_by_one(width):
    policy, reference = llama(0), llama(1)
    scorer = LogRatioScorer(policy, reference, min_probability=0.0)
    trees = token_beam_search(scorer, PROMPTS, {EOS}, TokenBeamParams(width, 4, 16))
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        beam, answers = [((), 0.0)], []
        for depth in range(1, 5):
            ranked = []
            for path, score in beam:
                ratio = next_logp(policy, (*prompt, *path)) - next_logp(reference, (*prompt, *path))
                ranked += [((*path, token), score + ratio[token].item()) for token in range(VOCAB)]
            ranked.sort(key=lambda item: -item[1])
            ended = [item for item in ranked[:width] if item[0][-1] == EOS]
            beam = [item for item in ranked if item[0][-1] != EOS][:width]
            own = {tree.completion(node): node.score for node in tree.nodes if node.depth == depth}
            # 1e-9: padded float64 batches with a cache against single prefixes without.
            assert own == pytest.approx(dict(ended + beam), abs=1e-9)
            answers = sorted([*answers, *(score for _, score in ended)], reverse=True)[:width]
            if len(answers) == width and all(score <= answers[-1] for _, score in beam):
                break


def test_scores_of_the_answers_are_the_sums_over_their_tokens_eos_included():
    policy, reference = llama(2), llama(3)
    likelihood = LikelihoodScorer(policy)
    log_ratio = LogRatioScorer(policy, reference, min_probability=0.0)
    scored = {
        likelihood: lambda ids: next_logp(policy, ids),
        log_ratio: lambda ids: next_logp(policy, ids) - next_logp(reference, ids),
    }
    for scorer, score_of in scored.items():
        trees = token_beam_search(scorer, PROMPTS, {EOS}, TokenBeamParams(3, N_NEW, 16))
        ended = [
            (tree.prompt, tree.completion(node), node.score)
            for tree in trees
            for node in tree.nodes
            if node.state is NodeState.ANSWER
        ]
        assert ended
        for prompt, answer, value in ended:
            assert answer[-1] == EOS
            assert value == pytest.approx(path_score(prompt, answer, score_of), abs=1e-9)


def test_min_probability_keeps_a_log_ratio_search_to_the_tokens_that_the_policy_would_take():
    policy, reference = llama(0), llama(1)
    free, held = (
        token_beam_search(
            LogRatioScorer(policy, reference, min_probability=p), PROMPTS, {EOS}, TokenBeamParams(2, 4, 16)
        )
        for p in (0.0, 0.1)
    )

    def smallest(trees):
        return min(
            next_logp(policy, tree.prompt + tree.completion(node)[:-1])[node.token_ids[0]].exp().item()
            for tree in trees
            for node in tree.nodes[1:]
        )

    assert smallest(free) < 0.1 <= smallest(held)


def test_a_token_that_one_network_rules_out_is_never_chosen():
    policy, reference = llama(0), llama(1)
    [free] = token_beam_search(
        LogRatioScorer(policy, reference, min_probability=0.0), [PROMPTS[0]], {EOS}, TokenBeamParams(1, 1, 4)
    )
    first = free.nodes[1].token_ids[0]
    with torch.no_grad():
        reference.lm_head = torch.nn.Linear(32, VOCAB, bias=True, dtype=torch.float64)
        reference.lm_head.bias[first] = -torch.inf  # the ratio of this token is +inf
    [found] = token_beam_search(
        LogRatioScorer(policy, reference, min_probability=0.0), [PROMPTS[0]], {EOS}, TokenBeamParams(VOCAB, 1, 16)
    )
    assert first not in {node.token_ids[0] for node in found.nodes[1:]}


def test_a_search_stops_at_the_last_position_of_the_network():
    model = llama(0)
    model.generation_config.eos_token_id = None
    [tree] = token_beam_search(LikelihoodScorer(model), [(3,) * 30], set(), TokenBeamParams(2, N_NEW, 4))
    assert {len(tree.completion(node)) for node in tree.nodes if node.state is NodeState.CUT} == {2}  # 32 positions


def test_a_reference_that_is_the_policy_or_of_another_vocabulary_is_refused():
    policy = llama(0)
    with pytest.raises(ValueError, match="policy and reference have equal weights: every log-ratio is 0"):
        LogRatioScorer(policy, copy.deepcopy(policy), min_probability=0.0)
    wide = llama(1)
    wide.resize_token_embeddings(VOCAB + 4)
    with pytest.raises(ValueError, match="policy has 12 tokens, reference 16"):
        LogRatioScorer(policy, wide, min_probability=0.0)
    with pytest.raises(ValueError, match=r"min_probability is 1\.0, needs 0"):
        LogRatioScorer(policy, llama(1), min_probability=1.0)
