"""Agents as `dsrl push` writes them: a folder with the agent, and the base policy named by place and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from dsrl.actor_file import AGENT, read_steered
from dsrl.config import LoadConfig
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.pretrained.live import Live
from dsrl.pretrained.remote import is_address

PACKAGED = "dsrl:"
"""before the name of a checkpoint that ships with the package"""


def is_agent_folder(path: Path) -> bool:
    """Whether `dsrl push` wrote it, or something like it."""
    return (path / AGENT).is_file()


@dataclass(frozen=True)
class BaseFacts:
    """Which policy an agent steers, and where."""

    path: str
    sha256: str
    load: Mapping[str, Any]
    env: EnvSpec | None


def read_base(path: Path) -> BaseFacts:
    """What ``base_policy.json`` of a folder says.

    Raises:
        DsrlError: when the folder does not say it.
    """
    file = path / "base_policy.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts["path"], str) or not isinstance(facts["sha256"], str):
            raise ValueError("expected a path and a sha256")
        known = {field.name for field in fields(LoadConfig)}
        if unknown := facts.get("load", {}).keys() - known:
            raise ValueError(f"unknown settings {sorted(unknown)}; is this dsrl too old?")
        env = EnvSpec.from_robomimic(facts["env"]) if facts.get("env") else None
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DsrlError(f"{file} does not say which base policy this agent steers: {error!r}") from error
    return BaseFacts(facts["path"], facts["sha256"], facts.get("load", {}), env)


def open_folder(path: Path, load: LoadConfig) -> nn.Module:
    """The steered policy; its base policy is looked for where the folder says, or at ``load.base``.

    Raises:
        DsrlError: when the base policy is not there or is another one, or a file is damaged.
    """
    from dsrl.pretrained.loading import load_policy

    if replace(load, base=None) != LoadConfig():
        raise DsrlError(
            f"{path} says itself how its base policy is read; leave out every --load setting but --load.base"
        )
    facts = read_base(path)
    where = str(load.base or facts.path)
    if where.startswith(PACKAGED):
        where = str(Path(__file__).with_name("checkpoints") / Path(where.removeprefix(PACKAGED)).name)
    elif load.base is None and is_address(where):
        raise DsrlError(
            f"{path} asks to connect to {where} for its base policy; if you trust both, say so: --load.base {where}"
        )
    elif load.base is None and "://" not in where and not Path(where).exists():
        raise DsrlError(
            f"{path}: the base policy of this agent is not at {where}, where it was when it was pushed. Get the policy "
            f"with the sha256 {facts.sha256[:12]} and name it: --load.base PATH"
        )
    try:
        base = load_policy(where, **facts.load, device="cpu")
    except (TypeError, ValueError) as error:
        raise DsrlError(f"{path / 'base_policy.json'}: {where} cannot be read as it says: {error}") from error
    except RecursionError as error:
        raise DsrlError(f"{path / 'base_policy.json'} names {where}, which leads back to this agent") from error
    steered = read_steered(path, base)
    env = facts.env or base.spec.env
    # agents that steer this one in turn must know it: by its base, and by the bytes of its own weights
    identity = hashlib.sha256(f"{base.spec.sha256}{weights_of(path)}".encode()).hexdigest()
    steered.spec = replace(steered.spec, env=env, sha256=identity)
    return steered


def weights_of(path: Path) -> str:
    """sha256 of the two files that make the agent."""
    digest = hashlib.sha256()
    for name in sorted((AGENT, f"{Path(AGENT).stem}.safetensors")):
        digest.update((path / name).read_bytes())
    return digest.hexdigest()


def describe(policy: Any) -> list[tuple[str, str]]:
    """Beside its spec, as rows of name and value."""
    return [
        ("kind", f"{policy.kind}, an agent of `dsrl push`"),
        ("noise", policy.noise_space.describe()),
        ("base policy", policy.base.spec.sha256),
    ]


LIVE = Live(is_agent_folder, open_folder, describe)
