"""A small reasoning task made of reasoning-gym's chain sums, with worked solutions that skip steps or do not.

A problem lists a start and n labelled operations; the answer is what remains of the total after division by DIVISOR.
A careful solution has a line for every operation: its label and the running total. A hurried one takes one, two or
three operations per line, as its author likes. A small model adds one number reliably, and two or three at once badly;
so each line is a choice between short and right, and a wrong total still gives the right remainder now and then.

    12 a +5 b -3 c +8 d -2          careful: a 17 / b 14 / c 22 / d 20 / #### 0          hurried: b 14 / d 20 / #### 0
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from posttrain.schema import Problem

DIVISOR = 4
TOP = 20  # running totals stay within 0..TOP, so that each is one token
LABELS = "abcdefghijklmnop"
N_OPERATIONS = 6
OPERATIONS_PER_LINE = {1: 0.2, 2: 0.3, 3: 0.5}  # how often a hurried line takes how many
SEED_STRIDE = 100_000_000  # seeds of reasoning-gym's entries that belong to one seed of ours


@dataclass(frozen=True, slots=True)
class ChainSum:
    """A start and the signed operations on it."""

    start: int
    operations: tuple[int, ...]

    def question(self) -> str:
        steps = (f"{label} {operation:+d}" for label, operation in zip(LABELS, self.operations, strict=False))
        return " ".join((str(self.start), *steps))

    def total(self) -> int:
        return self.start + sum(self.operations)


def chain_sums(n: int, *, n_operations: int, seed: int, but: Collection[ChainSum] = frozenset()) -> list[ChainSum]:
    """n different chain sums of one-digit numbers from reasoning-gym, none of `but`, totals within 0..TOP all the way.

    reasoning-gym's sums start with one digit; the start is moved by a random amount, as far as the totals allow.
    """
    if not 1 <= n_operations <= len(LABELS):
        raise ValueError(f"n_operations is {n_operations}, needs 1 to {len(LABELS)}: each operation has a letter")
    rng = random.Random(seed)
    found: dict[ChainSum, None] = {}
    for terms in _reasoning_gym_terms(n_operations + 1, seed):
        totals = [sum(terms[: i + 1]) for i in range(len(terms))]
        if max(totals) - min(totals) > TOP or 0 in terms[1:]:
            continue
        start = terms[0] + rng.randint(-min(totals), TOP - max(totals))
        problem = ChainSum(start, tuple(terms[1:]))
        if problem not in but:
            found[problem] = None
        if len(found) == n:
            return list(found)
    raise AssertionError("reasoning-gym's stream of chain sums has no end")


def _reasoning_gym_terms(n_terms: int, seed: int) -> Iterator[list[int]]:
    import reasoning_gym  # an extra, as every generated problem is

    block = 10_000
    for part in range(SEED_STRIDE // block):
        sums = reasoning_gym.create_dataset(
            "chain_sum",
            size=block,
            seed=seed * SEED_STRIDE + part * block,  # its entry i is a function of seed + i
            min_terms=n_terms,
            max_terms=n_terms,
            min_digits=1,
            max_digits=1,
        )
        for entry in sums:
            yield [int(term) for term in entry["metadata"]["expression"].replace("- ", "-").replace("+ ", "").split()]


def careful_solution(problem: ChainSum) -> str:
    """One line per operation."""
    return _solution(problem, [1] * len(problem.operations))


def hurried_solution(problem: ChainSum, *, rng: random.Random) -> str:
    """Lines of one to three operations, drawn by OPERATIONS_PER_LINE; the last line takes what is left."""
    sizes: list[int] = []
    while (n_left := len(problem.operations) - sum(sizes)) > 0:
        [size] = rng.choices(tuple(OPERATIONS_PER_LINE), tuple(OPERATIONS_PER_LINE.values()))
        sizes.append(min(size, n_left))
    return _solution(problem, sizes)


def _solution(problem: ChainSum, line_sizes: Sequence[int]) -> str:
    """The total after every line_sizes operations, and the answer; sizes sum to the number of operations."""
    totals = list(accumulate(problem.operations, initial=problem.start))
    lines = [f"{LABELS[done - 1]} {totals[done]} \n" for done in accumulate(line_sizes)]
    return " ".join((*lines, f"#### {problem.total() % DIVISOR}"))


def demonstrations(problems: Sequence[ChainSum], *, careful_share: float, seed: int) -> list[dict[str, str]]:
    """Each problem solved once, as TRL prompt/completion rows: carefully with probability `careful_share`, else in a
    hurry."""
    rng = random.Random(seed)
    return [
        {
            "prompt": _prompt(problem),
            "completion": careful_solution(problem)
            if rng.random() < careful_share
            else hurried_solution(problem, rng=rng),
        }
        for problem in problems
    ]


def graded_problems(problems: Sequence[ChainSum], *, split: str) -> list[Problem]:
    """The problems with their gold answers."""
    return [
        Problem(
            where=f"remainders/{split}:{number}",
            task_id=f"remainders/{split}/{number}",
            prompt=_prompt(problem),
            answer=str(problem.total() % DIVISOR),
            grader="final_number",
            entry=json.dumps({"start": problem.start, "operations": problem.operations}),
        )
        for number, problem in enumerate(problems, start=1)
    ]


def _prompt(problem: ChainSum) -> str:
    return f"{problem.question()} \n"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per number, signed operation, letter, line break and answer mark."""
    words = [
        *("<pad>", "<eos>", "\n", "####"),
        *(f"{n:+d}" for n in range(-9, 10) if n),
        *(str(n) for n in range(TOP + 1)),
        *LABELS,
    ]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(" "), behavior="removed")
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")


def small_llama(vocab: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama of 0.25 M parameters: 3 layers of width 96."""
    return LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=vocab.pad_token_id,
        bos_token_id=None,
        eos_token_id=vocab.eos_token_id,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
