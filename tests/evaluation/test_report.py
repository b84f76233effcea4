"""The report as a reader gets it: a page that stands alone, with every part or a line saying why it is absent."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from posttrain.evaluation.comparison import compare
from posttrain.evaluation.records import load_run_records
from posttrain.evaluation.report import ReportConfig, report, write_report
from posttrain.evaluation.tables import points_with_interval
from tests.evaluation.synthetic_run import write_run, write_study

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects what the tests ask of a page, and fails on a tag closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.images, self.headings, self.sources = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.images += [found] if tag == "img" else []
        self.headings += [tag] if tag in ("h1", "h2", "h3") else []
        self.sources += [found[name] for name in ("src", "href", "srcset") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run", seed=0)


@pytest.fixture(scope="module")
def page_text(run):
    return write_report(ReportConfig(run=run)).read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_for_nothing_outside(page_text):
    page = Page(page_text)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert "<script" not in page_text and "url(" not in page_text and "@import" not in page_text
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.headings[0] == "h1" and page.headings.count("h1") == 1 and page.headings.count("h2") == 8


def test_every_picture_says_its_numbers_in_its_alt_text(page_text):
    images = Page(page_text).images
    # bars, compute, four stages, calibration, value along solutions
    assert len(images) == 8
    assert all(len(image["alt"]) > 40 for image in images)
    assert "oreo/greedy 78.3 [73.3, 82.6]" in images[0]["alt"]


def test_the_page_has_what_was_run_and_the_paired_difference_of_the_records(run, page_text):
    answers = load_run_records([run])
    difference = compare(answers["oreo/greedy", 1], answers["sft/greedy", 1]).difference
    cell = points_with_interval(difference).replace(" ", "&nbsp;")
    assert page_text.count(f"<td>{cell}</td>") == 2  # the summary and the comparison table
    assert "posttrain quickstart --seed 0" in page_text
    assert "versions.torch</th><td>2.13.0" in page_text


def test_the_markdown_results_hold_both_tables(run, page_text):
    summary, paired = (run / "report" / "results.md").read_text(encoding="utf-8").split("\n\n")
    assert summary.splitlines()[2].startswith("| sft/greedy | 1 | 300 | 1 | 70.3 [64.9, 75.2] |")
    assert "| oreo/greedy against sft/greedy | 300 | +8.0 [" in paired


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run, page_text, tmp_path):
    again = write_report(ReportConfig(run=run, output=tmp_path))
    assert again.read_text(encoding="utf-8") == page_text
    assert (tmp_path / "calibration.png").read_bytes() == (run / "report" / "calibration.png").read_bytes()


@pytest.mark.slow
def test_a_study_pools_its_seeds_and_shows_the_interval_over_them(tmp_path):
    text = write_report(ReportConfig(run=write_study(tmp_path / "study", seeds=3))).read_text(encoding="utf-8")
    Page(text)
    assert "300 problems, 3 training seeds" in text
    assert "interval over seeds (t)" in text
    assert "Dots are single seeds" in text
    assert "posttrain quickstart --seed 0; posttrain quickstart --seed 1; posttrain quickstart --seed 2" in text


def test_parts_without_their_file_are_left_out_with_a_line_naming_it(tmp_path):
    run = tmp_path / "run"
    (run / "sft").mkdir(parents=True)
    (run / "sft" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5}\n')
    text = write_report(ReportConfig(run=run)).read_text(encoding="utf-8")
    page = Page(text)
    assert page.images == []
    for line in (
        "Left out: run.json not found",
        "Left out: answers.jsonl not found",
        "Left out: values.jsonl not found",
        "sft/metrics.jsonl holds none of the keys",
        "Not found: rejection_sampling/metrics.jsonl, dpo/metrics.jsonl, oreo/metrics.jsonl.",
    ):
        assert line in text
    assert (run / "report" / "results.md").read_text() == "No answers on file.\n"


def test_the_command_prints_the_tables_and_where_the_page_is(tmp_path, capsys):
    write_answers = write_run(tmp_path / "run", seed=1)
    for name in ("values.jsonl", "oreo/metrics.jsonl", "sft/metrics.jsonl", "dpo/metrics.jsonl"):
        (write_answers / name).unlink()
    report(ReportConfig(run=write_answers, output=tmp_path / "page"))
    printed = capsys.readouterr().out
    assert "| oreo/greedy | 1 | 300 |" in printed
    assert printed.endswith(f"wrote {tmp_path / 'page' / 'index.html'}\n")


def test_solutions_are_taken_from_the_seeds_in_turn(tmp_path):
    row = {"tokens": ["1", "2", "3"], "values": [0.2, 0.3, 0.0], "is_action": [True] * 3, "step_ends": [0]}
    on_file = {"seed-0": ("a-right", "a-right-2", "a-wrong"), "seed-1": ("b-right",), "seed-2": ("c-right", "c-wrong")}
    for folder, names in on_file.items():
        (tmp_path / folder).mkdir()
        solutions = [row | {"task_id": name, "grade": "correct" if "right" in name else "wrong"} for name in names]
        (tmp_path / folder / "values.jsonl").write_text("".join(json.dumps(s) + "\n" for s in solutions))
    text = write_report(ReportConfig(run=tmp_path)).read_text(encoding="utf-8")
    assert re.findall("<h3>(.*?)</h3>", text) == [
        "a-right, seed-0: correct",
        "b-right, seed-1: correct",
        "a-wrong, seed-0: wrong",
        "c-wrong, seed-2: wrong",
    ]
    assert "solutions of each grade on file, the seeds taking turns, not a selection" in text


def test_text_from_files_cannot_break_the_page(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"command": "<script>alert(1)</script>"}))
    row = {"task_id": "<img src=x>", "grade": "wrong", "tokens": ["</pre><b>", "1", "2"], "values": [0.2, 0.3, 0.0]}
    (run / "values.jsonl").write_text(json.dumps(row | {"is_action": [True, True, True], "step_ends": [0]}) + "\n")
    text = write_report(ReportConfig(run=run)).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text and "<img src=x>" not in text
    assert len(page.images) == 2  # calibration and the value along the one solution


def test_without_matplotlib_the_error_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'posttrain\[report\]'"):
        write_report(ReportConfig(run=run, output=tmp_path))
