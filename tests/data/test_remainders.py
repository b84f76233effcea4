"""The quickstart's task: its problems, its two kinds of solutions and its tokenizer, whatever the sizes are set to."""

import json
import random
from collections import Counter
from itertools import accumulate, pairwise

import pytest

from posttrain.data import remainders
from posttrain.data.remainders import (
    BRISK,
    CAREFUL,
    DIVISOR,
    HURRIED,
    LABELS,
    SLIPS,
    TOP,
    ChainSum,
    Rates,
    chain_sums,
    demonstrations,
    graded_problems,
    small_llama,
    solution,
    tokenizer,
)
from posttrain.rewards.grade import grade
from posttrain.schema import Grade

N_OPERATIONS = remainders.N_OPERATIONS
SUM = ChainSum(start=7, operations=(5, -3, 4))  # 7, 12, 9, 13

pytest.importorskip("reasoning_gym", reason="the problems are reasoning-gym's")


@pytest.fixture(scope="module")
def problems():
    return chain_sums(300, n_operations=N_OPERATIONS, seed=3)


def totals_of(problem: ChainSum) -> list[int]:
    """The running totals, the start first."""
    return list(accumulate(problem.operations, initial=problem.start))


def solve(problem: ChainSum, style: Rates, seed: int = 0, *, slips: Rates | None = None) -> str:
    return solution(problem, operations_per_line=style, slips=slips or {}, rng=random.Random(seed))


def lines_of(solution: str) -> list[tuple[str, int]]:
    """The labels and totals of a solution, without its answer."""
    *lines, _ = solution.split("\n")
    return [(label, int(total)) for label, total in map(str.split, lines)]


def test_running_totals_stay_in_range_and_no_operation_is_zero(problems):
    for problem in problems:
        assert len(problem.operations) == N_OPERATIONS
        assert all(0 <= total <= TOP for total in totals_of(problem))
        assert all(1 <= abs(operation) <= 9 for operation in problem.operations)


def test_problems_are_distinct_and_totals_reach_both_ends_of_the_range(problems):
    assert len(set(problems)) == 300
    reached = {total for problem in problems for total in totals_of(problem)}
    assert reached == set(range(TOP + 1))


def test_the_same_seed_gives_the_same_problems_and_a_shorter_list_is_their_beginning(problems):
    assert chain_sums(300, n_operations=N_OPERATIONS, seed=3) == problems
    assert chain_sums(40, n_operations=N_OPERATIONS, seed=3) == problems[:40]
    assert not set(chain_sums(40, n_operations=N_OPERATIONS, seed=4)) & set(problems[:40])


def test_problems_that_are_to_be_left_out_do_not_come(problems):
    held_out = frozenset(problems[:50])
    assert not held_out & set(chain_sums(40, n_operations=N_OPERATIONS, seed=3, but=held_out))


def test_the_operations_are_those_of_reasoning_gym_and_the_gold_answer_is_its_sum_moved_with_the_start(problems):
    import reasoning_gym

    entries = reasoning_gym.create_dataset(
        "chain_sum",
        size=1_000,
        seed=3 * remainders.SEED_STRIDE,  # of the problems' seed, 3
        min_terms=N_OPERATIONS + 1,
        max_terms=N_OPERATIONS + 1,
        min_digits=1,
        max_digits=1,
    )
    answer_of = {}  # expression -> reasoning-gym's own answer
    for entry in entries:
        answer_of[entry["metadata"]["expression"]] = int(entry["answer"])
    n_found = 0
    for problem, graded in zip(problems, graded_problems(problems, split="test"), strict=True):
        signed = "".join(f" {'+' if n > 0 else '-'} {abs(n)}" for n in problem.operations)
        starts = [start for start in range(-9, 10) if f"{start}{signed}" in answer_of]
        n_found += bool(starts)
        for start in starts:
            moved = answer_of[f"{start}{signed}"] + problem.start - start
            assert graded.answer == str(moved % DIVISOR)
    assert n_found == len(problems)


def test_operations_hardly_repeat_over_many_blocks():
    # Of about 18^6 operation lists, 30,000 drawn at random repeat about 13 times.
    drawn = chain_sums(30_000, n_operations=N_OPERATIONS, seed=3)
    assert len({problem.operations for problem in drawn}) > 29_900


@pytest.mark.parametrize("n_operations", [0, len(LABELS) + 1])
def test_a_number_of_operations_without_letters_is_refused(n_operations):
    with pytest.raises(ValueError, match=f"n_operations is {n_operations}, needs 1 to {len(LABELS)}"):
        chain_sums(1, n_operations=n_operations, seed=0)


def test_a_question_names_the_start_and_each_operation_with_its_letter_and_sign():
    assert SUM.question() == "7 a +5 b -3 c +4"
    assert SUM.total() == 13


def test_a_careful_solution_has_every_running_total_and_ends_in_the_right_remainder(problems):
    assert solve(SUM, CAREFUL) == f"a 12 \n b 9 \n c 13 \n #### {13 % DIVISOR}"
    for problem, graded in zip(problems, graded_problems(problems, split="test"), strict=True):
        assert lines_of(solve(problem, CAREFUL)) == list(zip(LABELS, totals_of(problem)[1:], strict=False))
        assert grade(graded, solve(problem, CAREFUL)) is Grade.CORRECT


@pytest.mark.parametrize("style", [BRISK, HURRIED])
def test_a_shorter_solution_leaves_out_lines_of_the_careful_one_but_never_the_last(problems, style):
    for seed, (problem, graded) in enumerate(zip(problems, graded_problems(problems, split="test"), strict=True)):
        short, careful = solve(problem, style, seed), lines_of(solve(problem, CAREFUL))
        places = [careful.index(line) for line in lines_of(short)]
        assert places[-1] == N_OPERATIONS - 1
        assert all(1 <= after - before <= 3 for before, after in pairwise((-1, *places)))
        assert grade(graded, short) is Grade.CORRECT


def test_careful_authors_never_slip(problems):
    for seed, problem in enumerate(problems):
        assert solve(problem, CAREFUL, seed, slips=SLIPS) == solve(problem, CAREFUL)


def test_a_slip_of_one_to_three_stays_in_every_later_total_and_in_the_remainder(problems):
    for seed, problem in enumerate(problems):
        totals, found = totals_of(problem)[1:], solve(problem, {2: 1.0}, seed, slips={2: 1.0})
        off = [total - totals[LABELS.index(label)] for label, total in lines_of(found)]
        assert all(0 < abs(after - before) <= 3 for before, after in pairwise((0, *off)) if after != before)
        assert all(0 <= total <= TOP for _, total in lines_of(found))
        assert found.endswith(f"#### {(totals[-1] + off[-1]) % DIVISOR}")


@pytest.mark.parametrize("size", [2, 3])
def test_lines_are_wrong_at_the_rate_of_their_size(problems, size):
    rng = random.Random(0)
    n_wrong = n_without_room = 0
    for problem in problems:
        totals = totals_of(problem)
        label, total = lines_of(solution(problem, operations_per_line={size: 1.0}, slips=SLIPS, rng=rng))[0]
        n_wrong += total != totals[LABELS.index(label) + 1]
        n_without_room += (min(totals[size:]) == 0) and (max(totals[size:]) == TOP)
    rate, n = SLIPS[size], len(problems) - n_without_room
    assert abs(n_wrong - n * rate) < 4 * (n * rate * (1 - rate)) ** 0.5  # Binomial: four standard deviations


@pytest.mark.parametrize("style", [BRISK, HURRIED])
def test_lines_take_one_to_three_operations_at_their_rates(problems, style):
    rng = random.Random(0)
    first = Counter(lines_of(solution(p, operations_per_line=style, slips=SLIPS, rng=rng))[0][0] for p in problems)
    for label, rate in zip("abc", style.values(), strict=True):
        # Binomial(300, rate): four standard deviations.
        assert abs(first[label] - 300 * rate) < 4 * (300 * rate * (1 - rate)) ** 0.5


def test_demonstrations_come_in_the_shares_asked_for_and_the_same_for_the_same_seed(problems):
    shares = ((0.3, CAREFUL), (0.7, {6: 1.0}))
    rows = demonstrations(problems, shares=shares, seed=5)
    assert rows == demonstrations(problems, shares=shares, seed=5)
    assert rows != demonstrations(problems, shares=shares, seed=6)
    assert [row["prompt"] for row in rows] == [f"{problem.question()} \n" for problem in problems]
    careful, short = (
        [solve(problem, style) == row["completion"] for row, problem in zip(rows, problems, strict=True)]
        for style in (CAREFUL, {6: 1.0})
    )
    assert sum(careful) + sum(short) == len(problems)
    assert abs(sum(careful) - 90) < 4 * (300 * 0.3 * 0.7) ** 0.5  # Binomial(300, 0.3): four standard deviations


def test_a_graded_problem_keeps_its_split_its_place_and_its_sum(problems):
    second = graded_problems(problems, split="train")[1]
    assert second.task_id == "remainders/train/2"
    entry = json.loads(second.entry)
    assert ChainSum(entry["start"], tuple(entry["operations"])) == problems[1]


def test_the_tokenizer_gives_every_text_back_and_one_token_for_each_word(problems):
    vocabulary = tokenizer()
    for row in demonstrations(problems, shares=((0.5, CAREFUL), (0.5, HURRIED)), seed=1):
        for text in row.values():
            ids = vocabulary(text)["input_ids"]
            assert vocabulary.decode(ids) == text
            assert len(ids) == len(text.split(" "))
            assert vocabulary.pad_token_id not in ids  # it is also the unknown token


def test_a_line_break_is_one_token_of_its_own():
    vocabulary = tokenizer()
    (line_break,) = vocabulary("\n")["input_ids"]
    assert vocabulary("7 \n a")["input_ids"][1] == line_break


def test_every_number_operation_and_letter_has_an_id_and_the_model_has_a_row_for_each():
    vocabulary = tokenizer()
    words = [*map(str, range(TOP + 1)), *(f"{n:+d}" for n in (*range(-9, 0), *range(1, 10))), *LABELS, "####", "\n"]
    ids = vocabulary(" ".join(words))["input_ids"]
    assert len(set(ids)) == len(words)
    config = small_llama(vocabulary)
    assert config.vocab_size == len(vocabulary) == len(words) + 2  # pad and eos
    assert (config.eos_token_id, config.pad_token_id) == (vocabulary.eos_token_id, vocabulary.pad_token_id)
