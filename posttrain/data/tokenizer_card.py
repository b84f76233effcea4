"""Equal ids must mean equal text: for rows and the model trained on them, for a policy and its other networks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.sources import RowsError
from posttrain.pretrained import load_tokenizer


def tokenizer_card(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """sha256 of the vocabulary and of the chat template (None without one).

    Added tokens are left out: an EOS or padding token that a later stage adds changes the meaning of no other id.
    """
    vocabulary = sorted(_base_vocabulary(tokenizer).items())
    template = tokenizer.chat_template
    return {
        "vocabulary_sha256": _sha256(json.dumps(vocabulary)),
        "chat_template_sha256": _sha256(json.dumps(template)) if template else None,
    }


def require_same_tokens(tokenizer: PreTrainedTokenizerBase, other: str | Path, name: str) -> None:
    """Raises ValueError when the model at `other`, called `name`, reads an id as another token than `tokenizer` does.

    Equal sizes prove nothing: 32,000 ids are one vocabulary in Llama 2 and another in Mistral. A folder of weights
    without a tokenizer passes.
    """
    if Path(other).is_dir() and not (Path(other) / "tokenizer_config.json").is_file():
        return
    own, others = _base_vocabulary(tokenizer), _base_vocabulary(load_tokenizer(other))
    differing = [index for index in sorted(own.keys() & others.keys()) if own[index] != others[index]]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{name} {other} reads {len(differing):,} ids as other tokens than the policy (first {first}: "
            f"{others[first]!r}, the policy {own[first]!r}): needed a model of the policy's own family and vocabulary"
        )


def summary_path(rows: Path) -> Path:
    """Where `posttrain collect` leaves what it knows about the rows at this path."""
    return rows.with_suffix(".summary.json")


def require_tokenizer_of_rows(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises RowsError when the summary beside a rows file names another vocabulary or chat template.

    The template counts only where the prompts went through it. Rows without a summary pass: their text and ids alone
    do not tell.
    """
    path = summary_path(Path(source))
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "tokenizer" not in summary:
        return
    made_by, now = summary["tokenizer"], tokenizer_card(tokenizer)
    model = summary["config"]["model"]
    if made_by["vocabulary_sha256"] != now["vocabulary_sha256"]:
        raise RowsError(
            f"{source}: its token ids are of {model}, whose vocabulary differs from that of the tokenizer in "
            f"{tokenizer.name_or_path}: the same ids would be other text. Collect the rows with the model that is "
            "trained, or train the one that made them"
        )
    is_rendered = summary["config"]["template"] == "chat"
    if is_rendered and made_by["chat_template_sha256"] != now["chat_template_sha256"]:
        raise RowsError(
            f"{source}: its prompts were rendered by the chat template of {model}, which is not the one in "
            f"{tokenizer.name_or_path}: the policy would be trained on prompts that its tokenizer never renders. "
            "Collect the rows anew, or give the model the chat template they were made with"
        )


def _base_vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    added = tokenizer.added_tokens_decoder
    return {index: token for token, index in tokenizer.get_vocab().items() if index not in added}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
