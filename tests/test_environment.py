from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from posttrain.environment import EnvConfig, check_disk, check_requirement, check_threads, env, usable_cores


def test_version_outside_its_range_comes_with_the_install_command() -> None:
    finding = check_requirement("numpy<1")
    assert finding.seen == f"{version('numpy')} is outside <1"
    assert finding.fix == "pip install 'numpy<1' -c constraints.txt"


def test_version_inside_its_range_needs_no_fix() -> None:
    assert check_requirement("numpy>=1").fix == ""


def test_absent_package_is_reported_as_not_installed() -> None:
    assert check_requirement("a-package-that-is-not-here>=1").seen == "not installed"


def test_too_little_disk_space_needs_a_fix_and_enough_does_not(tmp_path: Path) -> None:
    assert "are wanted" in check_disk(tmp_path, min_free_gib=1e9).fix
    assert check_disk(tmp_path, min_free_gib=0).fix == ""


def test_more_threads_than_cores_needs_a_fix() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(usable_cores() + 1)
        assert check_threads().fix == f"export OMP_NUM_THREADS={usable_cores()}"
        torch.set_num_threads(1)
        assert check_threads().fix == ""
    finally:
        torch.set_num_threads(before)


def test_env_prints_the_installed_torch_version(capsys: pytest.CaptureFixture[str]) -> None:
    env(EnvConfig())
    assert f"- torch: {version('torch')}\n" in capsys.readouterr().out
