"""Small decision problems with known soft optima, enumerated path by path, and tables to fit to them.

Tree      vocabulary 3 with EOS last, depth 4: 15 states, 31 trajectories.  States are prefixes without EOS.
TwoTurns  an action, a random observation that the policy did not choose, a second action: 7 states, 18 trajectories.

All in float64.  "Tables" are logits [S, A] and values [S], the freest policy and value there can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.losses import Term, total
from posttrain.schema import PathScores, TokenValues
from tests.reference import Rows

BETA = 0.5
N_ACTIONS = 3
EOS = N_ACTIONS - 1
DEPTH = 4


@dataclass(frozen=True)
class Paths:
    """Every trajectory of a problem, right-padded."""

    state: Tensor  # [N, T] int64, row of the tables; 0 on padding and observations
    action: Tensor  # [N, T] int64
    is_action: Tensor  # [N, T] bool
    reward: Tensor  # [N, T]


@dataclass(frozen=True)
class Solution:
    """The soft optimum: q(s,a) = r + V(s'), V(s) = β log Σ_a π_ref e^{q/β}, log π = log π_ref + (q − V)/β."""

    q: Tensor  # [S, A]
    value: Tensor  # [S]
    logp: Tensor  # [S, A]


@dataclass(frozen=True)
class Tree:
    ref_logp: Tensor  # [S, A]
    reward: Tensor  # [S, A]
    child: tuple[tuple[int | None, ...], ...]  # state after an action, None when the trajectory ends
    paths: Paths


def build_tree(seed: int, *, is_terminal_only: bool = True) -> Tree:
    """Random reference and continuous random rewards; on every action unless `is_terminal_only`."""
    generator = torch.Generator().manual_seed(seed)
    prefixes: list[tuple[int, ...]] = [()]
    for prefix in prefixes:  # grows while it is walked: breadth first
        if len(prefix) < DEPTH - 1:
            prefixes.extend((*prefix, action) for action in range(EOS))
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    child = tuple(tuple(index.get((*prefix, action)) for action in range(N_ACTIONS)) for prefix in prefixes)
    ref_logp = torch.randn(len(prefixes), N_ACTIONS, dtype=torch.float64, generator=generator).log_softmax(-1)
    reward = torch.randn(len(prefixes), N_ACTIONS, dtype=torch.float64, generator=generator)
    if is_terminal_only:
        is_last = torch.tensor([[following is None for following in row] for row in child])
        reward = torch.where(is_last, reward, 0.0)
    return Tree(ref_logp, reward, child, _paths(_walk(child, 0), reward))


def _walk(child: tuple[tuple[int | None, ...], ...], state: int) -> list[list[tuple[int, int]]]:
    walks: list[list[tuple[int, int]]] = []
    for action, following in enumerate(child[state]):
        rests = [[]] if following is None else _walk(child, following)
        walks.extend([(state, action), *rest] for rest in rests)
    return walks


def _paths(walks: list[list[tuple[int, int]]], reward: Tensor) -> Paths:
    shape = (len(walks), DEPTH)
    state, action = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    is_action = torch.zeros(shape, dtype=torch.bool)
    for n, walk in enumerate(walks):
        for t, (s, a) in enumerate(walk):
            state[n, t], action[n, t], is_action[n, t] = s, a, True
    return Paths(state, action, is_action, torch.where(is_action, reward[state, action], 0.0))


def solve(tree: Tree, *, beta: float = BETA) -> Solution:
    """Backward recursion; children have larger indices than their parents."""
    q, value = tree.reward.clone(), torch.zeros(len(tree.child), dtype=torch.float64)
    for s in reversed(range(len(tree.child))):
        for a, following in enumerate(tree.child[s]):
            if following is not None:
                q[s, a] += value[following]
        value[s] = beta * torch.logsumexp(tree.ref_logp[s] + q[s] / beta, -1)
    return Solution(q, value, tree.ref_logp + (q - value[:, None]) / beta)


@dataclass(frozen=True)
class TwoTurns:
    ref_logp: Tensor  # [7, A]: state 0 starts, state 1 + 2a + o follows action a and observation o
    p_observation: Tensor  # [A, 2]
    paths: Paths  # positions: first action, observation, second action
    weight: Tensor  # [18] probability under a behaviour policy that is not the optimum


def build_two_turns(seed: int) -> TwoTurns:
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    ref_logp, p_observation = table(7, N_ACTIONS).log_softmax(-1), table(N_ACTIONS, 2).softmax(-1)
    behavior, outcome = (table(7, N_ACTIONS) / 2).softmax(-1), table(7, N_ACTIONS)
    rows = [(a, o, b) for a in range(N_ACTIONS) for o in range(2) for b in range(N_ACTIONS)]
    state = torch.tensor([[0, 0, 1 + 2 * a + o] for a, o, _ in rows])
    action = torch.tensor([[a, 0, b] for a, _, b in rows])
    is_action = torch.tensor([[True, False, True]]).expand(len(rows), 3)
    reward = torch.zeros(len(rows), 3, dtype=torch.float64)
    reward[:, 2] = outcome[state[:, 2], action[:, 2]]
    weight = torch.stack([behavior[0, a] * p_observation[a, o] * behavior[1 + 2 * a + o, b] for a, o, b in rows])
    return TwoTurns(ref_logp, p_observation, Paths(state, action, is_action, reward), weight)


def solve_two_turns(problem: TwoTurns, *, beta: float = BETA) -> Solution:
    """As `solve`, with the expectation over observations: q(s0, a) = E_o V(a, o)."""
    q = torch.zeros(7, N_ACTIONS, dtype=torch.float64)
    q[problem.paths.state[:, 2], problem.paths.action[:, 2]] = problem.paths.reward[:, 2]
    value = beta * torch.logsumexp(problem.ref_logp + q / beta, -1)
    q[0] = (problem.p_observation * value[1:].reshape(N_ACTIONS, 2)).sum(-1)
    value[0] = beta * torch.logsumexp(problem.ref_logp[0] + q[0] / beta, -1)
    return Solution(q, value, problem.ref_logp + (q - value[:, None]) / beta)


def read_tables(paths: Paths, logp: Tensor, ref_logp: Tensor, value: Tensor) -> TokenValues:
    """What networks would say about the paths, if the tables were networks; `logp` [S, A] is normalised."""
    kl = (logp.exp() * (logp - ref_logp)).sum(-1)
    kl_forward = (ref_logp.exp() * (ref_logp - logp)).sum(-1)
    entropy = -(logp.exp() * logp).sum(-1).detach()
    return TokenValues(
        logp=logp[paths.state, paths.action],
        ref_logp=ref_logp[paths.state, paths.action],
        kl=kl[paths.state],
        entropy=entropy[paths.state],
        value=value[paths.state],
        reward=paths.reward,
        is_action=paths.is_action,
        is_state=paths.is_action,
        kl_forward=kl_forward[paths.state],
    )


def with_reward(tree: Tree, reward: Tensor) -> Tree:
    """The same tree with other rewards [S, A]."""
    along = torch.where(tree.paths.is_action, reward[tree.paths.state, tree.paths.action], 0.0)
    return replace(tree, reward=reward, paths=replace(tree.paths, reward=along))


def next_value(tree: Tree, value: Tensor) -> Tensor:
    """[S, A] V(s'), 0 where the action ends the trajectory."""
    return torch.tensor(
        [[0.0 if s is None else value[s].item() for s in row] for row in tree.child], dtype=torch.float64
    )


def read_scores(paths: Paths, logp: Tensor, ref_logp: Tensor) -> PathScores:
    """The log-probabilities of the paths alone."""
    return PathScores(logp[paths.state, paths.action], ref_logp[paths.state, paths.action], paths.is_action)


def rows_of(v: TokenValues) -> Rows:
    """The same numbers, cut off from torch, for the loops of tests.reference."""
    tensors = (v.logp, v.ref_logp, v.value, v.reward, v.is_action, v.is_state)
    return Rows(*(tensor.detach().numpy() for tensor in tensors))


def weighted_total(terms: tuple[Term, ...], weight: Tensor) -> Tensor:
    """The loss when row n makes up the share weight[n] of the data; its tokens are then as many."""
    weighted = [replace(term, value=weight[:, None] * term.value) for term in terms if term.coef]
    return total(weighted, {"sequence": 1, "token": 1})


def fit(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, value: Tensor, *, n_steps: int = 1600) -> None:
    """Minimise loss(logits, value) in place, by full-batch Adam with a cosine from 0.1 to 0."""
    parameters = [logits.requires_grad_(True), value.requires_grad_(True)]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / n_steps))
        optimizer.zero_grad()
        loss(logits, value).backward()
        optimizer.step()
    logits.requires_grad_(False), value.requires_grad_(False)


def random_tables(n_states: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_states, 3, dtype=torch.float64, generator=generator)
    return logits, torch.randn(n_states, dtype=torch.float64, generator=generator)


def random_weight(n_rows: int, seed: int) -> Tensor:
    """A behaviour with full support that is neither the optimum nor uniform: shares of 1/3 to 3 times the mean."""
    noise = torch.randn(n_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (noise / 2).softmax(-1)


def multi_turn_values(seed: int) -> TokenValues:
    """Four random rows of 12 positions with up to three policy spans, rewards inside, and steps that start in spans.

    logp and value are leaves.  Row 3 ends with padding; entries outside the masks hold numbers that must not matter.
    """
    generator = torch.Generator().manual_seed(seed)
    spans = (((1, 12),), ((0, 3), (5, 8), (10, 12)), ((2, 4), (7, 12)), ((3, 6), (7, 9)))
    starts = ((1, 4, 9), (0, 5, 6, 10), (2, 3, 7), (3, 7, 8))
    shape = (len(spans), 12)
    is_action, is_state = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for b in range(len(spans)):
        for start, end in spans[b]:
            is_action[b, start:end] = True
        is_state[b, list(starts[b])] = True

    def table() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return TokenValues(
        logp=(-table().abs()).requires_grad_(True),
        ref_logp=-table().abs(),
        kl=table().abs(),
        entropy=table().abs(),
        value=table().requires_grad_(True),
        reward=torch.where(is_action, table(), 0.0),
        is_action=is_action,
        is_state=is_state,
    )
