"""`posttrain eval run` with the two token-level searches: records against the search itself, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import group_records, read_records
from posttrain.evaluation.run import evaluate
from posttrain.schema import FinishReason
from posttrain.search.token_beam import TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer, LogRatioScorer
from posttrain.search.tree import NodeState
from tests.evaluation.tiny_policy import STARTS, WORDS, word_tokenizer, write_policy, write_problems

MAX_NEW_TOKENS = 8
EOS = WORDS.index("<eos>")


@dataclass(frozen=True)
class Files:
    policy: Path
    reference: Path
    problems: Path
    answers: Path


def config_of(files: Files, output: Path, **changes) -> EvalConfig:
    settings = {
        "model": str(files.policy),
        "reference": str(files.reference),
        "problems": str(files.problems),
        "output": str(output),
        "name": "tiny",
        "decoding": ("greedy", "likelihood:1", "likelihood:3", "log_ratio:3"),
        "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": 7,  # two prompts at a time under a width of 3
    }
    return EvalConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("eval_token_beam")
    found = Files(
        policy=write_policy(folder / "policy"),
        reference=write_policy(folder / "reference", seed=1),
        problems=write_problems(folder / "problems.jsonl"),
        answers=folder / "answers.jsonl",
    )
    evaluate(config_of(found, found.answers))
    return found


@pytest.fixture(scope="module")
def records(files):
    return group_records(read_records(files.answers))


def test_every_problem_has_one_record_per_search_and_width(records):
    keys = {("tiny/greedy", 1), ("tiny/likelihood", 1), ("tiny/likelihood", 3), ("tiny/log_ratio", 3)}
    assert {key: len(group) for key, group in records.items()} == dict.fromkeys(keys, len(STARTS))
    assert {record.value for group in records.values() for record in group} == {None}  # a score is no V


def test_likelihood_search_of_width_one_answers_as_greedy_does(records):
    assert [r.text for r in records["tiny/likelihood", 1]] == [r.text for r in records["tiny/greedy", 1]]


@pytest.mark.parametrize("how", ["likelihood", "log_ratio"])
def test_records_hold_the_best_path_of_the_search_and_all_its_tokens_are_paid_for(files, records, how):
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (files.policy, files.reference))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.policy)
    scorers = {
        "likelihood": LikelihoodScorer(policy),
        "log_ratio": LogRatioScorer(policy, reference, min_probability=0.0),
    }
    prompts = [tokenizer(f"{start} \n")["input_ids"] for start in STARTS]
    trees = token_beam_search(scorers[how], prompts, {EOS}, TokenBeamParams(3, MAX_NEW_TOKENS, 64))
    reasons = set()
    for tree, record in zip(trees, records[f"tiny/{how}", 3], strict=True):
        best = tree.best()
        ids = tree.completion(best)
        assert record.text == tokenizer.decode([token for token in ids if token != EOS])
        assert record.finish_reason is (FinishReason.STOP if best.state is NodeState.ANSWER else FinishReason.LENGTH)
        assert record.n_generated_tokens == tree.n_generated_tokens >= len(ids)
        reasons.add(record.finish_reason)
    assert FinishReason.STOP in reasons


def test_the_two_searches_give_different_answers(records):
    assert [r.text for r in records["tiny/log_ratio", 3]] != [r.text for r in records["tiny/likelihood", 3]]


def test_min_probability_changes_what_a_log_ratio_search_finds_and_no_likelihood_search(files, records, tmp_path):
    output = tmp_path / "answers.jsonl"
    evaluate(config_of(files, output, decoding=("likelihood:3", "log_ratio:3"), min_probability=0.2))
    held = group_records(read_records(output))
    assert held["tiny/likelihood", 3] == records["tiny/likelihood", 3]
    assert held["tiny/log_ratio", 3] != records["tiny/log_ratio", 3]


def wide_model(folder: Path) -> Path:
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(WORDS) + 8)
    model.save_pretrained(folder)
    return folder


def other_words(folder: Path) -> Path:
    word_tokenizer((*WORDS[:-2], WORDS[-1], WORDS[-2])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "a log-ratio search reads two networks: set reference"),
        ("equal", "policy and reference have equal weights"),
        ("wide", f"policy has {len(WORDS)} tokens, reference {len(WORDS) + 8}: it must be the model that the policy"),
        (
            "other words",
            r"reference .* reads 2 ids as other tokens than the policy \(first 9: '\+2'",
        ),
    ],
)
def test_a_reference_that_cannot_be_one_is_refused_before_anything_is_written(files, tmp_path, reference, message):
    if reference is not None:
        folder = write_policy(tmp_path / "reference", seed=0 if reference == "equal" else 1)
        reference = str({"equal": Path, "wide": wide_model, "other words": other_words}[reference](folder))
    output = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match=message):
        evaluate(config_of(files, output, reference=reference))
    assert not output.exists()


def test_a_reference_is_not_needed_by_likelihood_search(files, records, tmp_path):
    output = tmp_path / "answers.jsonl"
    evaluate(config_of(files, output, reference=None, decoding=("likelihood:3",)))
    assert group_records(read_records(output))["tiny/likelihood", 3] == records["tiny/likelihood", 3]
