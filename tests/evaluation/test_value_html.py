"""Coloured solutions: colours, contrast, and text that cannot break the page."""

import re

import pytest

from posttrain.evaluation.run_folder import SolutionValues
from posttrain.evaluation.value_html import HIGH, INK, LOW, MIDDLE, coloured_solution, value_colour, value_legend
from posttrain.schema import Grade


def luminance(colour):
    """WCAG 2.1 relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_seven_to_one_on_every_value():
    for i in range(-20, 121):
        ratio = (luminance(value_colour(i / 100)) + 0.05) / (luminance(INK) + 0.05)
        assert ratio >= 7


@pytest.mark.parametrize(("value", "colour"), [(-3.0, LOW), (0.0, LOW), (0.5, MIDDLE), (1.0, HIGH), (1.7, HIGH)])
def test_the_scale_is_low_at_zero_middle_at_one_half_and_high_at_one(value, colour):
    assert value_colour(value) == colour


def test_the_ends_differ_in_blue_against_orange_and_not_only_in_red_against_green():
    # Red-green blindness leaves the blue channel and the yellow-blue contrast.
    assert HIGH[2] - LOW[2] > 100


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
