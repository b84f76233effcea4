"""Token-level beam search on tables: against enumeration, and the identities D6 to D8 at a solved optimum."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from posttrain.search.token_beam import TokenBeamParams, token_beam_search
from posttrain.search.tree import NodeState, SearchTree
from tests.tree_mdp import BETA, DEPTH, EOS, N_ACTIONS, Tree, build_tree, solve

PROMPT = (7,)
WIDTHS = [1, 2, 3, 5]


class TableScorer:
    """A gain for every state and action of a tree, as if a network had said it."""

    def __init__(self, tree: Tree, gain: Tensor):
        self.child = tree.child
        self.gain = gain
        self.n_positions = 100

    def start(self, prompts):
        self.states = [0] * len(prompts)
        return self.gain[self.states]

    def extend(self, rows, token_ids):
        steps = zip(rows.tolist(), token_ids.tolist(), strict=True)
        self.states = [self.child[self.states[row]][token] for row, token in steps]
        return self.gain[self.states]


def search(tree: Tree, gain: Tensor, width: int, *, max_new_tokens: int = DEPTH) -> SearchTree:
    params = TokenBeamParams(width, max_new_tokens, batch_size=64)
    [found] = token_beam_search(TableScorer(tree, gain), [PROMPT], {EOS}, params)
    return found


def paths_by_depth(found: SearchTree, depth: int) -> dict[tuple[int, ...], float]:
    """Every path of this many tokens that the search kept, open or ended, with its score."""
    return {found.completion(node): node.score for node in found.nodes if node.depth == depth}


def walk(tree: Tree, path: tuple[int, ...]) -> list[tuple[int, int]]:
    """The state and the action of each token."""
    state, steps = 0, []
    for action in path:
        steps.append((state, action))
        state = tree.child[state][action]
    return steps


def summed(tree: Tree, gain: Tensor):
    """The score of a path as the sum of its gains."""
    return lambda path: sum(gain[step].item() for step in walk(tree, path))


def worth(tree: Tree, gain: Tensor, value: Tensor):
    """The score of a path as the sum of its gains and V of where it has got to, 0 after the end."""

    def score(path):
        state, action = walk(tree, path)[-1]
        after = tree.child[state][action]
        return summed(tree, gain)(path) + (0.0 if after is None else value[after].item())

    return score


def beams_by_enumeration(score, width: int) -> list[dict[tuple[int, ...], float]]:
    """The rules in the plainest form: what each round keeps, by a score of whole paths."""
    beam, answers, kept = [()], [], []
    for _ in range(DEPTH):
        ranked = sorted(((*path, action) for path in beam for action in range(N_ACTIONS)), key=lambda p: -score(p))
        ended = [path for path in ranked[:width] if path[-1] == EOS]
        beam = [path for path in ranked if path[-1] != EOS][:width]
        kept.append({path: score(path) for path in ended + beam})
        answers = sorted(answers + [score(path) for path in ended], reverse=True)[:width]
        if len(answers) == width and all(score(path) <= answers[-1] for path in beam):
            break
    return kept


def assert_same_beams(found: SearchTree, kept, *, scale: float, offset: float) -> None:
    assert max(node.depth for node in found.nodes) == len(kept)
    for depth, expected in enumerate(kept, start=1):
        own = paths_by_depth(found, depth)
        assert own.keys() == expected.keys()
        # 1e-12: float64 sums of at most ten numbers.
        assert {path: scale * v + offset for path, v in own.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_beams_are_those_of_enumeration_for_any_gains(seed, width):
    tree = build_tree(seed)
    gain = torch.randn(tree.ref_logp.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = search(tree, gain, width)
    assert_same_beams(found, beams_by_enumeration(summed(tree, gain), width), scale=1.0, offset=0.0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_d6_likelihood_search_of_the_optimum_is_search_by_penalised_reward_and_value(seed, width):
    # Σ β log π* = Σ (r + β log π_ref) + V(s) − V(s_0): the same beams at every depth, scores V(s_0) apart.
    tree = build_tree(seed, is_terminal_only=False)
    best = solve(tree)
    found = search(tree, best.logp, width)
    kept = beams_by_enumeration(worth(tree, tree.reward + BETA * tree.ref_logp, best.value), width)
    assert_same_beams(found, kept, scale=BETA, offset=best.value[0].item())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_d7_log_ratio_search_of_the_optimum_is_search_by_reward_and_value(seed, width):
    tree = build_tree(seed, is_terminal_only=False)
    best = solve(tree)
    found = search(tree, best.logp - tree.ref_logp, width)
    kept = beams_by_enumeration(worth(tree, tree.reward, best.value), width)
    assert_same_beams(found, kept, scale=BETA, offset=best.value[0].item())


@pytest.mark.parametrize("width", WIDTHS)
def test_d8_the_two_searches_keep_different_paths_and_choose_different_answers(width):
    n_beams, n_answers = 0, 0
    for seed in range(20):
        tree = build_tree(seed, is_terminal_only=False)
        best = solve(tree)
        likelihood, log_ratio = search(tree, best.logp, width), search(tree, best.logp - tree.ref_logp, width)
        kept = [
            [paths_by_depth(found, depth).keys() for depth in range(1, DEPTH + 1)] for found in (likelihood, log_ratio)
        ]
        n_beams += kept[0] != kept[1]
        n_answers += likelihood.completion(likelihood.best()) != log_ratio.completion(log_ratio.best())
    # The reference of these trees is far from uniform. A single open path has fewer chances to differ.
    assert n_beams >= (8 if width == 1 else 15)
    assert n_answers >= 5


def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_answers():
    for seed in range(20):
        tree = build_tree(seed)
        gain = solve(tree).logp - tree.ref_logp
        lengths = range(DEPTH)
        answers = [(*p, EOS) for n in lengths for p in itertools.product(range(EOS), repeat=n)]
        found = search(tree, gain, len(answers))
        assert found.completion(found.best()) == max(answers, key=summed(tree, gain))


def line(*gains: tuple[float, float, float]) -> tuple[Tree, Tensor]:
    """A tree whose gains depend on the depth alone: one triple for each token."""
    tree = build_tree(0)
    depth = [len(walk_to(tree, state)) for state in range(len(tree.child))]
    return tree, torch.tensor([gains[d] for d in depth], dtype=torch.float64)


def walk_to(tree: Tree, state: int) -> tuple[int, ...]:
    paths = {0: ()}
    for parent, row in enumerate(tree.child):
        paths.update({child: (*paths[parent], a) for a, child in enumerate(row) if child is not None})
    return paths[state]


def test_eos_is_scored_like_any_token_and_ends_a_path_only_among_the_best_of_its_round():
    # Width 1, EOS worth 0, 2, 0, 0 at depths 1 to 4 where going on is worth 1: EOS is second, then first.
    tree, gain = line((1.0, 0.5, 0.0), (1.0, 0.5, 2.0), (1.0, 0.5, 0.0), (1.0, 0.5, 0.0))
    found = search(tree, gain, 1)
    answers = [(found.completion(n), n.score) for n in found.nodes if n.state is NodeState.ANSWER]
    assert answers == [((0, EOS), 3.0)]


def test_a_search_ends_when_no_open_path_scores_above_its_answers_and_goes_on_while_one_does():
    tree, gain = line((1.0, 0.5, 1.5), (-2.0, -3.0, -9.0), (5.0, 5.0, 6.0), (0.0, 0.0, 0.0))
    found = search(tree, gain, 1)  # answer 1.5 beside the open 1.0: over, though 0, 0, EOS would have earned 5
    assert found.completion(found.best()) == (EOS,)
    assert found.n_generated_tokens == 2  # the answer and the open path that was given up
    found = search(tree, gain, 2)  # a second answer is needed, and an open path finds it
    answers = {found.completion(n): n.score for n in found.nodes if n.state is NodeState.ANSWER}
    assert answers == {(EOS,): 1.5, (0, 0, EOS): 5.0, (1, 0, EOS): 4.5}
    assert max(node.depth for node in found.nodes) == 3  # the best open path has 4.0


def test_a_path_out_of_budget_is_cut_and_chosen_only_where_nothing_ended():
    tree, gain = line((1.0, 0.5, -9.0), (1.0, 0.5, 0.9), (1.0, 0.5, -9.0), (0.0, 0.0, 0.0))
    cut = search(tree, gain, 1, max_new_tokens=3)
    assert (cut.best().state, cut.completion(cut.best())) == (NodeState.CUT, (0, 0, 0))
    both = search(tree, gain, 2, max_new_tokens=3)  # (0, EOS) earns 1.9, (0, 0, 0) has 3 and is incomplete
    assert (both.best().state, both.completion(both.best())) == (NodeState.ANSWER, (0, EOS))


def test_scores_are_sums_so_a_long_answer_of_higher_total_beats_a_short_one_of_higher_mean():
    # (EOS) has total and mean 2; (0, 0, EOS) has total 3 and mean 1.
    tree, gain = line((1.0, -5.0, 2.0), (1.0, -5.0, -5.0), (1.0, -5.0, 1.0), (0.0, 0.0, 0.0))
    found = search(tree, gain, 2)
    assert found.completion(found.best()) == (0, 0, EOS)


def test_ties_go_to_the_path_that_ranked_higher_and_then_to_the_smaller_token_id():
    tree = build_tree(0)
    found = search(tree, torch.zeros_like(tree.ref_logp), 2)
    # Round 1 ranks 0, 1, EOS; round 2 ranks 00, 01, 0-EOS, 10, ...: an ended path never gets among the best two.
    by_depth = [list(paths_by_depth(found, depth)) for depth in range(1, DEPTH + 1)]
    assert by_depth == [[(0,), (1,)], [(0, 0), (0, 1)], [(0, 0, 0), (0, 0, 1)], [(0, 0, 0, 0), (0, 0, 0, 1)]]
    assert found.completion(found.best()) == (0, 0, 0, 0)


def test_equal_scores_are_ranked_by_place_also_among_more_of_them_than_are_kept():
    class Flat:
        n_positions = 10

        def start(self, prompts):
            return torch.zeros(len(prompts), 5000)  # as many that torch.topk no longer takes the first ones

        def extend(self, rows, token_ids):
            return torch.zeros(len(rows), 5000)

    [found] = token_beam_search(Flat(), [PROMPT], {4999}, TokenBeamParams(4, 2, 8))
    assert [found.completion(n) for n in found.nodes if n.depth == 2] == [(0, token) for token in range(4)]


def test_prompts_searched_together_give_the_trees_of_prompts_searched_alone():
    class PromptDependent:
        """Three tables, chosen by the prompt's first token; the prompts end after different numbers of rounds."""

        n_positions = 100

        def __init__(self):
            self.trees = [build_tree(seed) for seed in range(3)]
            self.gains = [2 * tree.ref_logp for tree in self.trees]

        def start(self, prompts):
            self.rows = [(prompt[0], 0) for prompt in prompts]
            return self.read()

        def extend(self, rows, token_ids):
            steps = zip(rows.tolist(), token_ids.tolist(), strict=True)
            read = [(*self.rows[row], token) for row, token in steps]
            self.rows = [(which, self.trees[which].child[state][token]) for which, state, token in read]
            return self.read()

        def read(self):
            return torch.stack([self.gains[which][state] for which, state in self.rows])

    prompts = [(0, 0), (1,), (2, 0, 0), (0,), (1, 1)]
    params = TokenBeamParams(2, DEPTH, batch_size=6)  # three prompts at a time
    together = token_beam_search(PromptDependent(), prompts, {EOS}, params)
    alone = [token_beam_search(PromptDependent(), [prompt], {EOS}, params)[0] for prompt in prompts]
    assert [t.nodes for t in together] == [t.nodes for t in alone]
    assert [t.prompt for t in together] == prompts
    assert len({max(node.depth for node in t.nodes) for t in together}) > 1


def test_a_token_of_score_minus_infinity_is_never_taken():
    tree, gain = line((-torch.inf, -torch.inf, 0.0), *[(0.0, 0.0, 0.0)] * 3)
    found = search(tree, gain, 3)
    assert [found.completion(node) for node in found.nodes[1:]] == [(EOS,)]


def test_a_search_that_cannot_run_says_why():
    tree, gain = line(*[(0.0, 0.0, 0.0)] * 4)
    with pytest.raises(ValueError, match=r"width 0, max_new_tokens 4: each needs 1 or more"):
        TokenBeamParams(0, 4, 8)
    with pytest.raises(ValueError, match="batch_size is 4, needs room for one prompt's 5 paths"):
        TokenBeamParams(5, 4, 4)
    with pytest.raises(ValueError, match="a score is NaN"):
        search(tree, gain * torch.nan, 1)
    with pytest.raises(ValueError, match="prompt 0 has 100 tokens, the model 100 positions"):
        token_beam_search(TableScorer(tree, gain), [(7,) * 100], {EOS}, TokenBeamParams(1, 4, 8))
    with pytest.raises(ValueError, match="at least one token"):
        token_beam_search(TableScorer(tree, gain), [()], {EOS}, TokenBeamParams(1, 4, 8))
