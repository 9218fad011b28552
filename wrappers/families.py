"""Families of simulators: what is needed to add one, and how the one of a spec is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.plugins import ENVS, load_plugins


@dataclass(frozen=True)
class Family:
    """One kind of simulator.

    A package adds one under the entry point group ``dsrl.envs``: an object of this class. ``--env NAME/TASK`` then
    names its tasks.
    """

    name: str
    """the part before the slash of ``--env``"""
    title: str
    """what it simulates, in a few words"""
    resolve: Callable[[EnvSpec], EnvSpec]
    """fills in what the family decides, ``max_episode_steps`` among it; building nothing. Raises
    :class:`~dsrl.errors.DsrlError` for an unknown task, naming the nearest, or a missing package"""
    make: Callable[[EnvSpec, str | None], gymnasium.Env]
    """``(resolved spec, render_mode)`` -> flat float32 observations, a Box of actions, a time limit that truncates,
    ``info["success"]`` at every step. Its ``unwrapped`` has ``env_spec`` and ``obs_shapes``, the shape of every key in
    the order of ``env_spec.obs_keys``, or of one key ``state`` where the observation has no names"""
    reward: str = "success"
    """what the reward ``auto`` means"""
    dense: Mapping[str, Any] = field(default_factory=dict)
    """constructor arguments without which the reward ``dense`` is sparse too"""
    own_process: bool = True
    """whether an env step takes so long that each of several copies gets a process"""


def family_of(spec: EnvSpec) -> Family:
    """The family of a spec; other packages are imported only when it is none of ours.

    Raises:
        DsrlError: when there is none of that name.
    """
    from dsrl.wrappers import generic, metaworld, ogbench, robosuite

    ours = {module.FAMILY.name: module.FAMILY for module in (robosuite, metaworld, ogbench, generic)}
    if spec.family in ours:
        return ours[spec.family]
    known = {**{plugin.name: plugin.loaded for plugin in load_plugins(ENVS, Family) if plugin.loaded}, **ours}
    if spec.family not in known:
        raise DsrlError(f"unknown family '{spec.family}'.{nearest(spec.family, list(known))} Known: {', '.join(known)}")
    return known[spec.family]
