"""Keep the runs of recipes/selftok in the repository, with their figures, and the tables of its README equal to them.

python evals/record_selftok.py --runs runs/selftok    copies, then tables and figures
python evals/record_selftok.py                        only tables and figures

The answers are gzipped; `zcat` shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from posttrain.evaluation.figures import figure, legend_below
from posttrain.evaluation.picture_table import gain_table, picture_table
from posttrain.evaluation.records import (
    ANSWERS,
    MethodBudget,
    answers_file,
    group_records,
    read_records,
    split_method,
    write_packed_records,
)
from posttrain.evaluation.run_folder import copy_files, seed_folders
from posttrain.evaluation.tables import Table, replace_between
from posttrain.provenance import RUN_CARD
from posttrain.schema import AnswerRecord
from posttrain.training.metrics import METRICS

HERE = Path(__file__).resolve().parent
STUDY = HERE / "selftok"
README = HERE.parent / "recipes" / "selftok" / "README.md"
BEGIN, END = "<!-- results: python evals/record_selftok.py -->", "<!-- end of results -->"
NAMES = {
    "selftok": "Selftok in small",
    "no_schedule": "no schedule",
    "cells": "cells",
    "shifted": "shifted patches",
}
COPIED = (RUN_CARD, f"*/{RUN_CARD}", f"*/{METRICS}", "*.summary.json", "pictures.png")
KEPT = ("greedy", "sample", "best_of_n", "value_rerank")
SCHEDULES = "schedules"
BEFORE, AFTER, OFFLINE = ("sft/sample", 1), ("pg/sample", 1), ("oreo/sample", 1)
METHODS = (
    *((f"{policy}/{how}", 1) for policy in ("sft", "pg", "oreo") for how in ("sample", "greedy")),
    *((f"{policy}/best_of_n", 8) for policy in ("sft", "pg", "oreo")),
    *((f"{policy}/value_rerank", 1) for policy in ("sft", "pg", "oreo")),
)
PAIRS = (
    (AFTER, BEFORE),
    (("pg/greedy", 1), ("sft/greedy", 1)),
    (OFFLINE, BEFORE),
    (AFTER, OFFLINE),
    (("sft/best_of_n", 8), BEFORE),
    (("sft/value_rerank", 1), BEFORE),
)


def record_run(run: Path, kept: Path) -> None:
    """Copy one seed's cards, curves and contact sheet, and the answers that the tables compare."""
    copy_files(run, kept, COPIED)
    answers = [record for record in read_records(run / ANSWERS) if split_method(record.method)[1] in KEPT]
    write_packed_records(kept / f"{ANSWERS}.gz", answers)


def studies() -> list[str]:
    """Tokenizers that are on file."""
    return [name for name in NAMES if (STUDY / name).is_dir()]


def answers_of(name: str) -> list[AnswerRecord]:
    return [record for folder in seed_folders(STUDY / name) for record in read_records(answers_file(folder))]


def tables() -> Iterator[str]:
    """What the README shows."""
    records = answers_of("selftok")
    known = {(record.method, record.budget) for record in records}
    yield "### Held-out prompts, Selftok in small: pictures that pass every check\n"
    yield picture_table(records, [method for method in METHODS if method in known]).to_markdown()
    yield gain_table(records, [pair for pair in PAIRS if known.issuperset(pair)]).to_markdown()
    yield distinct_table(records, [method for method in (BEFORE, AFTER, OFFLINE) if method in known]).to_markdown()
    yield "### Four tokenizers\n"
    yield tokenizer_table().to_markdown()
    yield "### Which tokens a noise level sees, seed 0\n"
    yield schedule_table().to_markdown()


def distinct_table(records: Sequence[AnswerRecord], methods: Sequence[MethodBudget]) -> Table:
    """How many of a prompt's samples are different, token by token; the mean over prompts and seeds."""
    rows = []
    for method, own in group_records(records).items():
        by_prompt: dict[tuple[int, str], list[str]] = {}
        for record in own if method in methods else ():
            by_prompt.setdefault((record.seed, record.task_id), []).append(record.text)
        if by_prompt:
            distinct = mean(len(set(texts)) for texts in by_prompt.values())
            rows.append((method[0], f"{distinct:.1f} of {max(map(len, by_prompt.values()))}"))
    return Table(("method", "different pictures of a prompt"), tuple(sorted(rows, reverse=True)))


def tokenizer_table() -> Table:
    """What each tokenizer's renderer keeps, and the gain of the policy gradient on its tokens."""
    header = ("tokenizer", "seeds", "renderer, strict %", "PSNR, dB", "start, %", "after, %", "gain, points")
    rows = []
    for name in studies():
        seeds = seed_folders(STUDY / name)
        ends = [_curve(folder, "tokenizer")[-1] for folder in seeds]
        found = gain_table(answers_of(name), [(AFTER, BEFORE)]).rows[0]
        means = [picture_table(answers_of(name), [method]).rows[0][-2] for method in (BEFORE, AFTER)]
        rows.append(
            (
                NAMES[name],
                str(len(seeds)),
                ", ".join(f"{100 * end['eval_strict']:.1f}" for end in ends),
                f"{mean(end['eval_psnr'] for end in ends):.1f}",
                *means,
                f"{found[1]} {found[2]} ({found[3]})",
            )
        )
    return Table(header, tuple(rows))


def schedule_table() -> Table:
    """What the renderer keeps under each schedule, and the error of pictures from the first tokens alone."""
    folders = {"stages (2, 2, 2, 2, 1)": STUDY / "selftok" / "seed-0" / "tokenizer"}
    folders |= {folder.parent.name: folder for folder in sorted((STUDY / SCHEDULES).glob("*/seed-0"))}
    shown = (0, 3, 6, 9)
    rows = []
    for name, folder in folders.items():
        end = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
        errors = (f"{end[f'eval_prefix_mse_{k}']:.3f}" for k in shown)
        n_codes = f"{end['eval_n_codes_used']:.0f}, {end['eval_position_perplexity']:.0f}"
        rows.append((name, f"{100 * end['eval_strict']:.1f}", n_codes, *errors))
    header = ("schedule", "strict, %", "codes used, per position", *(f"error from {k} tokens" for k in shown))
    return Table(header, tuple(rows))


def draw_rewards(path: Path) -> None:
    """The share of sampled pictures that pass every check, by round of the policy gradient; a line for each seed."""
    with figure(path, 1, 1, width=6.4, height=4.2) as grid:
        (axes,) = grid.flat
        for place, name in enumerate(studies()):
            for seed, folder in enumerate(seed_folders(STUDY / name)):
                points = [row for row in _curve(folder, "pg") if "reward/strict" in row]
                label = NAMES[name] if seed == 0 else None
                y = [row["reward/strict"] for row in points]
                axes.plot([row["step"] for row in points], y, color=f"C{place}", alpha=0.8, label=label)
        axes.set(xlabel="round", ylabel="pictures that pass every check", ylim=(0, 1))
        axes.set_title("Reward on training prompts")
        legend_below(axes)


def draw_prefixes(path: Path) -> None:
    """The error of pictures rendered from the first tokens alone, by how many; the mean over seeds."""
    with figure(path, 1, 1, width=6.4, height=4.2) as grid:
        (axes,) = grid.flat
        for place, name in enumerate(studies()):
            ends = [_curve(folder, "tokenizer")[-1] for folder in seed_folders(STUDY / name)]
            n_tokens = sum(key.startswith("eval_prefix_mse_") for key in ends[0]) - 1
            error = np.array([[end[f"eval_prefix_mse_{k}"] for k in range(n_tokens + 1)] for end in ends])
            axes.plot(range(n_tokens + 1), error.mean(0), marker="o", color=f"C{place}", label=NAMES[name])
        axes.set(xlabel="tokens shown, in the order of generation", ylabel="mean squared error", ylim=(0, None))
        axes.set_title("Progressive decoding")
        legend_below(axes)


def _curve(folder: Path, stage: str) -> Sequence[dict[str, float]]:
    lines = (folder / stage / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="the output folder of recipes/selftok/run.py")
    parser.add_argument("--schedules", type=Path, help="a folder SCHEDULE/seed-N of posttrain vision train --schedule")
    given = parser.parse_args()
    if given.runs is not None:
        for name in (name for name in NAMES if (given.runs / name).is_dir()):
            for folder in seed_folders(given.runs / name):
                if (folder / "pictures.png").is_file():  # the last stage
                    record_run(folder, STUDY / name / folder.name)
    if given.schedules is not None:
        copy_files(given.schedules, STUDY / SCHEDULES, [f"*/seed-0/{name}" for name in (METRICS, RUN_CARD)])
    draw_rewards(STUDY / "rewards.png")
    draw_prefixes(STUDY / "prefixes.png")
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_between(text, BEGIN, END, "\n".join(tables())), encoding="utf-8")


if __name__ == "__main__":
    main()
