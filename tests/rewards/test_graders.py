"""Each grader as a table, and the bounded part of those that use computer algebra against what the whole says."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from posttrain.rewards.final_number import MAX_CHARACTERS
from posttrain.rewards.graders import GRADERS, grader_named
from posttrain.rewards.math_text import comparable, exact_value, is_too_large, math_answer
from posttrain.schema import Grade

CORRECT, WRONG, UNPARSED, TIMEOUT = Grade.CORRECT, Grade.WRONG, Grade.UNPARSED, Grade.TIMEOUT


@pytest.mark.parametrize(
    ("name", "gold", "completion", "expected"),
    [
        ("gsm8k_strict", "18", "9 * 2\n#### 18.0", CORRECT),
        ("gsm8k_strict", "18", "the answer is 18", UNPARSED),
        ("final_number", "18", "#### 19", WRONG),
        # lm-eval compares text: the first #### and the last number count, and 18.0 is not 18.
        ("lm_eval_strict", "18", "#### 18", CORRECT),
        ("lm_eval_strict", "18", "#### 18\nQuestion: next\n#### 19", CORRECT),
        ("lm_eval_strict", "18", "#### 18.", CORRECT),
        ("lm_eval_strict", "1800", "#### 1,800", CORRECT),
        ("lm_eval_strict", "18", "#### 18.0", WRONG),
        ("lm_eval_strict", "18", "#### $18", UNPARSED),  # its pattern has no dollar sign
        ("lm_eval_strict", "18", "####18", UNPARSED),  # nor does it do without the space
        ("lm_eval_strict", "18", "18", UNPARSED),
        ("lm_eval_strict", "18", "#### 18..", WRONG),  # one full stop is dropped, not two
        ("lm_eval_flexible", "18", "9 * 2 = 18", CORRECT),
        ("lm_eval_flexible", "18", "She makes $18.", CORRECT),
        ("lm_eval_flexible", "18", "18 in all, from 9 eggs at $2 each", WRONG),
        ("lm_eval_flexible", "18", "It is 18... I think.", WRONG),  # "18..." without its last stop is "18.."
        ("lm_eval_flexible", "-5", "x = -5", CORRECT),
        ("lm_eval_flexible", "18", "eighteen", UNPARSED),
        ("boxed", "18", r"so \boxed{18}", CORRECT),
        ("boxed", "18", r"so \boxed{\$18.00}", CORRECT),
        ("boxed", "1800", r"\boxed{1,\!800}", CORRECT),
        ("boxed", "0.5", r"\boxed{\frac12}", CORRECT),
        ("boxed", "18", r"\boxed{18} or \boxed{19}", WRONG),
        ("boxed", "18", r"\boxed{x+1}", UNPARSED),
        ("boxed", "18", r"\boxed{}", UNPARSED),
        ("boxed", "18", r"\boxed{18", UNPARSED),  # cut off
        ("boxed", "18", "18", UNPARSED),
        ("boxed", r"\frac{x}{2}", r"\boxed{\dfrac{x} {2}}", CORRECT),
        ("boxed", r"\text{Evelyn}", r"\boxed{Evelyn}", CORRECT),
        ("math_verify", r"\frac{1}{2}", r"\boxed{0.5}", CORRECT),
        ("math_verify", r"\frac{1}{2}", "The answer is 1/2.", CORRECT),
        ("math_verify", r"\frac{1}{2}", r"The answer is $\frac{2}{4}$.", CORRECT),
        ("math_verify", r"x^2+2x+1", r"\boxed{(x+1)^2}", CORRECT),
        ("math_verify", r"2\sqrt{2}", r"\boxed{\sqrt{8}}", CORRECT),
        ("math_verify", r"(1,2)", r"\boxed{\left(1, 2\right)}", CORRECT),
        ("math_verify", r"(1,2)", r"\boxed{(2, 1)}", WRONG),
        ("math_verify", r"[1,2)", r"\boxed{[1,2]}", WRONG),
        ("math_verify", r"\sqrt{2}", r"\boxed{1.414213562}", CORRECT),  # math-verify rounds to six places
        ("math_verify", r"\sqrt{2}", r"\boxed{1.4142}", WRONG),
        ("math_verify", "18", "the answer is 1.8e1", WRONG),  # 1.8 is what a reader of plain numbers sees
        ("math_verify", "18", "no numbers at all", UNPARSED),
        ("math_verify", "18", "", UNPARSED),
        ("math_verify", r"x", r"\boxed{\frac}", UNPARSED),
        ("math_verify", r"x+1", r"\boxed{1+x.}", CORRECT),
        ("math_verify", "18", r"\boxed{9^{9^{9^{9}}}}", TIMEOUT),  # a cap: no process is given this
        ("reference_extraction", "0.5", r"\boxed{50\%}", CORRECT),  # 50 is 0.5 times 100
        ("reference_extraction", "1", r"\boxed{1.0009}", CORRECT),  # within 1e-3
        ("reference_extraction", "1", r"\boxed{1.002}", WRONG),
        ("reference_extraction", "18", "but 12 eggs make 18", CORRECT),
        ("reference_extraction", "1800", "in all 1,800", CORRECT),
        ("reference_extraction", "2", r"The final answer is $2$. I hope it is correct. \boxed{3}", CORRECT),
        ("reference_extraction", "3", r"the answer is 2, that is \boxed{3}", CORRECT),
        ("reference_extraction", "2", "The answer is 2.\nNot 3.", CORRECT),
        ("reference_extraction", "7", "```output\n7\n```\nwhich took 3 steps", CORRECT),
        ("reference_extraction", r"(\sqrt{8},1)", r"\boxed{(2\sqrt2,1.0)}", CORRECT),
        ("reference_extraction", r"[1,2)", r"\boxed{[1,2]}", WRONG),
        (
            "reference_extraction",
            r"\begin{pmatrix}1\\2\end{pmatrix}",
            r"\boxed{\begin{pmatrix}1\\2.0\end{pmatrix}}",
            CORRECT,
        ),
        ("reference_extraction", "18", "none", UNPARSED),
    ],
)
def test_grader_gives_the_grade_of_its_protocol(name, gold, completion, expected):
    if GRADERS[name].verify is not None:
        pytest.importorskip("math_verify", reason="math-verify is not installed")
    assert GRADERS[name](gold, completion) is expected


def test_unknown_grader_is_an_error_that_names_the_known_ones():
    known = r"'final_number', .*, 'reasoning_gym:<dataset>' or 'picture:<folder>'"
    with pytest.raises(ValueError, match=f"grader is 'exact', needs {known}"):
        grader_named("exact")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\left\{1, \{2\}\right.}", r"\left\{1, \{2\}\right."),  # escaped braces are text
        (r"so \\boxed{7}", "7"),  # escaped twice
        (r"\boxed 8$ is it", "8"),
        (r"\fbox{9}", "9"),
        (r"{ \boxed{4}", "4"),  # an open brace elsewhere
        (r"\boxed{3} and \boxed{12", "3"),
        ("We get $x = 3$. The answer is $y = 4$, not $5$.", "y = 4"),
        (r"The answer is: \(7\).", "7"),
        (r"Answer: \[ \frac{3}{4} \]", r"\frac{3}{4}"),
        (r"The answer is \frac{3}{4}.", r"\frac{3}{4}"),
        ("The answer is 3 apples", "3"),
        ("The answer is Evelyn.", "Evelyn"),
        ("so $x = 3$ and 4", "4"),
        ("4, so $x = 3$", "x = 3"),
        (r"it costs \$5", "$5"),
        ("it is 1,800.5 then", "1,800.5"),
        ("nothing", None),
    ],
)
def test_answer_of_a_mathematics_completion_is_found(completion, answer):
    assert math_answer(completion) == answer


def test_only_the_end_of_a_long_completion_is_searched_for_its_box():
    assert math_answer(r"\boxed{1}" + "x" * MAX_CHARACTERS) is None
    assert math_answer("x" * MAX_CHARACTERS + r"\boxed{1}") == "1"


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("-3", Fraction(-3)),
        ("\u22123", Fraction(-3)),
        ("3,\\!110", Fraction(3110)),
        ("1{,}800", Fraction(1800)),
        (r"-\dfrac{3}{6}", Fraction(-1, 2)),
        (r"\frac34", Fraction(3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        ("6/4", Fraction(3, 2)),
        (".25", Fraction(1, 4)),
        (r"\$1.50", Fraction(3, 2)),
        (r"\frac{1}{0}", None),
        (r"3\%", None),
        ("1e5", None),
        ("x", None),
        ("9" * 101, None),
    ],
)
def test_exact_value_is_read_of_plain_numbers_and_fractions_alone(latex, value):
    assert exact_value(latex) == value


def test_comparable_text_drops_only_what_changes_no_meaning():
    assert comparable(r"\left( \dfrac{1}{2} ,\ x \right)") == comparable(r"(\frac12,x)")
    assert comparable("12 34") != comparable("1234")
    assert comparable("x y") == comparable(r"x~y")


@pytest.mark.parametrize(
    ("answer", "is_large"),
    [
        ("2^{2007}", False),
        ("x^{10000}", False),
        ("x^{10001}", True),
        ("2^{2^{10}}", False),  # 2^1024
        ("9^{9^{9}}", True),  # 9^9 is 387,420,489
        ("2^{2^{2^{2^{2}}}}", True),  # four exponents upon each other
        ("9" * 100, False),
        ("9" * 101, True),
        ("(" * 51 + ")" * 51, True),
        ("x+" * 501, True),
    ],
)
def test_caps_refuse_large_exponents_digits_nesting_and_length(answer, is_large):
    assert is_too_large(answer) is is_large


def test_gold_answer_over_a_cap_is_still_equal_to_itself():
    assert GRADERS["math_verify"]("x^{20000}", r"\boxed{x^{20000}}") is CORRECT


def plain_spellings(rng: random.Random) -> list[str]:
    """Some ways to write one random number or fraction."""
    n, d = rng.randint(-3000, 3000), rng.randint(1, 12)
    sign = "-" if n < 0 else ""
    k = rng.randint(1, 5)
    return [
        str(n),
        f"{n:,}",
        f"{n:,}".replace(",", r",\!"),
        f"{n}.0",
        f"{n / 8}",
        rf"{sign}\frac{{{abs(n)}}}{{{d}}}",
        rf"{sign}\dfrac{{{abs(n) * k}}}{{{d * k}}}",
        f"{n}/{d}",
        f"{n}.",
        f" {n} ",
    ]


@pytest.mark.parametrize("name", ["math_verify", "reference_extraction"])
def test_fast_path_says_what_the_worker_says_on_plain_numbers(name):
    # The worker's function is asked directly, without the fast path in front of it.
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    from posttrain.rewards.reference_extraction import _formula_grade
    from posttrain.rewards.symbolic import verify_by_math_verify

    verify = {"math_verify": verify_by_math_verify, "reference_extraction": _formula_grade}[name]
    rng = random.Random(0)
    n_decided = 0
    for _ in range(100):
        spellings = [*plain_spellings(rng), *plain_spellings(rng)]
        gold, answer = rng.choice(spellings), rng.choice(spellings)
        decided = GRADERS[name].decide(gold.strip(), answer)
        if decided is None or (name == "reference_extraction" and decided is CORRECT):
            continue  # nothing decided; or 3 = 300, a rule of the reference that stands before sympy
        n_decided += 1
        assert decided is verify(gold.strip(), answer), (gold, answer)
    assert n_decided > 20


PIECES = (
    *(r"\boxed{", r"\frac", "{", "}", "(", ")", "[", "]", ",", "$", "$$", r"\(", r"\)", r"\[", r"\]", "^", "_", "&"),
    *(
        "1",
        "99",
        ".",
        "/",
        "-",
        "!",
        "%",
        "=",
        "x",
        " ",
        "\n",
        r"\\",
        r"\sqrt",
        r"\left",
        r"\text{",
        r"\%",
        r"\$",
        "####",
    ),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        "answer is",
        "he answer is ",
        "```output\n",
        "final answer is $",
        "$. I hope",
    ),
    *("\u2212", "\u0661", "\x00", "\ud800", "1,800", "inf", "nan", "1e999"),
)


@pytest.mark.parametrize("name", GRADERS)
def test_bounded_part_of_a_grader_gives_a_grade_or_none_for_any_text(name):
    rng = random.Random(name)
    golds = ["18"] if name in ("final_number", "gsm8k_strict") else ["18", r"\frac{1}{2}", "(1,2)", "x+1", "1,800"]
    for _ in range(1000):
        text = "".join(rng.choices(PIECES, k=rng.choice((1, 3, 8, 20, 60))))
        grade = GRADERS[name].first_grade(rng.choice(golds), GRADERS[name].extract(text))
        assert grade is None or grade in set(Grade)
