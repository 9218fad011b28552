"""Build the environment that a spec or a flag names."""

from __future__ import annotations

from dataclasses import replace

import gymnasium

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.policy import PolicySpec
from dsrl.wrappers.families import family_of
from dsrl.wrappers.observations import observe_as
from dsrl.wrappers.rendering import choose_backend
from dsrl.wrappers.reward import MODES, RewardConvention


def resolve_env_spec(spec: EnvSpec | str, policy: PolicySpec | None = None) -> EnvSpec:
    """Fill in everything that the adapter decides: arguments, observation keys, time limit, version.

    Args:
        spec: what to build.
        policy: what will act there; observations are given by its names and in its order.

    Raises:
        DsrlError: when the name is unknown (with the nearest known one) or an extra is missing.
    """
    spec = EnvSpec.parse(spec) if isinstance(spec, str) else spec
    return family_of(spec).resolve(spec if policy is None else observe_as(spec, policy))


def resolve_reward(spec: EnvSpec, reward: str) -> str:
    """What ``auto`` means: ``success`` for manipulation, ``dense`` elsewhere."""
    return family_of(spec).reward if reward == "auto" else reward


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
    family = family_of(spec)
    if reward == "dense":
        spec = replace(spec, kwargs={**family.dense, **spec.kwargs})
    if render_mode is not None:
        choose_backend()
    return RewardConvention(family.make(spec, render_mode), reward)
