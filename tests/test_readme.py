"""What the README states is what the recorded files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from posttrain.evaluation.tables import replace_between

REPOSITORY = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    """A script of evals/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "evals" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_made_from_the_recorded_answers():
    record = script("record")
    for readme, marks in record.MARKS.items():
        text = (REPOSITORY / readme).read_text(encoding="utf-8")
        assert [text.count(mark) for mark in marks] == [1, 1]
        assert record.readme_with(readme, text) == text


@pytest.mark.parametrize(
    ("name", "table"), [("record_insights", "insights_tables"), ("record_iterate", "iterations_table")]
)
def test_the_recipes_tables_are_those_made_from_the_recorded_runs(name, table):
    record = script(name)
    text = record.README.read_text(encoding="utf-8")
    assert replace_between(text, record.BEGIN, record.END, getattr(record, table)(record.STUDY)) == text


def test_a_readme_that_has_lost_its_marks_is_named():
    with pytest.raises(ValueError, match="between which the tables belong"):
        replace_between("text <!-- end --> <!-- begin -->", "<!-- begin -->", "<!-- end -->", "table")
