"""`posttrain inspect credit`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.data.fields import RowError
from posttrain.evaluation.credit import AnswerCredits, TokenCredit, panels_of
from posttrain.evaluation.credit_html import credit_page
from posttrain.evaluation.credit_text import colour_legend, coloured_answer
from posttrain.evaluation.inspect_credit import parse_answers
from tests.evaluation.tiny_policy import word_tokenizer, write_policy, write_value_model
from tests.models.tiny_models import write_policy as write_other_policy

PAIR = {"prompt": "2 +1 \n", "chosen": "a 3 \n #### 3", "rejected": "a 2 \n #### 2"}
COMPLETION = {"prompt": "2 +1 \n", "completion": "a 3 \n #### 3"}
TRAJECTORY = {
    "task_id": "t",
    "prompt": "2 +1 \n",
    "input_ids": [6, 9, 2, 8, 7, 1],  # 2 +1 \n a 3 <eos>
    "action_spans": [[3, 6]],
    "reward": 1.0,
    "finish_reason": "stop",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    policy = write_policy(folder / "policy", seed=1)
    return {
        "model": policy,
        "reference": write_policy(folder / "reference", seed=0),
        "value_model": write_value_model(folder / "value", policy),
    }


def write_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(source: Path, folders: dict[str, Path], *more: str) -> int:
    flags = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    return main(["inspect", "credit", str(source), *flags, "--device", "cpu", *more])


def without_value(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if name != "value_model"}


def test_table_lists_the_actions_alone_and_its_sum_is_the_printed_return(tmp_path, folders, capsys):
    assert run(write_rows(tmp_path / "rows.jsonl", TRAJECTORY), folders) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    tokens = [line for line in lines if line and line[0] in ("3", "4", "5")]
    assert [line[-1] for line in tokens] == ["'a'", "'3'", "'<eos>'"]
    implicit = [float(line[3]) for line in tokens]
    total = next(line for line in lines if line[:1] == ["sum"])
    h = float(re.search(r"h = beta \* sum rho = .* = ([+-][\d.]+)", out)[1])
    # Each printed number is rounded to 1e-4, so a sum of three errs by at most 1.5e-4.
    assert sum(implicit) == pytest.approx(float(total[1]), abs=2e-4)
    assert float(total[1]) == h
    # R − V(s_0), with V(s_0) the value before the first action.
    assert float(total[2]) == pytest.approx(1.0 - float(tokens[0][4]), abs=2e-4)


def test_both_answers_of_a_preference_row_are_shown_with_the_margin_between_them(tmp_path, folders, capsys):
    assert run(write_rows(tmp_path / "pairs.jsonl", PAIR), without_value(folders)) == 0
    out = capsys.readouterr().out
    assert "pairs.jsonl:1, chosen\n" in out
    assert "pairs.jsonl:1, rejected\n" in out
    chosen, rejected = (float(h) for h in re.findall(r"sum rho = .* = ([+-][\d.]+)", out))
    margin = float(re.search(r"margin .* = ([+-][\d.]+)", out)[1])
    assert margin == pytest.approx(chosen - rejected, abs=2e-4)


def test_answers_of_all_three_forms_of_row_are_read():
    assert [row.reward for row in parse_answers(TRAJECTORY, "f:1")] == [1.0]
    assert [row.completion for row in parse_answers(COMPLETION, "f:1")] == ["a 3 \n #### 3"]
    assert [row.where for row in parse_answers(PAIR, "f:1")] == ["f:1, chosen", "f:1, rejected"]
    with pytest.raises(RowError, match="f:1: completion: is missing"):
        parse_answers({"prompt": "2 +1"}, "f:1")


def test_n_rows_are_shown(tmp_path, folders, capsys):
    source = write_rows(tmp_path / "rows.jsonl", COMPLETION, COMPLETION, COMPLETION)
    assert run(source, without_value(folders), "--n", "2") == 0
    assert re.findall(r"^rows\.jsonl:(\d)$", capsys.readouterr().out, re.MULTILINE) == ["1", "2"]


class Page(HTMLParser):
    """Titles of the coloured tokens, what would be fetched, and the cells of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self._is_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.titles += [named["title"]] if tag == "span" and "title" in named else []
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        self.fetched += [tag] if tag in ("script", "link", "img", "iframe") else []
        self._is_cell = tag == "td"

    def handle_data(self, data):
        self.cells += [data] if self._is_cell else []
        self._is_cell = False


def test_page_fetches_nothing_and_tells_every_number_twice_by_title_and_by_table(tmp_path, folders):
    page_file = tmp_path / "new" / "credit.html"
    assert run(write_rows(tmp_path / "rows.jsonl", TRAJECTORY), folders, "--html", str(page_file)) == 0
    page = Page(page_file.read_text(encoding="utf-8"))
    assert page.fetched == []
    # Three actions, each in the three colourings: implicit, explicit, V.
    assert len(page.titles) == 9
    named = [dict(part.rsplit(" ", 1) for part in title.split(", ")) for title in page.titles[:3]]
    assert [set(names) for names in named] == [{"log π", "log π_ref", "implicit", "V", "explicit"}] * 3
    assert {number for names in named for number in names.values()} <= set(page.cells)
    h = sum(float(names["implicit"]) for names in named)
    assert any(cell.startswith(("+", "-")) and float(cell) == pytest.approx(h, abs=3e-5) for cell in page.cells)


def made_up(tokens: tuple[str, ...], implicit: tuple[float, ...]) -> AnswerCredits:
    """An answer after a prompt of one token."""
    credits = tuple(TokenCredit(i, -1.0, -1.0, x, None, None) for i, x in enumerate(implicit, start=1))
    return AnswerCredits("f:1", ("q", *tokens), credits, 0.1, sum(implicit), None)


def test_tokens_cannot_break_the_page():
    text = credit_page([[made_up(("</pre>", "<script>"), (0.1, -0.1))]], title="<b>", facts=[("policy", "<i>x")])
    assert "<script>" not in text
    assert text.count("</pre>") == 1
    assert "<b>" not in text
    assert "<i>x" not in text


def test_ground_is_orange_below_blue_above_and_none_at_zero():
    answer = made_up(("a", "b", "c"), (-1.0, 0.0, 1.0))
    text = coloured_answer(answer, panels_of([answer]))
    ink = "\x1b[38;5;16m"
    assert f"\x1b[48;5;208m{ink}a\x1b[0m" in text  # xterm's orange
    assert "\x1b[0mb\x1b[0m" in text
    assert f"\x1b[48;5;75m{ink}c\x1b[0m" in text  # xterm's sky blue
    page = credit_page([[answer]], title="t", facts=[])
    grounds = dict(re.findall(r'--light:(#\w+);[^>]*title="[^"]*">(\w)</span>', page))
    assert {token: ground for ground, token in grounds.items()} == {"a": "#f0963c", "b": "#fafafa", "c": "#6eafe1"}
    assert "-0.333" in colour_legend(panels_of([answer])[0])


def test_control_characters_and_colours_do_not_run_over_the_terminal():
    answer = made_up(("a\nb", "\x1b[2J"), (-1.0, 1.0))
    text = coloured_answer(answer, panels_of([answer]))
    assert "\x1b[2J" not in text
    assert "\x1b[0m\n" in text  # the colour ends before the line does


def test_missing_file_is_named_before_any_model_is_loaded(tmp_path, capsys):
    nowhere = {"model": tmp_path / "no_model", "reference": tmp_path / "no_model"}
    assert run(tmp_path / "none.jsonl", nowhere) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_row_without_an_action_is_named(tmp_path, folders, capsys):
    empty = {"task_id": "t", "prompt": "2 +1", "completion": "", "reward": 0, "finish_reason": "length"}
    assert run(write_rows(tmp_path / "rows.jsonl", empty), without_value(folders)) == 2
    assert "rows.jsonl:1: completion: holds no token, expected at least one action" in capsys.readouterr().err


def test_reference_of_another_size_of_vocabulary_is_refused(tmp_path, folders, capsys):
    other = write_other_policy(tmp_path / "other", "llama")  # 37 tokens
    word_tokenizer().save_pretrained(other)
    source = write_rows(tmp_path / "rows.jsonl", TRAJECTORY)
    assert run(source, {"model": folders["model"], "reference": other}) == 2
    assert "policy has 11 tokens, reference 37: it must be the model that" in capsys.readouterr().err


def test_reference_with_other_tokens_under_the_same_ids_is_refused(tmp_path, folders, capsys):
    other = write_policy(tmp_path / "other", seed=0)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["+1"] = vocabulary["+1"], vocabulary["a"]  # ids 8 and 9
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    source = write_rows(tmp_path / "rows.jsonl", TRAJECTORY)
    assert run(source, {"model": folders["model"], "reference": other}) == 2
    assert "token id 8 is 'a' to the model and '+1' to the reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "number", "message"), [("--beta", "0", "must be above 0"), ("--n", "0", "at least 1")]
)
def test_beta_and_n_must_be_positive(tmp_path, folders, capsys, flag, number, message):
    assert run(tmp_path / "rows.jsonl", without_value(folders), flag, number) == 2
    assert message in capsys.readouterr().err


def test_the_policy_against_itself_has_a_return_of_zero(tmp_path, folders, capsys):
    source = write_rows(tmp_path / "rows.jsonl", COMPLETION)
    assert run(source, {"model": folders["model"], "reference": folders["model"]}) == 0
    assert "sum rho = 0.1 * +0.0000 = +0.0000" in capsys.readouterr().out
