"""Build the environment that a spec or a flag names."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import gymnasium
from gymnasium.wrappers import TimeLimit

from dsrl.env_spec import FAMILIES, EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.wrappers.reward import MODES, RewardConvention


def resolve_env_spec(spec: EnvSpec | str) -> EnvSpec:
    """Fill in everything that the adapter decides: arguments, observation keys, time limit, version.

    Raises:
        DsrlError: when the name is unknown (with the nearest known one) or an extra is missing.
    """
    spec = EnvSpec.parse(spec) if isinstance(spec, str) else spec
    if spec.family == "robosuite":
        from dsrl.wrappers import robosuite as adapter
    elif spec.family == "metaworld":
        from dsrl.wrappers import metaworld as adapter  # type: ignore[no-redef]
    elif spec.family == "gymnasium":
        from dsrl.wrappers import generic as adapter  # type: ignore[no-redef]
    else:
        raise DsrlError(f"unknown family '{spec.family}'.{nearest(spec.family, FAMILIES)} Known: {', '.join(FAMILIES)}")
    return adapter.resolve(spec)


def resolve_reward(spec: EnvSpec, reward: str) -> str:
    """What ``auto`` means: ``success`` for manipulation, ``dense`` elsewhere."""
    if reward != "auto":
        return reward
    return "dense" if spec.family == "gymnasium" else "success"


def make_env(spec: EnvSpec | str, *, reward: str = "auto", render_mode: str | None = None) -> gymnasium.Env:
    """One environment: flat float32 observations, a Box of actions, a time limit that truncates.

    ``env.unwrapped.env_spec`` is the resolved spec and ``env.unwrapped.obs_shapes`` the shape of every key.

    Args:
        spec: what to build; ``robosuite/Lift``, ``metaworld/push-v3`` and ``Hopper-v5`` are short for a spec.
        reward: ``success``, ``step-cost`` or ``dense``; ``auto`` is ``success`` for manipulation, else ``dense``.
        render_mode: ``rgb_array`` or None.

    Raises:
        DsrlError: when the name, the reward or an extra is not there.
    """
    spec = resolve_env_spec(spec)
    reward = resolve_reward(spec, reward)
    if reward not in MODES:
        known = ("auto", *MODES)
        raise DsrlError(f"there is no reward convention '{reward}'.{nearest(reward, known)} Known: {', '.join(known)}")
    if spec.family == "robosuite" and reward == "dense":
        # without shaping robosuite's own reward is sparse too
        spec = replace(spec, kwargs={"reward_shaping": True, **spec.kwargs})
    if render_mode is not None:
        _choose_renderer()
    return RewardConvention(_adapter(spec, render_mode), reward)


def _choose_renderer() -> None:
    """Without a display MuJoCo's default, a window, cannot be opened; a choice of the user's is kept."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _adapter(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    if spec.family == "gymnasium":
        from dsrl.wrappers.generic import GenericEnv

        return GenericEnv(spec, render_mode)  # brings its own time limit
    env: gymnasium.Env
    if spec.family == "robosuite":
        from dsrl.wrappers.robosuite import RobosuiteEnv

        env = RobosuiteEnv(spec, render_mode)
    else:
        from dsrl.wrappers.metaworld import MetaWorldEnv

        env = MetaWorldEnv(spec, render_mode)
    assert spec.max_episode_steps is not None
    return TimeLimit(env, spec.max_episode_steps)
