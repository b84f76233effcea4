"""Every example in the documentation runs and prints what the page says it prints."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def session_of(page: Path) -> str:
    """The blocks of a page share their names, from top to bottom, as a reader would type them."""
    return "\n".join(PYTHON_BLOCK.findall(page.read_text(encoding="utf-8")))


PAGES = [page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if ">>>" in session_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_examples_of_the_page_print_what_it_says(page):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    example = doctest.DocTestParser().get_doctest(session_of(page), {}, page.name, str(page), 0)
    outcome = runner.run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
    assert outcome.attempted > 3


def test_a_wrong_output_would_be_found():
    runner = doctest.DocTestRunner(verbose=False)
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "planted", None, 0)
    assert runner.run(example, out=lambda _: None).failed == 1
