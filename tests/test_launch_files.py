"""The files in launch/ start what they say; slurm's own commands are stood in for by scripts that record."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# For every node of the job, as srun does, with the variables that slurm sets.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for SLURM_NODEID in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do export SLURM_NODEID; "$@" || exit; done
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[7-8]" ]] && printf 'node7\\nnode8\\n'
"""
PYTHON = """#!/bin/bash
echo "$@"
"""


def write_script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_slurm_file_starts_one_launcher_per_node_with_its_rank(tmp_path: Path):
    write_script(tmp_path / "srun", SRUN)
    write_script(tmp_path / "scontrol", SCONTROL)
    python = write_script(tmp_path / "python", PYTHON)
    job = {
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_GPUS_ON_NODE": "4",
    }
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python), "ENGINE": "zero3", **job}
    command = ["bash", "launch/multi_node/train.slurm", "oreo", "--config", "a b.yaml"]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    expected = (
        "-m accelerate.commands.launch --config_file launch/accelerate/zero3.yaml --num_machines 2 "
        "--machine_rank {rank} --num_processes 8 --main_process_ip node7 --main_process_port 21234 "
        "--deepspeed_multinode_launcher standard -m posttrain oreo --config a b.yaml"
    )
    assert finished.stdout.splitlines() == [expected.format(rank=0), expected.format(rank=1)]


@pytest.mark.parametrize("script", ["accelerate.sh", "torchrun.sh"])
def test_launch_says_which_variable_is_missing(script: str):
    given = {"PATH": os.environ["PATH"], "N_HOSTS": "2", "PROCESSES_PER_HOST": "8", "MAIN_HOST": "node-1"}
    finished = subprocess.run(
        ["bash", f"launch/multi_node/{script}", "oreo"], cwd=REPOSITORY, env=given, capture_output=True, text=True
    )
    assert finished.returncode != 0
    assert "set HOST_RANK to this host: 0 on MAIN_HOST, 1, 2, ... on the others" in finished.stderr
