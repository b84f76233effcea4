"""A small language of running sums, a reference that learned it from a careless teacher, and DPO on its own answers.

    3 5 1 6 = w42 1 2 1 <eos>      each digit of the answer is the sum so far modulo 7: 3 + 5, that + 1, that + 6

An answer opens with any of 100 words, none better than another: a token that is rarer than a slip and yet no mistake.
Labels are by the final sum alone: nobody tells the policy which token of a wrong answer was wrong.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.losses import dpo, total
from posttrain.schema import EncodedTrajectory, PairValues, PathScores

MODULUS = 7
N_TERMS = 6
N_OPENINGS = 100  # each is taken with probability 0.01; a slip to one wrong digit has 0.15 / 6 = 0.025
N_ACTIONS = 1 + (N_TERMS - 1) + 1  # opening, sums, end
VOCABULARY = ("<pad>", "<eos>", "=", *"0123456", *(f"w{i}" for i in range(N_OPENINGS)))
EOS, EQUALS, ZERO, OPENING = 1, 2, 3, 10
SLIP_RATE = 0.15  # of the teacher, per sum; later sums go on from the slip


@dataclass(frozen=True)
class Answer:
    terms: tuple[int, ...]
    opening: int
    sums: tuple[int, ...]

    def is_right(self) -> bool:
        return self.sums[-1] == sum(self.terms) % MODULUS

    def ids(self) -> list[int]:
        return [*(ZERO + t for t in self.terms), EQUALS, OPENING + self.opening, *(ZERO + s for s in self.sums), EOS]

    def encoded(self) -> EncodedTrajectory:
        n = len(self.ids())
        is_action = tuple(i > N_TERMS for i in range(n))
        reward = (*(0.0,) * (n - 1), float(self.is_right()))
        return EncodedTrajectory(0, tuple(self.ids()), is_action, is_action, reward)


def solve(terms: tuple[int, ...], opening: int, slips: dict[int, int]) -> Answer:
    """The running sums, with `slips[k]` added at sum k and carried on."""
    sums, so_far = [], terms[0]
    for k, term in enumerate(terms[1:]):
        so_far = (so_far + term + slips.get(k, 0)) % MODULUS
        sums.append(so_far)
    return Answer(terms, opening, tuple(sums))


def random_terms(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(MODULUS) for _ in range(N_TERMS))


def careless(rng: random.Random) -> Answer:
    slips = {k: rng.randrange(1, MODULUS) for k in range(N_TERMS - 1) if rng.random() < SLIP_RATE}
    return solve(random_terms(rng), rng.randrange(N_OPENINGS), slips)


def train_reference(*, n_steps: int, seed: int) -> LlamaForCausalLM:
    """Supervised on the careless teacher."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, n_steps)
    for _ in range(n_steps):
        rows = torch.tensor([careless(rng).ids() for _ in range(128)])
        loss = -_logp(model, rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def sample(model: LlamaForCausalLM, terms: list[tuple[int, ...]], *, seed: int) -> list[Answer]:
    """One sampled answer per problem, kept to the form: an opening, then digits."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[*(ZERO + t for t in own), EQUALS] for own in terms])
    for start, end in ((OPENING, OPENING + N_OPENINGS), *[(ZERO, ZERO + MODULUS)] * (N_TERMS - 1)):
        p = model(ids).logits[:, -1, start:end].softmax(-1)
        ids = torch.cat((ids, start + torch.multinomial(p, 1, generator=generator)), dim=1)
    answers = ids[:, N_TERMS + 1 :].tolist()
    return [
        Answer(own, opening - OPENING, tuple(s - ZERO for s in sums))
        for own, (opening, *sums) in zip(terms, answers, strict=True)
    ]


def own_pairs(model: LlamaForCausalLM, *, n_problems: int, seed: int) -> list[tuple[Answer, Answer]]:
    """A right and a wrong answer of the model to each problem on which it gave both among eight."""
    rng = random.Random(seed)
    problems = [random_terms(rng) for _ in range(n_problems)]
    by_problem = zip(*(sample(model, problems, seed=seed + i) for i in range(8)), strict=True)
    pairs = []
    for answers in by_problem:
        right = [answer for answer in answers if answer.is_right()]
        wrong = [answer for answer in answers if not answer.is_right()]
        if right and wrong:
            pairs.append((right[0], wrong[0]))
    return pairs


def train_dpo(
    reference: LlamaForCausalLM, pairs: list[tuple[Answer, Answer]], *, n_steps: int, beta: float, seed: int
) -> LlamaForCausalLM:
    policy = copy.deepcopy(reference).requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4, weight_decay=0.0)
    rng = random.Random(seed)
    for _ in range(n_steps):
        chosen, rejected = zip(*rng.sample(pairs, 64), strict=True)
        values = PairValues(_scores(policy, reference, chosen), _scores(policy, reference, rejected))
        loss = total(dpo(values, beta=beta), {"pair": 64})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


def _scores(policy: LlamaForCausalLM, reference: LlamaForCausalLM, answers: tuple[Answer, ...]) -> PathScores:
    rows = torch.tensor([answer.ids() for answer in answers])
    with torch.no_grad():
        ref_logp = _logp(reference, rows)
    return PathScores(_logp(policy, rows), ref_logp, torch.ones(ref_logp.shape, dtype=torch.bool))


def _logp(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """[B, N_ACTIONS] log-probabilities of the answer's tokens."""
    logp = model(rows).logits[:, N_TERMS:-1].log_softmax(-1)
    return logp.gather(-1, rows[:, N_TERMS + 1 :, None]).squeeze(-1)
