"""The tables in the benchmarks' READMEs are those of the result files beside them."""

import json
from pathlib import Path

import pytest

from benchmarks.ddpg import run as ddpg_run
from benchmarks.dpo_step import run as dpo_run
from benchmarks.gflownet import run as gflownet_run
from benchmarks.grading import gold as grading_gold
from benchmarks.grading import run as grading_run
from benchmarks.logprob_core import run as logprob_run
from benchmarks.oreo_step import run as oreo_run
from benchmarks.packing import run as packing_run
from benchmarks.search_cache import run as search_cache_run
from benchmarks.server_load import run as server_load_run
from benchmarks.server_overhead import run as server_overhead_run

RUNS = {
    "ddpg/results/cpu": ddpg_run,
    "dpo_step/results/cpu": dpo_run,
    "gflownet/results/cpu": gflownet_run,
    "grading/results/cpu": grading_run,
    "grading/results/gold": grading_gold,
    "logprob_core/results/cpu": logprob_run,
    "oreo_step/results/cpu": oreo_run,
    "packing/results/cpu": packing_run,
    "search_cache/results/cpu": search_cache_run,
    "server_load/results/cpu": server_load_run,
    "server_overhead/results/cpu": server_overhead_run,
}


@pytest.mark.parametrize("name", RUNS)
def test_table_in_the_readme_is_made_of_the_recorded_result(name):
    run = RUNS[name]
    folder = Path(run.__file__).parent
    recorded = folder.parent / name
    result = json.loads(recorded.with_suffix(".json").read_text())
    table = run.table(result)
    assert len(result["cases"]) == len(run.CASES)
    assert table in (folder / "README.md").read_text()
    assert table == recorded.with_suffix(".md").read_text().strip()
