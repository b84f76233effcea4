"""What the README states is what the recorded files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_tables_are_those_made_from_the_recorded_answers():
    spec = importlib.util.spec_from_file_location("record", REPOSITORY / "evals" / "record.py")
    assert spec is not None
    assert spec.loader is not None
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    for readme, (begin, end) in record.MARKS.items():
        text = (REPOSITORY / readme).read_text(encoding="utf-8")
        assert text.count(begin) == text.count(end) == 1
        assert record.readme_with(readme, text) == text
