"""Keep the runs of `posttrain control` in the repository with their pictures, and the tables of READMEs equal to them.

python evals/record_control.py intrl=runs/intrl beer/finger-spin=runs/finger    copies, then tables and pictures
python evals/record_control.py                                                  only tables and pictures

A run goes to evals/control/<name>; the README of its recipe has a pair of marks with that name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from posttrain.evaluation.run_folder import copy_files
from posttrain.evaluation.study_files import METRICS, RESULTS, STUDY, read_study
from posttrain.evaluation.study_report import markdown_tables, write_study_report
from posttrain.evaluation.tables import replace_between
from posttrain.provenance import RUN_CARD

HERE = Path(__file__).resolve().parent
RECORDS, RECIPES = HERE / "control", HERE.parent / "recipes"
KEPT = (RUN_CARD, "run-*.json", STUDY, RESULTS, f"**/{METRICS}", "**/arrays.safetensors", "**/best.jsonl")
END = "<!-- end of results -->"


def begin_of(name: str) -> str:
    """The line of a README after which the tables of this record stand."""
    return f"<!-- results of {name}: python evals/record_control.py -->"


def draw(name: str) -> None:
    """The pictures of a record, beside its files; the page itself is the reader's to write."""
    with TemporaryDirectory() as folder:
        write_study_report(RECORDS / name, Path(folder))
        copy_files(Path(folder), RECORDS / name, ("*.png",))


def fill_readme(name: str) -> None:
    """Put the tables of a record into the README that has its mark. Raises ValueError when none has."""
    readmes = [path for path in sorted(RECIPES.glob("*/README.md")) if begin_of(name) in path.read_text("utf-8")]
    if not readmes:
        raise ValueError(
            f"no README under {RECIPES.name} has the line {begin_of(name)!r}: where do its tables belong?"
        )
    for path in readmes:
        text = path.read_text(encoding="utf-8")
        tables = markdown_tables(read_study(RECORDS / name)).rstrip()
        path.write_text(replace_between(text, begin_of(name), END, tables), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN", help="what the record is called, and its run folder")
    given = dict(entry.split("=", 1) for entry in parser.parse_args().runs)
    for name, run in given.items():
        copy_files(Path(run), RECORDS / name, KEPT)
    for path in sorted(RECORDS.glob(f"**/{STUDY}")):
        name = path.parent.relative_to(RECORDS).as_posix()
        draw(name)
        fill_readme(name)


if __name__ == "__main__":
    main()
