"""A toy policy that needs no training: it hesitates between two ways of reading its noise.

It plays ``dsrl/PointReach-v0`` well enough to learn from, badly enough to improve. Users can test their own code on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from dsrl.env_spec import EnvSpec
from dsrl.policy import Obs, PolicySpec, concat_obs

HORIZON = 4
MAX_ERROR = math.radians(80.0)
"""heading error in radians when the noise says nothing"""
_PARAMETERS = {"policy": "toy", "version": 1, "horizon": HORIZON, "max_error": MAX_ERROR}


class ToyPolicy(nn.Module):
    """Full speed towards the goal, with a heading error that the noise can remove.

    ::

        z     = mean of the noise's first coordinate over the horizon, N(0, 1/4) under the base policy
        side  = +1 when the goal lies to the right (x >= 0), else -1
        error = side * MAX_ERROR * (1 - sin(pi/2 * clip(side * z, 0, 2)))

    Which sign of the noise is right depends on the state: ``z = side`` heads straight for the goal; zero noise and
    the wrong sign circle around it. So the base policy arrives now and then, less noise makes it worse, and no constant
    noise is good everywhere: what helps has to look at the observation.
    """

    kind = "toy"
    max_error: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.spec = PolicySpec(
            obs_shapes={"obs": (4,)},
            action_dim=2,
            horizon=HORIZON,
            n_action_steps=HORIZON,
            env=EnvSpec(family="gymnasium", name="dsrl/PointReach-v0"),
            sha256=hashlib.sha256(json.dumps(_PARAMETERS, sort_keys=True).encode()).hexdigest(),
        )
        # a buffer, not a parameter: nothing is trained, but .to(device) has something to move
        self.register_buffer("max_error", torch.tensor(MAX_ERROR), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self.max_error.device

    @property
    def cond_dim(self) -> int:
        """Position and goal, as they are."""
        return self.spec.obs_dim

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds the policy: nothing, it has no options."""
        return {}

    @torch.no_grad()
    def encode(self, obs: Obs) -> Tensor:
        """``(B, 1, 4)`` -> ``(B, 4)``."""
        return concat_obs(obs, self.spec).flatten(1).to(self.device)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, 4), (B, 4, 2)`` -> velocities ``(B, 4, 2)``, the same one for the whole chunk.

        Raises:
            ValueError: when the noise has another shape.
        """
        if noise.shape[1:] != self.spec.noise_shape or len(noise) != len(cond):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, this policy denoises {(len(cond), *self.spec.noise_shape)}"
            )
        position, goal = cond[:, :2], cond[:, 2:]
        z = noise.to(cond)[..., 0].mean(dim=1)
        side = torch.where(goal[:, 0] >= 0, 1.0, -1.0).to(cond)
        relief = (0.5 * math.pi * (side * z).clamp(0, 2)).sin()
        error = side * self.max_error * (1 - relief)

        dx, dy = (goal - position).unbind(dim=1)
        heading = torch.atan2(dy, dx) + error
        velocity = torch.stack([heading.cos(), heading.sin()], dim=1)
        return repeat(velocity, "b d -> b h d", h=self.spec.n_action_steps)

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)
