"""Which environment: a value that fits into a checkpoint, a data set and a flag alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsrl.plugins import ENVS, plugin_names

FAMILIES = ("robosuite", "metaworld", "ogbench", "gymnasium")
"""ours; other packages may add some"""
# robomimic.envs.env_base.EnvType; the others are gymnasium environments to robomimic
_ROBOMIMIC_TYPE = {"robosuite": 1, "gymnasium": 2, "metaworld": 2, "ogbench": 2}


@dataclass(frozen=True)
class EnvSpec:
    """Names an environment and the arguments that rebuild it.

    ``to_robomimic`` gives the ``env_args`` of a robomimic HDF5 file, with our extra fields beside robomimic's own.
    """

    family: str
    """``robosuite``, ``metaworld``, ``ogbench``, ``gymnasium`` or that of another package"""
    name: str
    """``Lift``, ``pick-place-v3``, ``Hopper-v5``"""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """constructor arguments (robomimic's ``env_kwargs``)"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """what our adapter sets beside the constructor, such as ``physics_timestep`` in seconds"""
    obs_keys: tuple[str, ...] = ()
    """observations in the order in which they are concatenated; empty: a flat Box as it is, no image of a Dict"""
    max_episode_steps: int | None = None
    """time limit in env steps"""
    version: str = ""
    """of the simulator"""

    @property
    def id(self) -> str:
        """The spelling of ``--env``: ``robosuite/Lift``, ``metaworld/push-v3``, ``Hopper-v5``."""
        return self.name if self.family == "gymnasium" else f"{self.family}/{self.name}"

    @classmethod
    def parse(cls, env_id: str) -> EnvSpec:
        """``robosuite/Lift`` -> a spec with everything else left to the adapter's defaults."""
        family, _, name = env_id.partition("/")
        if name and family in known_families():
            return cls(family=family, name=name)
        return cls(family="gymnasium", name=env_id)

    def to_robomimic(self) -> dict[str, Any]:
        """robomimic's ``env_args`` / ``env_metadata``, JSON-able."""
        return {
            "env_name": self.name,
            "env_version": self.version,
            "type": _ROBOMIMIC_TYPE.get(self.family, 2),
            "env_kwargs": dict(self.kwargs),
            "family": self.family,
            "options": dict(self.options),
            "obs_keys": list(self.obs_keys),
            "max_episode_steps": self.max_episode_steps,
        }

    @classmethod
    def from_robomimic(cls, env_args: Mapping[str, Any]) -> EnvSpec:
        """Read ``env_args`` as written by robomimic or by :meth:`to_robomimic`."""
        family = env_args.get("family") or ("robosuite" if int(env_args.get("type", 1)) == 1 else "gymnasium")
        return cls(
            family=family,
            name=env_args["env_name"],
            kwargs=dict(env_args.get("env_kwargs") or {}),
            options=dict(env_args.get("options") or {}),
            obs_keys=tuple(env_args.get("obs_keys") or ()),
            max_episode_steps=env_args.get("max_episode_steps"),
            version=str(env_args.get("env_version") or ""),
        )


def known_families() -> tuple[str, ...]:
    """Ours and those of other packages, without loading them."""
    return (*FAMILIES, *plugin_names(ENVS))
