"""docs/evaluation shows every protocol as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.evaluation.protocols import PROTOCOLS

PAGE = (Path(__file__).resolve().parents[2] / "docs/evaluation/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_page_has_the_protocols_text_budget_and_graders_verbatim(name):
    protocol = PROTOCOLS[name]
    [section] = [part for part in PAGE.split("\n### ") if name in part.splitlines()[0].split(", ")]
    shown = protocol.system if protocol.is_chat else protocol.prompt
    assert "".join(f"    {line}".rstrip() + "\n" for line in shown.splitlines()) in section
    assert f"{protocol.max_new_tokens:,} tokens" in section
    for grader in protocol.graders:
        assert f"`{grader}`" in section
    for stop in protocol.stop:
        assert f"`{stop}`" in section
