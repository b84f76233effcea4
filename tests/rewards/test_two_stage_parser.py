"""The two-stage parser against the full one."""

from __future__ import annotations

import pytest

from posttrain.rewards.symbolic import COMMON_FORMS
from posttrain.rewards.two_stage_parser import install_two_stage_parser

latex2sympy2 = pytest.importorskip("latex2sympy2_extended.latex2sympy2", reason="math-verify is not installed")

# 2x^2-18 and 64a^6 are syntax errors to SLL prediction alone; the last four are to full LL prediction as well.
FORMS = (*COMMON_FORMS, "2x^2-18", "64a^6", r"a^3+a^2", r"\frac", r"\frac{1}{", "((", r"1 \le")


def reading(latex: str) -> str:
    """What latex2sympy reads, or the error it raises."""
    try:
        return repr(latex2sympy2.latex2sympy(latex))
    except Exception as error:
        return f"error: {error}"


def test_two_stages_read_what_full_prediction_reads_and_refuse_what_it_refuses(monkeypatch):
    full = {latex: reading(latex) for latex in FORMS}
    monkeypatch.setattr(latex2sympy2, "_Latex2Sympy", latex2sympy2._Latex2Sympy)  # put back afterwards
    install_two_stage_parser()
    assert {latex: reading(latex) for latex in FORMS} == full
    assert sum(text.startswith("error") for text in full.values()) == 4
