"""The tables in the benchmarks' READMEs are those of the result files beside them."""

import json
from pathlib import Path

import pytest

from benchmarks.dpo_step import run as dpo_run
from benchmarks.logprob_core import run as logprob_run
from benchmarks.oreo_step import run as oreo_run
from benchmarks.packing import run as packing_run

RUNS = {"dpo_step": dpo_run, "logprob_core": logprob_run, "oreo_step": oreo_run, "packing": packing_run}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_table_in_the_readme_is_made_of_the_recorded_result(run):
    folder = Path(run.__file__).parent
    result = json.loads((folder / "results/cpu.json").read_text())
    table = run.table(result)
    assert len(result["cases"]) == len(run.CASES)
    assert table in (folder / "README.md").read_text()
    assert table == (folder / "results/cpu.md").read_text().strip()
