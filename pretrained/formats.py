"""The formats of checkpoints: what is needed to add one, and how the one of a file is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError, nearest
from dsrl.policy import PolicySpec
from dsrl.pretrained.found import Found


@dataclass(frozen=True)
class Checkpoint:
    """What every format is brought into, and what our own files hold: enough to build the policy."""

    kind: str
    """of policy: a key of :data:`~dsrl.pretrained.kinds.KINDS`"""
    config: Mapping[str, Any]
    """plain values, for the builder of that kind: network, noise schedule, sampler"""
    spec: PolicySpec
    """``sha256`` is filled in when the policy is built"""
    weights: Mapping[str, Tensor]
    """by the names of our own modules"""
    format: str = "dsrl"
    version: str = "1"
    """of the format, where a file says it"""
    notes: tuple[str, ...] = ()
    """what somebody who looks into the file should know: what was missing, guessed or left out"""
    converted_from: str = ""
    """the format that it was before ``dsrl convert``; the policy stays the same to an agent"""
    hash_of_weights: bool = False
    """our files of version 1, and what was converted from them: agents know them by the hash of their weights"""


@dataclass(frozen=True)
class Format:
    """One way in which policies are written.

    A package adds one under the entry point group ``dsrl.policies``: an object of this class.
    """

    name: str
    """for ``--load.format``"""
    title: str
    """what such a checkpoint is, in a few words, for error messages"""
    detect: Callable[[Found], bool]
    """from what lies there, not from its name; runs nothing and raises nothing"""
    read: Callable[[Found, LoadConfig], Checkpoint]
    """raises :class:`~dsrl.errors.DsrlError` naming the file, the offending item and what to do"""


def find_format(found: Found, formats: Mapping[str, Format], wanted: str = "auto") -> Format:
    """The format of what lies there, or the one that is asked for.

    Raises:
        DsrlError: when it is unknown, or nothing recognises the file.
    """
    if wanted != "auto":
        if wanted not in formats:
            known = ", ".join(sorted(formats))
            raise DsrlError(f"there is no format '{wanted}'.{nearest(wanted, list(formats))} Known: auto, {known}")
        return formats[wanted]
    for candidate in formats.values():
        if candidate.detect(found):
            return candidate
    if found.is_folder:
        inside = ", ".join(sorted(p.name for p in found.path.iterdir())[:8]) or "nothing"
    else:
        content = found.read()  # says why, when it cannot be read at all
        inside = f"{sorted(map(str, content))[:8]}" if isinstance(content, dict) else type(content).__name__
    titles = "; ".join(each.title for each in formats.values())
    raise DsrlError(f"{found.path} is a checkpoint of another program (found: {inside}). Known are: {titles}")


def ddim_steps_of(found: Found, load: LoadConfig, *, train_steps: int, own: int | None, sampler: str = "DDPM") -> int:
    """Network evaluations per chunk: those asked for, or the file's ``own``.

    Args:
        found: for error messages.
        load: with or without ``sampling_steps``.
        train_steps: noise levels of the training.
        own: steps of the file's deterministic sampler; None when its sampler draws noise in every step.
        sampler: the name of that one.

    Raises:
        DsrlError: when the file's own sampler is random and no other one was asked for, or the steps do not fit.
    """
    steps = load.sampling_steps or own
    if steps is None:
        raise DsrlError(
            f"{found.path} is sampled by {sampler}, which draws noise in every step and so cannot be steered. "
            "--load.sampling-steps 16 samples it by DDIM, which is deterministic; that changes the base policy, so "
            "evaluate it again"
        )
    if steps > train_steps:
        raise DsrlError(f"{steps} sampling steps do not fit into the {train_steps} noise levels of {found.path}")
    return steps


def refuse_side_files(found: Found, load: LoadConfig, *, sampled: bool = False) -> None:
    """For formats that need no files beside them.

    Args:
        found: for error messages.
        load: as it was asked for.
        sampled: whether the number of sampling steps is settled, too.

    Raises:
        DsrlError: when a setting was given that the checkpoint has itself.
    """
    if load.config or load.normalization or (sampled and load.sampling_steps):
        what, flag = ("sampled and ", "--load.sampling-steps, ") if sampled else ("", "")
        raise DsrlError(
            f"{found.path} says itself how it is {what}normalised; leave out {flag}--load.config and "
            "--load.normalization"
        )


def check_first_level(path: Path, setting: str, *, steps: int, train_steps: int, offset: int) -> None:
    """Of leading spacing: level ``offset`` and every ``train_steps // steps`` above it.

    Args:
        path: of the file, for messages.
        setting: where it says ``offset``.
        steps: of the sampler.
        train_steps: noise levels of the training.
        offset: added to every level.

    Raises:
        DsrlError: when the first of them lies beyond the levels.
    """
    if (steps - 1) * (train_steps // steps) + offset >= train_steps:
        raise DsrlError(
            f"{path}: '{setting}' {offset} moves the first of {steps} steps beyond the {train_steps} noise levels; ask "
            "for fewer with --load.sampling-steps"
        )
