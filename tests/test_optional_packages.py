"""The verbs load with the core packages alone, as after `pip install posttrain`."""

import subprocess
import sys
import tomllib
from pathlib import Path

from posttrain.cli import VERBS

REPOSITORY = Path(__file__).resolve().parent.parent
OPTIONAL = (
    "Box2D",
    "alfworld",
    "deepspeed",
    "dm_control",
    "gguf",
    "gymnasium",
    "math_verify",
    "matplotlib",
    "mujoco",
    "peft",
    "rdkit",
    "reasoning_gym",
    "vllm",
)

LOAD_ALL = """
import importlib, sys
for package in sys.argv[1].split(","):
    sys.modules[package] = None  # as if it were not installed: both import and find_spec say so
for target in sys.argv[2].split(","):
    module, name = target.split(":")
    getattr(importlib.import_module(module), name)
"""


def test_every_verb_but_quickstart_and_report_loads_without_any_optional_package():
    # Those two draw pictures, for which the extras `report` and `quickstart` bring matplotlib.
    targets = [t for verb in VERBS if verb.name not in ("quickstart", "report") for t in (verb.config, verb.function)]
    command = [sys.executable, "-c", LOAD_ALL, ",".join(OPTIONAL), ",".join(targets)]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_packages_blocked_here_are_extras_and_no_core_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    core = {requirement.split(">")[0] for requirement in project["dependencies"]}
    extras = {
        requirement.split(">")[0] for group in project["optional-dependencies"].values() for requirement in group
    }
    assert {name.lower().replace("_", "-") for name in OPTIONAL} <= extras - core
