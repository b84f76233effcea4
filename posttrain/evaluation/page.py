"""A self-contained HTML page: styles inside, pictures as data, no script, light and dark by the reader's setting."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c1c1c; --soft: #5a5a5a; --line: #d9d9d9; --band: #f5f6f7;
        --link: #005a9c; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #e8e8e8; --soft: #a9adb3; --line: #3a3e44; --band: #1f2226; --link: #7cc0f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 74rem; background: var(--ground); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 48rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .55rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; white-space: nowrap; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
             border-radius: 6px; padding: 6px; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 48rem; margin-top: .4rem; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .88rem; }
pre.solution { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; padding: .7rem .9rem;
               margin: .3rem 0; border: 1px solid var(--line); border-radius: 6px; background: var(--band); }
pre.solution span, .scale span { background: var(--light); color: #111111; padding: .12em 0; }
pre.solution span { margin-right: 1px; }
@media (prefers-color-scheme: dark) {
  pre.solution span, .scale span { background: var(--dark); color: #f2f2f2; }
}
pre.solution i { font-style: normal; color: var(--soft); }
pre.solution b { font-weight: 400; color: var(--soft); }
.solutions { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1rem; }
.scale { display: flex; max-width: 26rem; border: 1px solid var(--line); }
.scale span { flex: 1; text-align: center; font-size: .85rem; padding: .2rem 0; }
summary { cursor: pointer; color: var(--link); margin: .4rem 0; }
.absent { color: var(--soft); }
@media print { pre.solution span { print-color-adjust: exact; } }
"""

Section = tuple[str, str, str]  # id, heading, HTML body


def html_page(title: str, lead: str, sections: Sequence[Section], *, styles: str = "") -> str:
    """The whole page; `lead` and the section bodies are HTML, `title` and headings are text, `styles` more CSS."""
    links = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h">\n'
        f'<h2 id="{anchor}-h">{escape(heading)}</h2>\n{html}\n</section>'
        for anchor, heading, html in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}{styles}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n{lead}\n</header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def picture(path: Path, *, alt: str, caption: str) -> str:
    """A PNG inside the page, with the text that stands for it and the caption under it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def absent(text: str) -> str:
    """A line that says what is missing and why."""
    return f'<p class="absent">{escape(text)}</p>'


def fact_table(facts: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in facts)
    return f'<div class="scroll"><table class="facts"><tbody>\n{rows}\n</tbody></table></div>'
