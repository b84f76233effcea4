"""Models by path: a folder here, or an id on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def require_model_path(path: str | Path) -> None:
    """Raises FileNotFoundError for a path that is neither a folder nor a Hub id (owner/name) that can be read."""
    if Path(path).is_dir():
        return
    if HUB_ID.fullmatch(str(path)) is None:
        raise _not_found(path, "is no Hub id, owner/name")
    try:
        cached_file(str(path), "config.json")
    except OSError as error:
        # A Hub repository that lacks this one file, such as a bare tokenizer, is for from_pretrained to judge.
        if isinstance(error.__cause__, (RepositoryNotFoundError, LocalEntryNotFoundError)):
            raise _not_found(path, f"cannot be read from the Hub: {str(error).splitlines()[0]}") from error


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id."""
    require_model_path(path)
    return AutoTokenizer.from_pretrained(path)


def _not_found(path: str | Path, why_not_hub: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"no model folder at {path}, and '{path}' {why_not_hub}\n"
        "  Is the path right, and has the run that writes it ended?"
    )
