"""A small reasoning task made of reasoning-gym's chain sums, with worked solutions of careful and of hurried authors.

A problem lists a start and n labelled operations; the answer is what remains of the total after division by DIVISOR.
A careful solution has a line for every operation: its label and the running total. Others take one, two or three
operations per line, as their author likes. Who takes several at once slips: the line's total is off at a rate of
SLIPS, and the author goes on from it. So each line is a choice between short and right, and only the answer at the
end, many tokens later, tells; a wrong total still has the right remainder now and then.

    12 a +5 b -3 c +8 d -2          careful: a 17 / b 14 / c 22 / d 20 / #### 0          hurried: c 23 / d 21 / #### 1
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from posttrain.schema import Problem

DIVISOR = 4
TOP = 20  # running totals stay within 0..TOP, so that each is one token
LABELS = "abcdefghijklmnop"
N_OPERATIONS = 6
# How often a line takes how many operations: careful solutions, what the base model sees beside them, and the hurried
# solutions that are imitated; and how often a line that takes so many is wrong.
CAREFUL = {1: 1.0}
BRISK = {1: 0.25, 2: 0.5, 3: 0.25}
HURRIED = {1: 0.2, 2: 0.3, 3: 0.5}
SLIPS = {2: 0.3, 3: 0.6}
SEED_STRIDE = 100_000_000  # seeds of reasoning-gym's entries that belong to one seed of ours


Rates = Mapping[int, float]  # operations taken by one line -> rate; 0 where there is none


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


def solution(problem: ChainSum, *, operations_per_line: Rates, slips: Rates, rng: random.Random) -> str:
    """Lines of so many operations, drawn by their rates, with the total after them; the last takes what is left.

    A line's total is off by one to three at the rate of its size in `slips`; the lines after it go on from there.
    """
    totals = list(accumulate(problem.operations, initial=problem.start))
    lines: list[str] = []
    done = off = 0
    while done < len(problem.operations):
        [size] = rng.choices(tuple(operations_per_line), tuple(operations_per_line.values()))
        size = min(size, len(problem.operations) - done)
        done += size
        if rng.random() < slips.get(size, 0.0):
            off += _slip([total + off for total in totals[done:]], rng)
        lines.append(f"{LABELS[done - 1]} {totals[done] + off} \n")
    return " ".join((*lines, f"#### {(totals[-1] + off) % DIVISOR}"))


def _slip(totals: Sequence[int], rng: random.Random) -> int:
    """One to three too many or too few, such that these totals stay within 0..TOP; 0 where none of them can."""
    sizes = [size for size in range(-3, 4) if size and min(totals) + size >= 0 and max(totals) + size <= TOP]
    return rng.choice(sizes or [0])


def demonstrations(
    problems: Sequence[ChainSum], *, shares: Sequence[tuple[float, Rates]], seed: int
) -> list[dict[str, str]]:
    """Each problem solved once, as TRL prompt/completion rows, in a style drawn from `shares`: (share, line sizes)."""
    rng = random.Random(seed)
    weights, styles = zip(*shares, strict=True)
    rows: list[dict[str, str]] = []
    for problem in problems:
        [style] = rng.choices(styles, weights)
        completion = solution(problem, operations_per_line=style, slips=SLIPS, rng=rng)
        rows.append({"prompt": _prompt(problem), "completion": completion})
    return rows


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
