"""What a frozen policy is: the contract that every checkpoint format, guided and steered policy fulfils.

The dimension letters used everywhere::

    B   batch                       To  n_obs_steps, observations the policy looks at (oldest first)
    Tp  horizon, predicted steps    Ta  n_action_steps, executed steps, starting at action_start
    Do  observation dimension       Da  action dimension

    observations   o o                    To = 2
    prediction     . a a a a . . .        Tp = 8, action_start = 1, Ta = 4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dsrl.env_spec import EnvSpec

Obs = Tensor | dict[str, Tensor]
"""``(B, To, Do)``, keys concatenated in the order of ``PolicySpec.obs_shapes``, or a dict of ``(B, To, *shape)``.

Images have the shape ``(C, H, W)`` and are float32 in [0, 1].
"""


@dataclass(frozen=True)
class PolicySpec:
    """The shape of a policy, and what is known about where it came from."""

    obs_shapes: Mapping[str, tuple[int, ...]]
    """shape of each observation key, in the order in which they are concatenated"""
    action_dim: int
    horizon: int
    n_action_steps: int
    n_obs_steps: int = 1
    action_start: int = 0
    noise_shape: tuple[int, ...] = ()
    """shape of the noise that denoising starts from; ``(horizon, action_dim)`` when left empty"""
    env: EnvSpec | None = None
    """the environment that the policy was made for, if its file says so"""
    sha256: str = ""
    """of weights, network, sampler and shapes; an agent remembers it and refuses to steer another policy"""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.noise_shape:
            object.__setattr__(self, "noise_shape", (self.horizon, self.action_dim))
        if self.action_start + self.n_action_steps > self.horizon:
            raise ValueError(
                f"a horizon of {self.horizon} has no {self.n_action_steps} action steps from step {self.action_start}"
            )

    @property
    def obs_dim(self) -> int:
        """Length of one concatenated observation."""
        return sum(int(torch.Size(shape).numel()) for shape in self.obs_shapes.values())

    def describe(self) -> str:
        """One line, for logs."""
        keys = ", ".join(f"{key}{list(shape)}" for key, shape in self.obs_shapes.items())
        return f"{keys} x{self.n_obs_steps} -> {self.n_action_steps} of {self.horizon} x {self.action_dim}"


@runtime_checkable
class FrozenPolicy(Protocol):
    """A pretrained policy whose only source of randomness is the noise it is given.

    Observations and actions are in environment units: the normaliser lives inside. ``encode`` can be cached, because
    the policy is frozen; ``decode`` is where the denoising happens.
    """

    spec: PolicySpec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def cond_dim(self) -> int:
        """Length of what ``encode`` returns."""
        ...

    def encode(self, obs: Obs) -> Tensor:
        """``(B, To, Do)`` in environment units -> ``(B, cond_dim)``, normalised."""
        ...

    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, *noise_shape)`` -> the executed chunk ``(B, Ta, Da)`` in environment units."""
        ...

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        ...


def concat_obs(obs: Obs, spec: PolicySpec) -> Tensor:
    """Bring observations into the one layout ``(B, To, Do)``.

    Raises:
        ValueError: when a key is missing, a shape is not the declared one or a value is not finite.
    """
    if isinstance(obs, dict):
        missing = [key for key in spec.obs_shapes if key not in obs]
        if missing:
            raise ValueError(
                f"observation lacks {missing}; it has {sorted(obs)}, the policy reads {list(spec.obs_shapes)}"
            )
        obs = torch.cat([obs[key].flatten(2) for key in spec.obs_shapes], dim=-1)
    if obs.ndim != 3 or obs.shape[1:] != (spec.n_obs_steps, spec.obs_dim):
        raise ValueError(
            f"observation has shape {tuple(obs.shape)}, this policy reads (B, {spec.n_obs_steps}, {spec.obs_dim})"
        )
    if not torch.isfinite(obs).all():
        raise ValueError(_name_bad_value(obs, spec))
    return obs


def _name_bad_value(obs: Tensor, spec: PolicySpec) -> str:
    row, step, index = (~torch.isfinite(obs)).nonzero()[0].tolist()
    value, within = float(obs[row, step, index]), index
    for key, shape in spec.obs_shapes.items():
        size = int(torch.Size(shape).numel())
        if within < size:
            return f"observation '{key}'[{within}] is {value} (row {row}, step {step}); it must be finite"
        within -= size
    raise AssertionError("the observation is longer than its spec")
