"""Completions that were written to hang, crash or fill a grader: 200 of them from 20 families, the same each time."""

from __future__ import annotations

from collections.abc import Callable

SIZES = (1, 2, 3, 5, 9, 20, 60, 400, 9_000, 300_000)  # how bad; the last make strings of megabytes

FAMILIES: dict[str, Callable[[int], str]] = {
    "power tower": lambda n: "9" + "^{9" * n + "}" * n,
    "chained powers": lambda n: "(" * n + "10" + "^{999})" * n,
    "flat powers": lambda n: "^".join(["9"] * (n + 1)),
    "factorials": lambda n: "9" * min(n, 30) + "!" * n,
    "binomials": lambda n: rf"\binom{{10^{n}}}{{10^{max(n - 1, 1)}}}",
    "sums": lambda n: rf"\sum_{{k=1}}^{{10^{{{n}}}}} \frac{{k!}}{{k^k}}",
    "integrals": lambda n: rf"\int_0^1 x^{{x^{{{n}}}}} \sin(x^x)^{{{n}}} dx",
    "products": lambda n: rf"\prod_{{i=1}}^{{{10 * n}}} (x+i)^{{{n}}}",
    "nested fractions": lambda n: r"\frac{1}{1+" * n + "1" + "}" * n,
    "nested roots": lambda n: r"\sqrt{2+" * n + "2" + "}" * n,
    "nested brackets": lambda n: "(" * n + "1" + ")" * n,
    "open brackets": lambda n: r"\left(" * n + r"\frac{" * n,
    "boxes in boxes": lambda n: r"\boxed{" * n + "1" + "}" * n,
    "boxes cut off": lambda n: r"\boxed{1" * n,
    "long digits": lambda n: "7" * n + "." + "3" * n,
    "unicode digits": lambda n: "\u0661\uff12\u0969\u00b2\U0001d7d9" * n,
    "long sets": lambda n: r"\{" + ",".join(f"x_{{{i}}}" for i in range(n)) + r"\}",
    "matrices": lambda n: r"\begin{pmatrix}" + r"\\".join(["1&x"] * n) + r"\end{pmatrix}",
    "python": lambda n: "__import__('os')._exit(1);" * n,
    "dollars and stops": lambda n: "$." * n + "\x00\u202e\ud800" + "$" * n,
}


def hostile_answers() -> list[str]:
    """The answers themselves, without a box."""
    return [family(size) for family in FAMILIES.values() for size in SIZES]
