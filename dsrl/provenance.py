"""Where a number came from: versions, commit and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = {
    "dsrl": "dsrl-steering",  # as it is called on PyPI
    "torch": "torch",
    "stable-baselines3": "stable-baselines3",
    "gymnasium": "gymnasium",
    "diffusers": "diffusers",
    "numpy": "numpy",
    "robosuite": "robosuite",
    "metaworld": "metaworld",
    "mujoco": "mujoco",
}


def describe_environment() -> dict[str, Any]:
    """All that a result may depend on beside the configuration, JSON-able; what is not there is None."""
    import torch  # here: reading a run folder needs no torch

    return {
        "python": platform.python_version(),
        "packages": {name: _version(distribution) for name, distribution in _PACKAGES.items()},
        "git": _git(Path(__file__).resolve().parents[1]),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path) -> dict[str, Any] | None:
    """Commit and whether there were changes on top of it, when ``root`` is a checkout of this project."""
    top = _run_git(root, "rev-parse", "--show-toplevel")
    # installed into somebody else's checkout (a .venv inside it), that one's commit would say nothing about us
    if not top or Path(top).resolve() != root:
        return None
    changes = _run_git(root, "status", "--porcelain", "--untracked-files=no")
    return {"sha": _run_git(root, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _run_git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
