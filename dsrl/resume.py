"""Taking up a run again: its configuration, and what has changed since."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dsrl.checkpoint import Checkpoints
from dsrl.config import FinetuneConfig, finetune_config, to_dict
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.facts import differences, file_sha256, flags, flat
from dsrl.files import write_text
from dsrl.policy import FrozenPolicy
from dsrl.provenance import describe_environment
from dsrl.run import RunFolder

_FREE = (
    "resume", "force", "overwrite", "run_dir", "total_env_steps", "checkpoint_interval", "simulator_timeout",
    "base_policy", "load", "env", "demos", "warm_start", "device",
)  # fmt: skip
"""settings that may change, or whose meaning is compared: a hash, the resolved environment, the device"""


def resumed_config(run: Path) -> FinetuneConfig:
    """The configuration of a run, set to go on with it.

    Raises:
        DsrlError: when there is no such run, or its configuration is one of another version.
    """
    folder = RunFolder.open(run)
    try:
        config = finetune_config(folder.read_config())
    except DsrlError as error:
        raise DsrlError(f"{folder.config_path} cannot be read, it may be of another version of dsrl: {error}") from (
            error
        )
    return replace(config, resume=folder.path, run_dir=folder.path, overwrite=False)


def taken_up(
    config: FinetuneConfig, checkpoints: Checkpoints, facts: Mapping[str, Any], console: Console
) -> dict[str, Any] | None:
    """The newest sound checkpoint of a run that may go on, after writing down that it does.

    None for a run that was ended before its first checkpoint: its tables are empty again, and it begins anew.

    Raises:
        DsrlError: when the run is finished, or its circumstances have changed and ``--force`` was not given.
    """
    folder = checkpoints.run
    _check_budget(config, folder)
    found = checkpoints.newest(console.print)
    if found is None:
        console.print(f"{folder.path} was ended before its first checkpoint and begins anew")
        counts = folder.count_rows()
        folder.keep_rows({"evaluations": {**counts["evaluations"], "rows": 0}, "metrics": {"rows": 0, "columns": []}})
        _take_over(folder, config, 0, [])
        return None
    before = found["state"]["facts"]
    changes = differences(before, facts)
    if changes and not config.force:
        raise DsrlError(
            f"{folder.path} was begun in other circumstances: {'; '.join(changes)}. Put that back, or go on all the "
            f"same with --force; {folder.resumes.name} then says so"
        )
    for change in changes:
        console.print(f"changed: {change}")
    _take_over(folder, config, found["state"]["parts"]["steps"]["env_steps"], changes)
    return found


def _check_budget(config: FinetuneConfig, folder: RunFolder) -> None:
    """Whether there is something left to do.

    Raises:
        DsrlError: when the run is finished.
    """
    before = finetune_config(folder.read_config()).total_env_steps
    if folder.comparison.exists() and config.total_env_steps <= before:
        raise DsrlError(
            f"{folder.path} is finished: {before:,} env steps. To train on: "
            f"dsrl finetune --resume {folder.path} --total-env-steps {2 * before}"
        )


def run_facts(config: FinetuneConfig, policy: FrozenPolicy, env: EnvSpec) -> dict[str, Any]:
    """What a run depends on, as plain values by the words that a user knows them by."""
    machine = describe_environment()
    facts = flags(to_dict(config), _FREE)
    facts |= {f"environment {name}": value for name, value in flat(env.to_robomimic())}
    facts |= {f"package {name}": version for name, version in machine["packages"].items()}
    git = machine["git"]
    return json.loads(
        json.dumps(
            {
                **facts,
                "hash of the base policy": policy.spec.sha256[:16],
                "hash of --demos": _hash(config.demos),
                "hash of --warm-start": _hash(config.warm_start),
                "device": policy.device.type,
                "python": machine["python"],
                "commit of dsrl": None if git is None else git["sha"],
            },
            default=str,
        )
    )


def _take_over(folder: RunFolder, config: FinetuneConfig, env_steps: int, changes: list[str]) -> None:
    """Write down that, and in which circumstances, a run goes on.

    Raises:
        RunFailed: when it cannot be written.
    """
    resumes = json.loads(folder.resumes.read_text(encoding="utf-8")) if folder.resumes.exists() else []
    stamp = datetime.now().isoformat(" ", "seconds")
    entry = {"time": stamp, "machine": socket.gethostname(), "env_steps": env_steps, "changes": changes}
    before = finetune_config(folder.read_config())
    if before.total_env_steps != config.total_env_steps:
        entry["total_env_steps"] = [before.total_env_steps, config.total_env_steps]
    write_text(folder.resumes, json.dumps([*resumes, entry], indent=2) + "\n")
    kept = to_dict(replace(config, resume=None, force=False))
    write_text(folder.config_path, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    folder.comparison.unlink(missing_ok=True)


def _hash(path: Path | None) -> str | None:
    if path is None or not path.is_file():  # whoever reads it says what is wrong
        return None
    return file_sha256(path)[:16]
