"""Results of the grading benchmarks on file: JSON, and a Markdown table of it beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_result(out: Path, result: Mapping[str, Any], table: str, *, n_new: int) -> None:
    """Write the result so far and, beside it, its table; print the `n_new` last rows."""
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print("\n".join(table.splitlines()[-n_new:]), flush=True)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))
