"""Coloured solutions: colours, contrast, and text that cannot break the page."""

import re

import pytest

from posttrain.evaluation.run_folder import SolutionValues
from posttrain.evaluation.value_html import DARK, LIGHT, coloured_solution, diverging_colour, value_legend
from posttrain.schema import Grade


def luminance(colour):
    """WCAG 2.1 relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out_seven_to_one_on_every_ground(palette):
    for i in range(-120, 121):
        grounds = sorted((luminance(diverging_colour(i / 100, palette)), luminance(palette.ink)))
        assert (grounds[1] + 0.05) / (grounds[0] + 0.05) >= 7


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_the_scale_is_low_at_minus_one_neutral_at_zero_and_high_at_one(palette):
    ends = [diverging_colour(x, palette) for x in (-3.0, -1.0, 0.0, 1.0, 1.7)]
    assert ends == [palette.low, palette.low, palette.middle, palette.high, palette.high]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_the_ends_differ_in_blue_against_orange_and_not_only_in_red_against_green(palette):
    # Red-green blindness leaves the blue channel and the yellow-blue contrast.
    assert palette.high[2] - palette.low[2] > 100


def test_a_value_of_one_half_is_neutral():
    # The only action with a state after it has V = 0.5, the middle of the scale from 0 to 1.
    html = coloured_solution(solution(["q", "1", "2"], [0.5, 0.5, 0.5], [False, True, True]))
    assert '<span style="--light:#fafafa;--dark:#262a2f" title="V = 0.500">1</span>' in html


def solution(tokens, values, is_action, step_ends=()):
    return SolutionValues("p", Grade.CORRECT, tuple(tokens), tuple(values), tuple(is_action), tuple(step_ends))


def test_each_state_of_the_answer_carries_its_value_and_the_last_token_none():
    html = coloured_solution(
        solution(["1+2=", "3", "\n", "4"], [0.2, 0.25, 0.75, 1.0], [False, True, True, True], [2])
    )
    assert re.findall(r'title="V = ([\d.]+)">([^<]*)<', html) == [("0.250", "3"), ("0.750", "↵")]
    assert "<i>1+2=</i><b> V = 0.20</b>" in html  # the state before the first action is the prompt's
    assert "<i>4</i>" in html
    assert html.count("V = 0.75</b>\n") == 1


def test_tokens_are_escaped():
    html = coloured_solution(solution(["</pre>", "<script>", "1"], [0.0, 0.0, 0.0], [True, True, True]))
    assert "<script>" not in html
    assert html.count("</pre>") == 1


def test_the_legend_says_its_ends():
    assert "V ≤ 0" in value_legend()
    assert "V ≥ 1" in value_legend()
