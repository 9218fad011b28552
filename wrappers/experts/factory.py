"""Which script belongs to which task."""

from __future__ import annotations

import gymnasium

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.wrappers.experts.base import Expert, unknown_task

ROBOSUITE_EXPERTS = ("Lift", "PickPlaceCan", "NutAssemblySquare")


def make_expert(env_spec: EnvSpec, env: gymnasium.Env) -> Expert:
    """The scripted operator of a task.

    Raises:
        DsrlError: when nobody wrote a script for it.
    """
    if env_spec.family == "robosuite":
        return _robosuite(env_spec)
    if env_spec.family == "metaworld":
        from dsrl.wrappers.experts.metaworld import MetaWorldExpert

        return MetaWorldExpert(env_spec.name)
    if env_spec.family == "ogbench":
        return _ogbench(env_spec, env)
    raise DsrlError(
        f"there is no scripted expert for '{env_spec.id}'; robosuite, Meta-World, OGBench's point mazes and its "
        "single cube have one"
    )


def _ogbench(env_spec: EnvSpec, env: gymnasium.Env) -> Expert:
    if env_spec.name.startswith("cube-single"):
        from dsrl.wrappers.experts.cube import CubeExpert

        return CubeExpert(env)
    if env_spec.name.startswith("pointmaze"):
        from dsrl.wrappers.experts.maze import MazeWanderer

        return MazeWanderer(env)
    raise DsrlError(f"there is no scripted expert for '{env_spec.id}'; pointmaze-... and cube-single-... have one")


def _robosuite(env_spec: EnvSpec) -> Expert:
    if env_spec.name == "Lift":
        from dsrl.wrappers.experts.lift import LiftExpert

        return LiftExpert()
    if env_spec.name == "PickPlaceCan":
        from dsrl.wrappers.experts.can import CanExpert

        return CanExpert()
    if env_spec.name == "NutAssemblySquare":
        from dsrl.wrappers.experts.square import SquareExpert

        return SquareExpert()
    raise unknown_task(env_spec.name, ROBOSUITE_EXPERTS)
