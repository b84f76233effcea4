"""Every message and metric that docs/troubleshooting.md names is in the code, so that a search for it ends there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs/troubleshooting.md"
MESSAGE = re.compile(r"^\* (`{1,2})(.+?)\1$", re.MULTILINE)
CURVE = re.compile(r"^\* \*\*(.+?)\*\*", re.MULTILINE | re.DOTALL)
GAP = "\0"  # what stands for a value that is filled in


@cache
def texts() -> str:
    """All string literals of the library but docstrings, between empty lines, those that Python joins joined."""
    found: list[str] = []
    for path in sorted((REPOSITORY / "posttrain").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n\n".join(found)


def is_in_the_code(message: str) -> bool:
    """Whether the parts of `message` between <...> stand in this order in one string literal."""
    parts = [re.escape(part) for text in re.split(r"<[^<>]*>", message) if (part := text.strip(" ,.:;'`"))]
    # A value that is filled in may itself be text; a literal never spans an empty line.
    return re.search(r"(?:(?!\n\n)[\s\S])*?".join(parts), texts()) is not None


def messages() -> list[str]:
    return [match[2] for match in MESSAGE.finditer(PAGE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", messages())
def test_message_on_the_page_is_one_that_the_code_writes(message):
    assert is_in_the_code(message)


def test_metrics_on_the_page_are_logged_and_settings_exist():
    page = PAGE.read_text(encoding="utf-8")
    names = [name for curve in CURVE.findall(page) for name in re.findall(r"`([^`]+)`", curve)]
    assert len(names) > 8
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "posttrain").rglob("*.py"))
    for name in names:
        assert re.search(rf"\b{re.escape(name.removeprefix('loss/'))}\b", code), name


def test_no_entry_escapes_these_tests():
    n_entries = len(re.findall(r"^\* ", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(messages()) + len(CURVE.findall(PAGE.read_text(encoding="utf-8"))) == n_entries
    assert len(messages()) > 50


def test_an_invented_message_would_be_found():
    assert not is_in_the_code("policy has <n> tokens, the moon <n>")
    assert not is_in_the_code("term '<name>' has <n> pieces of '<unit>': is every row masked?")
