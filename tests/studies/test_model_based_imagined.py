"""Imagined continuations of a language model's answers, and what grades them."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.data.collate import StateLevel, collate
from posttrain.data.remainders import ChainSum, graded_problems, tokenizer
from posttrain.data.sources import write_jsonl
from posttrain.models.value import value_model_from_policy, values_at_every_position
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.schema import FinishReason, TrajectoryRow
from posttrain.studies.model_based.config import ImaginedValuesConfig
from posttrain.studies.model_based.imagined_rows import (
    Answer,
    encoded,
    encoded_ends,
    imagined_answers,
    predicted_rewards,
    replayed_answer,
    verified_rewards,
)
from posttrain.studies.model_based.imagined_values import run_imagined_values

VOCABULARY = tokenizer()
PROBLEMS = graded_problems([ChainSum(3, (5, -2)), ChainSum(4, (1, 4))], split="train")  # totals 6 and 9: answers 2, 1


def row(number: int, completion: str) -> TrajectoryRow:
    """A sampled answer to a problem, with its EOS."""
    problem = PROBLEMS[number]
    prompt = VOCABULARY(problem.prompt)["input_ids"]
    ids = (*prompt, *VOCABULARY(completion)["input_ids"], VOCABULARY.eos_token_id)
    return TrajectoryRow(
        where="samples.jsonl:1",
        task_id=problem.task_id,
        prompt=problem.prompt,
        completion=completion,
        input_ids=ids,
        action_spans=((len(prompt), len(ids)),),
        reward=0.0,
        step_rewards=(),
        finish_reason=FinishReason.STOP,
        behavior_logp=None,
        ref_logp=None,
    )


def answers() -> list[Answer]:
    texts = ("a 8 \n b 6 \n #### 2", "b 9 \n #### 3")
    return [replayed_answer(row(i, text), PROBLEMS[i]) for i, text in enumerate(texts)]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=VOCABULARY.pad_token_id,
        bos_token_id=None,
        eos_token_id=VOCABULARY.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "sft")
    VOCABULARY.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def engine(policy: Path) -> TransformersEngine:
    model = LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32)
    return TransformersEngine(model, VOCABULARY, batch_size=8, device="cpu")


def test_verifier_reads_the_final_answer_of_the_decoded_tokens() -> None:
    assert verified_rewards(answers(), VOCABULARY) == [1.0, 0.0]


def test_imagined_answer_keeps_its_prefix_and_has_states_only_from_the_cut_on(policy: Path) -> None:
    replayed = answers()
    imagined = imagined_answers(engine(policy), replayed, n_each=20, max_new_tokens=4, seed=0)
    assert len(imagined) == 40
    for place, answer in enumerate(imagined):
        origin = replayed[place // 20]
        assert answer.input_ids[: answer.start] == origin.input_ids[: answer.start]
        assert origin.start <= answer.start < len(origin.input_ids) - 1
        assert 1 <= len(answer.input_ids) - answer.start <= 4
    assert {answer.start for answer in imagined[:20]} > {replayed[0].start}  # cuts differ
    [last] = encoded(imagined[-1:], [0.25])
    assert [i for i, chosen in enumerate(last.is_action) if chosen] == [
        *range(imagined[-1].start, len(last.input_ids))
    ]
    assert last.reward == (*[0.0] * (len(last.input_ids) - 1), 0.25)


def test_continuations_are_the_same_for_the_same_seed_and_others_for_another(policy: Path) -> None:
    def drawn(seed: int) -> list[tuple[int, ...]]:
        found = imagined_answers(engine(policy), answers(), n_each=5, max_new_tokens=4, seed=seed)
        return [answer.input_ids for answer in found]

    assert drawn(0) == drawn(0) != drawn(1)


def test_learned_reward_is_the_value_of_the_state_it_was_trained_in_cut_to_0_and_1(policy: Path) -> None:
    model = value_model_from_policy(policy, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    rows = encoded_ends(answers(), [1.0, 0.0])
    batch = collate(rows, pad_id=VOCABULARY.pad_token_id, states=StateLevel.TOKEN)
    assert batch["is_state"].sum(-1).tolist() == [1, 1]
    with torch.no_grad():
        values = values_at_every_position(model, batch["input_ids"], batch["is_token"])[:, :-1]
    expected = values[batch["is_state"]].clamp(0, 1).tolist()
    assert predicted_rewards(answers(), model, pad_id=VOCABULARY.pad_token_id) == pytest.approx(expected, abs=1e-6)
    assert values[batch["is_state"]].abs().min() > 0.01


def test_row_without_sampled_ids_is_refused_with_its_place() -> None:
    whole = row(0, "b 6 \n #### 2")
    cut = TrajectoryRow(**{name: getattr(whole, name) for name in whole.__slots__} | {"input_ids": None})
    with pytest.raises(ValueError, match=r"samples.jsonl:1: needed sampled token ids"):
        replayed_answer(cut, PROBLEMS[0])


def test_study_asks_for_no_more_problems_than_there_are(policy: Path, tmp_path: Path) -> None:
    fields = ("task_id", "prompt", "answer", "grader", "entry")
    write_jsonl(tmp_path / "train_problems.jsonl", [{name: getattr(p, name) for name in fields} for p in PROBLEMS])
    with pytest.raises(ValueError, match="lower n_tasks"):
        run_imagined_values(ImaginedValuesConfig(quickstart=tmp_path, output_dir=tmp_path / "run"))
