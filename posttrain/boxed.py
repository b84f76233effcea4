r"""The boxed answers of LaTeX text, found in one pass over it."""

from __future__ import annotations

import re

# A box that opens, \boxed 5 without braces, any other escaped character, a brace.
# A second backslash is that of text escaped twice.
_TOKEN = re.compile(r"\\\\?(?:boxed|fbox)\s*(?P<opener>\{)|\\\\?boxed\s*(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces close, or of the last `\boxed 5`.

    None without one. "Last" is the one that opens last, so of nested boxes it is the inner one. An escaped brace
    (`\{`) is text. A box that the end of the text cuts off is none.
    """
    last_start, last_end = -1, -1
    open_braces: list[int] = []  # where the content of each open box starts, -1 for an open brace that is no box's
    for token in _TOKEN.finditer(text):
        start, end = -1, -1
        if token["opener"]:
            open_braces.append(token.end())
        elif token["bare"]:
            start, end = token.span("bare")
        elif token[0] == "{":
            open_braces.append(-1)
        elif token[0] == "}" and open_braces:
            start, end = open_braces.pop(), token.start()
        if start > last_start:
            last_start, last_end = start, end
    return text[last_start:last_end].strip() if last_start >= 0 else None
