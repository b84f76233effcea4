"""`posttrain eval run` with a real policy and value model: its records against the engine and the networks."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import group_records, read_records
from posttrain.evaluation.run import evaluate
from posttrain.evaluation.run_folder import read_solutions
from posttrain.models.value import load_value_model
from posttrain.rewards.grade import final_answer
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason, Grade
from tests.evaluation.tiny_policy import STARTS, WORDS, value_of, write_policy, write_problems, write_value_model

N_SAMPLES = 8
MAX_NEW_TOKENS = 10
EOS, NEWLINE = WORDS.index("<eos>"), WORDS.index("\n")


@dataclass(frozen=True)
class Files:
    policy: Path
    value: Path
    problems: Path
    answers: Path  # greedy, samples with value, and a beam
    solutions: Path


def config_of(files: Files, output: Path, **changes) -> EvalConfig:
    settings = {
        "model": str(files.policy),
        "value_model": str(files.value),
        "problems": str(files.problems),
        "output": str(output),
        "name": "tiny",
        "decoding": ("greedy", f"sample:{N_SAMPLES}", "beam:2x3"),
        "max_new_tokens": MAX_NEW_TOKENS,
        "max_steps": 4,
        "seed": 5,
    }
    return EvalConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("eval")
    policy = write_policy(folder / "policy")
    found = Files(
        policy=policy,
        value=write_value_model(folder / "value", policy),
        problems=write_problems(folder / "problems.jsonl"),
        answers=folder / "answers.jsonl",
        solutions=folder / "values.jsonl",
    )
    evaluate(config_of(found, found.answers, values_output=str(found.solutions)))
    return found


@pytest.fixture(scope="module")
def records(files):
    return group_records(read_records(files.answers))


@pytest.fixture(scope="module")
def drawn(records):
    """The recorded samples of each problem, in the order drawn."""
    by_task = {}
    for record in records["tiny/sample", 1]:
        by_task.setdefault(record.task_id, []).append(record)
    return by_task


@pytest.fixture(scope="module")
def sampled(files) -> list[list[Sample]]:
    """What the engine itself gives to each prompt under the seed of the evaluation."""
    model = AutoModelForCausalLM.from_pretrained(files.policy)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.policy)
    engine = TransformersEngine(model, tokenizer, batch_size=7, device="cpu")
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=5)
    return engine.sample(prompt_ids(files), params, N_SAMPLES)


def prompt_ids(files: Files) -> list[list[int]]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.policy)
    return [tokenizer(f"{start} \n")["input_ids"] for start in STARTS]


def test_every_problem_has_one_record_per_method_and_budget_and_all_its_samples(records):
    n = len(STARTS)
    chosen = {(f"tiny/{how}", m): n for how in ("majority", "weighted_majority", "best_of_n") for m in (2, 4, 8)}
    expected = {("tiny/greedy", 1): n, ("tiny/sample", 1): n * N_SAMPLES, ("tiny/beam", 6): n, **chosen}
    assert {key: len(group) for key, group in records.items()} == expected


def test_greedy_records_hold_the_likeliest_continuation_token_by_token(files, records):
    model = AutoModelForCausalLM.from_pretrained(files.policy).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.policy)
    for record, prompt in zip(records["tiny/greedy", 1], prompt_ids(files), strict=True):
        ids = list(prompt)  # the whole prefix is read anew for every token: no cache, no padding, no batch
        while len(ids) < len(prompt) + MAX_NEW_TOKENS and ids[-1] != EOS:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answer = ids[len(prompt) :]
        assert record.text == tokenizer.decode([token for token in answer if token != EOS])
        assert record.n_generated_tokens == len(answer)
        assert record.finish_reason is (FinishReason.STOP if answer[-1] == EOS else FinishReason.LENGTH)


def test_sample_records_hold_the_engines_samples_in_their_order(files, drawn, sampled):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.policy)
    for group, samples in zip(drawn.values(), sampled, strict=True):
        assert [r.text for r in group] == [tokenizer.decode(s.token_ids, skip_special_tokens=True) for s in samples]
        assert [r.n_generated_tokens for r in group] == [len(s.token_ids) for s in samples]
        assert [r.finish_reason for r in group] == [s.finish_reason for s in samples]


def test_a_grade_is_correct_exactly_where_the_text_ends_in_the_sums_remainder(records):
    remainder = {f"sum/{i}": sum(map(int, start.split())) % 4 for i, start in enumerate(STARTS)}
    grades = Counter()
    for record in (record for group in records.values() for record in group):
        is_right = record.text.rstrip(" \n").endswith(f"#### {remainder[record.task_id]}")
        assert (record.grade is Grade.CORRECT) == is_right
        grades[record.grade] += 1
    kinds = (Grade.CORRECT, Grade.WRONG, Grade.UNPARSED)
    assert min(grades[kind] for kind in kinds) > 0  # each is among the records; a comparison of numbers has no TIMEOUT


@pytest.mark.parametrize("m", [2, 4, 8])
def test_majority_is_the_first_of_the_first_m_samples_with_the_commonest_answer_and_pays_for_all_m(records, drawn, m):
    for record in records["tiny/majority", m]:
        first = drawn[record.task_id][:m]
        votes = Counter(final_answer(sample.text) for sample in first)
        del votes[None]
        readable = [sample for sample in first if final_answer(sample.text) is not None]
        winners = [sample for sample in readable if votes[final_answer(sample.text)] == max(votes.values())]
        expected = winners[0] if winners else first[0]
        assert (record.text, record.grade, record.value) == (expected.text, expected.grade, expected.value)
        assert record.n_generated_tokens == sum(sample.n_generated_tokens for sample in first)


@pytest.mark.parametrize("m", [2, 4, 8])
def test_best_of_n_has_the_highest_value_of_the_first_m_samples_that_ended_and_pays_for_all_m(records, drawn, m):
    for record in records["tiny/best_of_n", m]:
        first = drawn[record.task_id][:m]
        ended = [sample for sample in first if sample.finish_reason is FinishReason.STOP] or first
        assert record.value == max(sample.value for sample in ended)
        assert record.text in {sample.text for sample in ended if sample.value == record.value}
        assert record.n_generated_tokens == sum(sample.n_generated_tokens for sample in first)


def test_majority_and_best_of_n_choose_another_sample_than_the_first_somewhere(records, drawn):
    for how in ("majority", "best_of_n"):
        group = records[f"tiny/{how}", 8]
        assert any(record.text != drawn[record.task_id][0].text for record in group)


def test_a_samples_value_is_read_before_eos_and_at_the_last_token_of_a_cut_one(files, drawn, sampled):
    value_model = load_value_model(files.value, dtype=torch.float32)
    for prompt, group, samples in zip(prompt_ids(files), drawn.values(), sampled, strict=True):
        for record, sample in zip(group, samples, strict=True):
            answer = [token for token in sample.token_ids if token != EOS]
            # 1e-4: values reach 10, and padded batches sum in another order than this single row.
            assert record.value == pytest.approx(value_of(value_model, [*prompt, *answer]), abs=1e-4)


def test_without_a_value_model_the_same_samples_are_drawn_and_none_is_ranked(files, records, tmp_path):
    output = tmp_path / "answers.jsonl"
    evaluate(config_of(files, output, value_model=None, decoding=(f"sample:{N_SAMPLES}",)))
    plain = group_records(read_records(output))
    assert set(plain) == {("tiny/sample", 1), *(("tiny/majority", m) for m in (2, 4, 8))}
    for key, group in plain.items():
        assert [record.text for record in group] == [record.text for record in records[key]]
        assert {record.value for record in group} == {None}


def test_a_beam_answers_with_its_value_and_pays_for_at_least_the_samples_of_its_first_step(records):
    for record in records["tiny/beam", 6]:
        assert record.value is not None
        n_shown = len(record.text.split(" ")) if record.text else 0
        # The first step has 3 expansions of one token or more; the answer's own tokens are among those paid for.
        assert record.n_generated_tokens >= max(3, n_shown)


def test_the_same_seed_gives_the_same_records_at_another_batch_size_and_another_seed_does_not(files, tmp_path):
    paths = [tmp_path / name for name in ("again.jsonl", "other.jsonl")]
    decoding = (f"sample:{N_SAMPLES}", "beam:2x3")
    evaluate(config_of(files, paths[0], decoding=decoding, batch_size=5))
    evaluate(config_of(files, paths[1], decoding=decoding, seed=6))
    first, again, other = (
        [(r.method, r.budget, r.text) for r in read_records(path) if r.method != "tiny/greedy"]
        for path in (files.answers, *paths)
    )
    assert again == first
    assert other != first


def test_values_on_file_are_those_of_a_direct_forward_at_every_token_of_the_first_sample(files, drawn, sampled):
    value_model = load_value_model(files.value, dtype=torch.float32)
    solutions = read_solutions(files.solutions)
    assert [solution.task_id for solution in solutions] == list(drawn)
    for solution, prompt, (sample, *_) in zip(solutions, prompt_ids(files), sampled, strict=True):
        ids = [WORDS.index(token) for token in solution.tokens]
        assert ids[: len(prompt)] == prompt
        assert solution.is_action == (False,) * len(prompt) + (True,) * len(sample.token_ids)
        assert tuple(ids[len(prompt) :]) == sample.token_ids
        assert solution.grade is drawn[solution.task_id][0].grade
        for end in range(1, len(ids) + 1):
            assert solution.values[end - 1] == pytest.approx(value_of(value_model, ids[:end]), abs=1e-4)


def test_step_ends_on_file_are_the_answers_line_breaks(files):
    n_ends = 0
    for solution in read_solutions(files.solutions):
        line_breaks = [i for i, token in enumerate(solution.tokens) if token == "\n" and solution.is_action[i]]
        # A line break that is the very last token has no step after it, and no state either.
        assert list(solution.step_ends) == [i for i in line_breaks if i < len(solution.tokens) - 1]
        n_ends += len(solution.step_ends)
    assert n_ends > 0


def test_only_the_first_solutions_are_written_when_fewer_are_asked_for(files, tmp_path):
    path = tmp_path / "values.jsonl"
    evaluate(config_of(files, tmp_path / "a.jsonl", decoding=("greedy",), values_output=str(path), n_solutions=2))
    assert read_solutions(path) == read_solutions(files.solutions)[:2]


def test_a_second_policy_is_added_to_the_file_and_other_answers_under_its_name_are_refused(files, tmp_path):
    output = tmp_path / "answers.jsonl"
    evaluate(config_of(files, output, decoding=("greedy",), limit=2))
    evaluate(config_of(files, output, decoding=("greedy",), limit=2, name="other"))
    before = output.read_bytes()
    assert [r.method for r in read_records(output)] == ["tiny/greedy"] * 2 + ["other/greedy"] * 2
    with pytest.raises(FileExistsError, match=r"answers\.jsonl has other answers by other/greedy: of another model"):
        evaluate(config_of(files, output, decoding=("greedy",), name="other", max_new_tokens=MAX_NEW_TOKENS - 1))
    assert output.read_bytes() == before


def test_an_evaluation_that_is_asked_again_adds_only_what_is_missing(files, records, tmp_path):
    output = tmp_path / "answers.jsonl"
    evaluate(config_of(files, output, decoding=("greedy",), limit=2))
    first = output.read_bytes()
    evaluate(config_of(files, output, decoding=("greedy", f"sample:{N_SAMPLES}")))
    assert output.read_bytes().startswith(first)
    assert group_records(read_records(output)) == {key: records[key] for key in records if key[0] != "tiny/beam"}
    whole = output.read_bytes()
    evaluate(config_of(files, output, decoding=("greedy", f"sample:{N_SAMPLES}"), batch_size=3))
    assert output.read_bytes() == whole


def test_a_finished_evaluation_is_told_again_without_loading_a_network(files, tmp_path, monkeypatch, capsys):
    output = tmp_path / "answers.jsonl"
    config = config_of(files, output, decoding=("greedy",))
    evaluate(config)
    said = capsys.readouterr().out.split("[greedy")[0]
    monkeypatch.setattr("posttrain.evaluation.run.load_answering", None)
    evaluate(config)
    assert capsys.readouterr().out.split("[greedy")[0] == said
    with pytest.raises(ValueError, match="has 6 problems and limit is 0: nothing to answer"):
        evaluate(config_of(files, output, decoding=("greedy",), limit=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_model": None, "decoding": ("beam:2x2",)}, "beam:2x2 goes by value: set value_model"),
        ({"value_model": None, "decoding": ("greedy",), "values_output": "v"}, "values_output needs a value model"),
        ({"decoding": ("beam:2",)}, "decoding 'beam:2' is none of: greedy"),
        ({"decoding": ("beam:2x2", "beam:4x1")}, "both give 'beam' answers with a budget of 4"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(files, tmp_path, changes, message):
    output = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match=message):
        evaluate(config_of(files, output, **changes))
    assert not output.exists()


def test_a_value_model_of_another_vocabulary_is_refused_before_anything_is_sampled(files, tmp_path):
    value_model = load_value_model(files.value, dtype=torch.float32)
    value_model.resize_token_embeddings(len(WORDS) + 8)
    value_model.save_pretrained(tmp_path / "wide")
    output = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match=f"policy has {len(WORDS)} tokens, value model {len(WORDS) + 8}: both read"):
        evaluate(config_of(files, output, value_model=str(tmp_path / "wide")))
    assert not output.exists()


def test_two_problems_of_one_task_id_are_refused_since_their_records_could_not_be_told_apart(files, tmp_path):
    row = json.loads(files.problems.read_text().splitlines()[0])
    problems = tmp_path / "problems.jsonl"
    problems.write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'prompt': '1'})}\n")
    with pytest.raises(ValueError, match="task_id 'sum/0' is that of several problems"):
        evaluate(config_of(files, tmp_path / "answers.jsonl", problems=str(problems)))
