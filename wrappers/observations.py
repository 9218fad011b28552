"""The observations of an environment, by the names and in the order in which a policy reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.policy import PolicySpec

WHOLE = ("state", "obs")
"""the one key of a policy that reads a vector without names for its parts"""
_SAME = {
    "observation.state": ("agent_pos", "state"),
    "observation.environment_state": ("environment_state",),
    "observation.image": ("pixels",),
    "object": ("object-state",),
}
"""LeRobot's names for what gymnasium environments call otherwise, and robomimic's for robosuite's"""


def observe_as(env: EnvSpec, policy: PolicySpec) -> EnvSpec:
    """The environment with its observations named and ordered as the policy reads them.

    An order that the spec already names is kept; so is the whole vector where the policy has no names for its parts.

    Raises:
        DsrlError: when the spec names the policy's keys in another order.
    """
    keys = tuple(policy.obs_shapes)
    if len(keys) == 1 and keys[0] in WHOLE:
        return env
    if env.obs_keys and env.obs_keys != keys and sorted(env.obs_keys) == sorted(keys):
        raise DsrlError(
            f"the policy reads {list(keys)} in this order, {env.id} is to give them as {list(env.obs_keys)}; the order "
            "must be the policy's"
        )
    return replace(env, obs_keys=env.obs_keys or keys)


def find_key(key: str, known: Collection[str]) -> str | None:
    """What an environment calls an observation, if it has it."""
    return next((name for name in (key, *_SAME.get(key, ())) if name in known), None)


def check_observations(env: str, given: Mapping[str, tuple[int, ...]], policy: PolicySpec) -> None:
    """Compare the sizes of observations that have names on both sides.

    Args:
        env: id, for the message.
        given: shape of each observation of the environment.
        policy: what reads them.

    Raises:
        DsrlError: naming the first that differs.
    """
    if list(given) != list(policy.obs_shapes):
        return  # one of them has no names; the length of the whole is compared by `check_fit`
    for key, expected in policy.obs_shapes.items():
        if given[key] != expected if len(expected) > 1 else prod(given[key]) != prod(expected):
            raise DsrlError(
                f"this policy does not fit this environment: it reads '{key}' with the shape {list(expected)}, {env} "
                f"gives {list(given[key])}; name the environment that it was trained in"
            )


class MissingObservation(DsrlError):
    """An environment does not have what is to be observed."""


def missing(env: str, key: str, wanted: Collection[str], known: Collection[str]) -> MissingObservation:
    """The complaint about an observation that an environment does not have."""
    return MissingObservation(
        f"{env} has no observation '{key}'.{nearest(key, list(known))} It has {', '.join(sorted(known))}; wanted are "
        f"{', '.join(wanted)}"
    )
