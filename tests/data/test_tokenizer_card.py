"""Rows of another tokenizer or chat template, and networks that read ids as other tokens, are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data.audit import prepare
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, RowsError, read_rows
from posttrain.data.tokenizer_card import require_same_tokens, tokenizer_card
from tests.data.conftest import MARKED_TEMPLATE, build_char_tokenizer


def rows_made_by(tokenizer, path: Path, *, template: str) -> Path:
    """One recorded row `<bos> 1 | 2 <eos>` and the summary that a collection leaves beside it."""
    row = {"task_id": "t", "prompt": "1", "reward": 1, "finish_reason": "stop"}
    path.write_text(json.dumps({**row, "input_ids": [1, 9, 10, 2], "action_spans": [[2, 4]]}) + "\n")
    summary = {"config": {"model": "runs/sft", "template": template}, "tokenizer": tokenizer_card(tokenizer)}
    path.with_suffix(".summary.json").write_text(json.dumps(summary))
    return path


def prepared(path: Path, tokenizer):
    rows = read_rows(path, parse_trajectory, on_bad_row=OnBadRow.ERROR)
    return prepare(rows, tokenizer, max_length=10, step_delimiters=(), max_dropped_fraction=0.0)


def test_rows_of_another_vocabulary_of_the_same_size_are_refused(tmp_path, char_tokenizer):
    # The ids are below both sizes, so nothing but the summary can tell. One token differs.
    maker = build_char_tokenizer(("ab",))
    path = rows_made_by(maker, tmp_path / "rows.jsonl", template="plain")
    with pytest.raises(RowsError, match=r"ids are of runs/sft, whose vocabulary differs.*Collect the rows with"):
        prepared(path, build_char_tokenizer(("ba",)))


@pytest.mark.parametrize("now", [MARKED_TEMPLATE, None])
def test_rows_rendered_by_another_chat_template_are_refused(tmp_path, char_tokenizer, now):
    path = rows_made_by(char_tokenizer, tmp_path / "rows.jsonl", template="chat")
    char_tokenizer.chat_template = now
    with pytest.raises(RowsError, match="rendered by the chat template of runs/sft, which is not the one in"):
        prepared(path, char_tokenizer)


def test_chat_template_does_not_matter_for_plain_prompts_nor_do_added_tokens(tmp_path, char_tokenizer):
    path = rows_made_by(char_tokenizer, tmp_path / "rows.jsonl", template="plain")
    char_tokenizer.chat_template = MARKED_TEMPLATE
    char_tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    assert prepared(path, char_tokenizer).encoded[0].input_ids == (1, 9, 10, 2)


def test_rows_of_the_same_tokenizer_and_rows_without_a_summary_pass(tmp_path, char_tokenizer, marked_tokenizer):
    path = rows_made_by(char_tokenizer, tmp_path / "rows.jsonl", template="chat")
    assert prepared(path, char_tokenizer).audit.n_kept == 1
    path.with_suffix(".summary.json").unlink()
    assert prepared(path, marked_tokenizer).audit.n_kept == 1


def test_network_that_reads_an_id_as_another_token_is_refused(tmp_path):
    # Ids 8 to 107 are string.printable, so the first extra token has id 108; both tokenizers have 109 tokens.
    build_char_tokenizer(("ba",)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reference .* reads 1 ids as other .*first 108: 'ba', the policy 'ab'"):
        require_same_tokens(build_char_tokenizer(("ab",)), tmp_path, "reference")


def test_network_with_the_same_tokens_or_without_a_tokenizer_passes(tmp_path, char_tokenizer):
    require_same_tokens(char_tokenizer, tmp_path, "reference")
    char_tokenizer.save_pretrained(tmp_path)
    require_same_tokens(build_char_tokenizer(("ab",)), tmp_path, "reference")  # more tokens; the models' sizes decide
