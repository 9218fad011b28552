"""Packages, processor, GPU and disk, each looked at and judged."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from dsrl.errors import DsrlError
from dsrl.files import nearest_existing, why_not_writable
from dsrl.frames import find_encoder

OK, WARNING, PROBLEM = "ok", "warning", "problem"
DISTRIBUTION = "dsrl-steering"
_SHOWN_EXTRAS = ("robosuite", "metaworld", "video", "remote")
_WATCHED = ("stable-baselines3", "gymnasium", "diffusers", "robosuite", "metaworld", "robomimic", "lerobot")
"""whose own requirements are looked at, too"""
_LEAST_FREE, _LITTLE_FREE = 0.2, 2.0
"""GB"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    group: str
    name: str
    status: str
    """ok, warning or problem"""
    found: str
    fix: str = ""


def check_packages() -> Iterator[Check]:
    """Python and every package that dsrl needs or can use, against the versions that it works with."""
    yield Check("packages", "python", OK, platform.python_version())
    if _installed("dsrl"):
        fix = f"pip uninstall dsrl {DISTRIBUTION} && pip install {DISTRIBUTION}"
        found = f"dsrl {_installed('dsrl')} is another project (data sets for safe RL) and writes into the same folder"
        yield Check("packages", "dsrl", PROBLEM, found, fix)
    try:
        yield Check("packages", DISTRIBUTION, OK, metadata.version(DISTRIBUTION))
        needed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check("packages", DISTRIBUTION, WARNING, "not installed, only imported", f"pip install {DISTRIBUTION}")
        needed = []
    seen: set[str] = set()
    for text in needed:
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        if extra not in ("", *_SHOWN_EXTRAS) or requirement.name in seen:
            continue
        seen.add(requirement.name)
        yield _judge(requirement, extra)
    yield from check_pins()


def _judge(requirement: Requirement, extra: str) -> Check:
    name, found = requirement.name, _installed(requirement.name)
    target = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
    fix = f"pip install '{target}'" if found is None else f"pip install '{name}{requirement.specifier}'"
    if found is None:
        status = WARNING if extra else PROBLEM
        return Check("packages", name, status, "not installed" + (f" (extra {extra})" if extra else ""), fix)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check("packages", name, PROBLEM, f"{found}, works with {requirement.specifier}", fix)
    return Check("packages", name, OK, found)


def check_pins() -> Iterator[Check]:
    """Whether simulators and libraries have the versions that they ask for themselves; nothing where they have."""
    for name in _WATCHED:
        if _installed(name) is None:
            continue
        for text in metadata.requires(name) or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = _installed(requirement.name)
            if found is not None and requirement.specifier.contains(found, prereleases=True):
                continue
            wanted = f"{name} {_installed(name)} asks for {requirement.name}{requirement.specifier}"
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Check("packages", f"pin of {name}", WARNING, f"{wanted}, installed is {found or 'none'}", fix)
    if _installed("lerobot") and _installed("robosuite"):
        found = "lerobot and robosuite ask for versions that exclude each other"
        fix = "give lerobot an environment of its own and serve its policy (docs/checkpoints.md)"
        yield Check("packages", "pin of lerobot", WARNING, found, fix)


def check_machine(runs: Path) -> Iterator[Check]:
    """Processor, GPU, threads, and room for runs."""
    yield _check_threads()
    yield _check_gpu()
    yield from check_room(runs)


def _check_threads() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked, used = os.environ.get("OMP_NUM_THREADS", "not set"), torch.get_num_threads()
    found = f"{used} for torch (OMP_NUM_THREADS {asked}) on {cores} cores"
    if used > 1:
        fix = "unset OMP_NUM_THREADS: the commands then use one; more wait for each other beside busy simulators"
        return Check("machine", "threads", WARNING, found, fix)
    return Check("machine", "threads", OK, found)


def _check_gpu() -> Check:
    import torch

    card = any(Path("/dev").glob("nvidia[0-9]*"))
    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch for the CPU only"
    if not torch.cuda.is_available():
        if card and torch.version.cuda:
            fix = "update the NVIDIA driver, or install a torch for an older CUDA (pytorch.org)"
            return Check("machine", "GPU", PROBLEM, f"{build} cannot use the card that is here", fix)
        if card:
            return Check(
                "machine", "GPU", WARNING, f"{build}, but a card is here", "install torch for CUDA (pytorch.org)"
            )
        return Check("machine", "GPU", OK, f"none, {build}; small policies do not need one")
    name = torch.cuda.get_device_name(0)
    try:
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().cpu()
    except RuntimeError as error:
        fix = "install the torch build for this card's generation (pytorch.org), or use --device cpu"
        return Check("machine", "GPU", PROBLEM, f"{name} does not compute: {error!s:.120}", fix)
    free, total = torch.cuda.mem_get_info(0)
    return Check("machine", "GPU", OK, f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, {build}")


def check_room(runs: Path) -> Iterator[Check]:
    """Whether runs can be written, and how much room there is."""
    place = nearest_existing(runs)
    free = shutil.disk_usage(place).free / 1e9
    status = PROBLEM if free < _LEAST_FREE else WARNING if free < _LITTLE_FREE else OK
    fix = (
        ""
        if status == OK
        else f"free some space, or write elsewhere with --run-dir (a run takes up to {_LITTLE_FREE:g} GB)"
    )
    yield Check("machine", "disk", status, f"{free:.1f} GB free for {runs}", fix)
    if problem := why_not_writable(place):
        fix = f"make {place} writable, or write elsewhere with --run-dir"
        yield Check("machine", "run folder", PROBLEM, f"{place} cannot be written: {problem}", fix)
    else:
        yield Check("machine", "run folder", OK, f"{runs} can be written")


def check_video() -> Iterator[Check]:
    """Whether mp4 files can be encoded; nothing where the extra is missing, which the packages say."""
    if _installed("imageio-ffmpeg") is None:
        return
    try:
        version = find_encoder().get_ffmpeg_version()
    except (DsrlError, OSError, IndexError) as error:
        fix = "pip install --force-reinstall imageio-ffmpeg"
        yield Check("rendering", "ffmpeg", PROBLEM, str(error), fix)
    else:
        yield Check("rendering", "ffmpeg", OK, version)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extra_of(requirement: Requirement) -> str:
    """The extra that asks for it; empty for what is always needed."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return ""
    known = (*_SHOWN_EXTRAS, "other")
    return next((extra for extra in known if requirement.marker.evaluate({"extra": extra})), "other")
