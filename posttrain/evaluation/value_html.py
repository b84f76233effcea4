"""Answers as HTML with each token on a coloured ground: orange low, neutral in the middle, blue high.

Every ground has two colours, one for light pages and one for dark ones; the style of the page picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from posttrain.evaluation.run_folder import SolutionValues

Colour = tuple[int, int, int]  # RGB


@dataclass(frozen=True, slots=True)
class Palette:
    """Ends and middle of the scale; orange and blue are told apart with every colour blindness."""

    low: Colour
    middle: Colour
    high: Colour
    ink: Colour  # at least 7:1 on every colour of the scale


LIGHT = Palette(low=(240, 150, 60), middle=(250, 250, 250), high=(110, 175, 225), ink=(17, 17, 17))
DARK = Palette(low=(125, 60, 0), middle=(38, 42, 47), high=(0, 80, 140), ink=(242, 242, 242))


def diverging_colour(x: float, palette: Palette) -> Colour:
    """Linear from low at −1 through the middle at 0 to high at 1; numbers beyond take the end's colour."""
    x = min(max(x, -1.0), 1.0)
    end = palette.high if x > 0 else palette.low
    red, green, blue = (round(m + abs(x) * (e - m)) for m, e in zip(palette.middle, end, strict=True))
    return red, green, blue


def coloured_token(token: str, x: float, title: str) -> str:
    """A <span> on the ground of x, between −1 and 1, that shows `title` to a pointer."""
    return f'<span style="{_ground(x)}" title="{escape(title, quote=True)}">{visible(token)}</span>'


def coloured_solution(solution: SolutionValues) -> str:
    """One <pre> with the prompt plain and the answer coloured; V stands in each token's title and after each line.

    The last token has no state after it, so it stays plain.
    """
    states = solution.states()
    spoken = {*states[:1], *solution.step_states()}
    parts: list[str] = []
    for i, token in enumerate(solution.tokens):
        value = solution.values[i]
        if solution.is_action[i] and i in states:
            parts.append(coloured_token(token, 2 * value - 1, f"V = {value:.3f}"))
        else:
            parts.append(f"<i>{visible(token)}</i>")
        if i in spoken:
            parts.append(f"<b> V = {value:.2f}</b>")
        parts.append("\n" * token.count("\n"))
    return f'<pre class="solution" tabindex="0">{"".join(parts)}</pre>'


def value_legend() -> str:
    """The colour scale of V from 0 to 1, with its numbers."""
    names = ("V ≤ 0", "0.25", "0.5", "0.75", "V ≥ 1")
    return scale_legend(names, "Colour scale of V: orange 0, neutral 0.5, blue 1")


def scale_legend(names: Sequence[str], label: str) -> str:
    """The colour scale in equal steps from low to high, a name on each; `label` says it to those who do not see it."""
    grounds = (_ground(2 * i / (len(names) - 1) - 1) for i in range(len(names)))
    cells = "".join(
        f'<span style="{ground}">{escape(name)}</span>' for ground, name in zip(grounds, names, strict=True)
    )
    return f'<p class="scale" role="img" aria-label="{escape(label, quote=True)}">{cells}</p>'


def visible(token: str) -> str:
    """Escaped, with line breaks as a mark; the page adds the break itself."""
    return escape(token).replace("\n", "↵")


def _ground(x: float) -> str:
    return f"--light:{_css(diverging_colour(x, LIGHT))};--dark:{_css(diverging_colour(x, DARK))}"


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
