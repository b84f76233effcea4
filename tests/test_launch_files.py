"""The files in launch/ start what they say; slurm's own commands are stood in for by scripts that record."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.serve.serve_config import ServeConfig

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


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def needed(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"needs {program}")
    return path


def test_serve_script_passes_its_flags_to_the_server_of_its_environment(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    write_script(tmp_path / "bin/posttrain", PYTHON)
    write_script(tmp_path / "bin/python", "#!/bin/bash\n")
    finished = run(
        ["bash", "launch/serve.sh", "--model", "a b", "--value_model", "c"], VENV=str(tmp_path), PYTHON="none"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "serve --model a b --value_model c"


def test_serve_script_without_a_model_says_how_it_is_used():
    finished = run(["bash", "launch/serve.sh"])
    assert finished.returncode == 2
    assert finished.stderr.startswith("usage: bash launch/serve.sh --model POLICY")


def test_unit_file_is_one_that_systemd_reads(tmp_path: Path):
    program = needed("systemd-analyze")
    unit = (REPOSITORY / "launch/posttrain-serve.service").read_text()
    server = write_script(tmp_path / "posttrain", PYTHON)
    copy = tmp_path / "posttrain-serve.service"
    copy.write_text(unit.replace("/srv/posttrain/.venv/bin/posttrain", str(server)))
    finished = run([program, "verify", str(copy)])
    assert (finished.returncode, finished.stderr) == (0, "")


def test_stopping_waits_longer_than_the_server_drains():
    drain_s = ServeConfig(model="policy").drain_s
    unit = (REPOSITORY / "launch/posttrain-serve.service").read_text()
    assert float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > drain_s
    container = (REPOSITORY / "launch/Containerfile").read_text()
    assert float(re.search(r"podman stop --time (\d+)", container)[1]) > drain_s


def config_of(page: str, language: str) -> str:
    text = (REPOSITORY / page).read_text()
    return re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


def test_nginx_reads_the_config_of_the_page(tmp_path: Path):
    program = needed("nginx")
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = folders + config_of("docs/scaling_serving.md", "nginx").replace("listen 80;", "listen 127.0.0.1:18080;")
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{http}}}\n")
    finished = run([program, "-t", "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")])
    assert finished.returncode == 0, finished.stderr


def test_haproxy_reads_the_config_of_the_page(tmp_path: Path):
    program = needed("haproxy")
    (tmp_path / "haproxy.cfg").write_text(config_of("docs/scaling_serving.md", "haproxy"))
    finished = run([program, "-c", "-f", str(tmp_path / "haproxy.cfg")], POSTTRAIN_API_KEY="0123456789abcdef")
    assert finished.returncode == 0, finished.stderr
