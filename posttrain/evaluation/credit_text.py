"""Credits in a terminal: coloured text, or one line per token."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.inspect import RESET, visible
from posttrain.evaluation.credit import AnswerCredits, Panel, TokenCredit

INK = "\x1b[38;5;16m"
# From full orange to full blue in the 256 colours of xterm, the grounds on which INK can be read; neutral has none.
GROUNDS = tuple(f"\x1b[48;5;{n}m{INK}" if n else "" for n in (208, 215, 223, 0, 152, 117, 75))
NEUTRAL = len(GROUNDS) // 2


def credit_table(answer: AnswerCredits) -> str:
    """One line per action token, then the sums of the advantages."""
    has_values = any(credit.value is not None for credit in answer.credits)
    head = f"{'index':>6} {'log pi':>9} {'log ref':>9} {'implicit':>9}"
    lines = [f"{head} {'V':>9} {'explicit':>9}  text" if has_values else f"{head}  text"]
    for credit in answer.credits:
        numbers = f"{credit.index:>6} {credit.logp:>9.4f} {credit.ref_logp:>9.4f} {credit.implicit:>+9.4f}"
        explicit = f" {number(credit.value, '.4f'):>9} {number(credit.explicit):>9}" if has_values else ""
        lines.append(f"{numbers}{explicit}  {answer.tokens[credit.index]!r}")
    total = f"{'sum':>6} {'':>9} {'':>9} {sum(c.implicit for c in answer.credits):>+9.4f}"
    lines.append(f"{total} {'':>9} {number(answer.explicit_return()):>9}" if has_values else total)
    return "\n".join(lines)


def coloured_answer(answer: AnswerCredits, panels: Sequence[Panel]) -> str:
    """The text once per panel, prompt plain, each action token on the ground of its number."""
    return "\n".join(f"{panel.title}:\n{_coloured(answer, panel)}" for panel in panels)


def colour_legend(panel: Panel) -> str:
    """The seven grounds with the numbers at which they lie."""
    names = (f"{panel.middle + panel.reach * (i - NEUTRAL) / NEUTRAL:+.3g}" for i in range(len(GROUNDS)))
    cells = " ".join(f"{ground} {name} {RESET}" for ground, name in zip(GROUNDS, names, strict=True))
    return f"{panel.title}, reward units: {cells}"


def summary_lines(answer: AnswerCredits) -> list[str]:
    """What the credits of an answer sum to, and where the lowest is."""
    lowest = answer.lowest()
    ratio = sum(credit.logp - credit.ref_logp for credit in answer.credits)
    lines = [
        f"implicit credits sum to {sum(c.implicit for c in answer.credits):+.4f}, "
        f"h = beta * sum rho = {answer.beta:g} * {ratio:+.4f} = {answer.implicit_return:+.4f}",
        f"lowest implicit credit {lowest.implicit:+.4f} at token {lowest.index}, {answer.tokens[lowest.index]!r}",
    ]
    start = answer.credits[0].value
    explicit = answer.explicit_return()
    if start is not None and explicit is not None and answer.reward is not None:
        lines.insert(1, f"explicit credits sum to {explicit:+.4f}, R - V(s_0) = {answer.reward:g} - {start:.4f}")
    elif start is not None:
        lines.insert(1, f"V(s_0) = {start:.4f}; the row has no reward, so the last explicit step is not known")
    return lines


def margin_line(chosen: AnswerCredits, rejected: AnswerCredits) -> str:
    """The difference in reward that the policy implies between the two answers of a pair."""
    margin = chosen.implicit_return - rejected.implicit_return
    sides = f"{chosen.implicit_return:.4f} - ({rejected.implicit_return:.4f})"
    return f"margin h(chosen) - h(rejected) = {sides} = {margin:+.4f}"


def number(x: float | None, form: str = "+.4f") -> str:
    """A number that may not be known."""
    return "-" if x is None else format(x, form)


def _coloured(answer: AnswerCredits, panel: Panel) -> str:
    grounds = {credit.index: _ground(panel, credit) for credit in answer.credits}
    parts = []
    for index, token in enumerate(answer.tokens):
        # A line break inside the colours would paint the rest of the terminal's line.
        lines = visible(token).split("\n")
        ground = grounds.get(index, "\x1b[2m")
        parts.append("\n".join(f"{ground}{line}{RESET}" if line else "" for line in lines))
    return "".join(parts)


def _ground(panel: Panel, credit: TokenCredit) -> str:
    position = panel.position(credit)
    return "" if position is None else GROUNDS[NEUTRAL + round(position * NEUTRAL)]
