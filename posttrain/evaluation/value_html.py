"""Solutions as HTML with each token on a ground coloured by V: orange low, white in the middle, blue high."""

from __future__ import annotations

from html import escape

from posttrain.evaluation.run_folder import SolutionValues

LOW, MIDDLE, HIGH = (240, 150, 60), (250, 250, 250), (110, 175, 225)  # RGB; told apart with every colour blindness
INK = (17, 17, 17)  # at least 8:1 on each of them


def value_colour(value: float) -> tuple[int, int, int]:
    """RGB of a value, linear from LOW at 0 through MIDDLE at 0.5 to HIGH at 1; values beyond take the end's colour."""
    x = 2 * min(max(value, 0.0), 1.0) - 1
    end = HIGH if x > 0 else LOW
    red, green, blue = (round(m + abs(x) * (e - m)) for m, e in zip(MIDDLE, end, strict=True))
    return red, green, blue


def coloured_solution(solution: SolutionValues) -> str:
    """One <pre> with the prompt plain and the answer coloured; V stands in each token's title and after each line.

    The last token has no state after it, so it stays plain.
    """
    states = solution.states()
    spoken = {*states[:1], *solution.step_states()}
    parts: list[str] = []
    for i, token in enumerate(solution.tokens):
        value = solution.values[i]
        text = _visible(token)
        if solution.is_action[i] and i in states:
            parts.append(f'<span style="background:{_css(value_colour(value))}" title="V = {value:.3f}">{text}</span>')
        else:
            parts.append(f"<i>{text}</i>")
        if i in spoken:
            parts.append(f"<b> V = {value:.2f}</b>")
        parts.append("\n" * token.count("\n"))
    return f'<pre class="solution" tabindex="0">{"".join(parts)}</pre>'


def value_legend() -> str:
    """The colour scale from 0 to 1, with its numbers."""
    steps = (0.0, 0.25, 0.5, 0.75, 1.0)
    names = {0.0: "V ≤ 0", 1.0: "V ≥ 1"}
    cells = "".join(f'<span style="background:{_css(value_colour(v))}">{names.get(v, f"{v:g}")}</span>' for v in steps)
    return f'<p class="scale" role="img" aria-label="Colour scale of V: orange 0, white 0.5, blue 1">{cells}</p>'


def _visible(token: str) -> str:
    return escape(token).replace("\n", "↵")


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
