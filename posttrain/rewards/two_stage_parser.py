"""math-verify's LaTeX parser with ANTLR's two stages: half the time on answers to MATH, and the same readings.

ANTLR documents its SLL prediction as giving either the tree of full LL prediction or a syntax error, and advises to
try SLL first and LL after an error; latex2sympy2_extended 1.11.0 runs LL alone. Only grading processes install this.
"""

from __future__ import annotations

from typing import Any


def install_two_stage_parser() -> None:
    """From now on `latex2sympy` of this process parses in two stages."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended import latex2sympy2

    converter = latex2sympy2._Latex2Sympy

    class TwoStages(converter):
        prediction = PredictionMode.SLL

        def create_parser(self, latex_str: str) -> Any:
            parser = super().create_parser(latex_str)
            parser._interp.predictionMode = self.prediction
            return parser

        def parse(self, latex_str: str) -> Any:
            try:
                return super().parse(latex_str)
            except Exception:  # latex2sympy raises Exception itself on a syntax error
                self.prediction = PredictionMode.LL
                return super().parse(latex_str)

    latex2sympy2._Latex2Sympy = TwoStages
