"""The small network that chooses noise."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dsrl.critics import ACTIVATIONS


class NoiseActor(nn.Module):
    """A Gaussian over the agent's action, written as a deterministic map of ``(cond, eps)``, ``eps ~ N(0, I)``.

    ``eps = 0`` is the deterministic actor. No stable-baselines3 is needed to run it.

    Args:
        config: ``{"sizes": [cond_dim, hidden, ...], "action_dim": A, "activation": "silu", "state_dependent_std": bool,
            "squash": bool, "bound": float}``; ``"layer_norm": True`` for a LayerNorm in every hidden layer, and
            ``"noise"``, which is ``NoiseSpace.layout()``: without it the agent chooses the whole noise.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        sizes, activation = config["sizes"], ACTIVATIONS[config["activation"]]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(sizes):
            normal = [nn.LayerNorm(width_out)] if config.get("layer_norm") else []
            layers += [nn.Linear(width_in, width_out), *normal, activation()]
        self.trunk = nn.Sequential(*layers)
        self.mean = nn.Linear(sizes[-1], config["action_dim"])
        if config["state_dependent_std"]:
            self.log_std: nn.Linear | nn.Parameter = nn.Linear(sizes[-1], config["action_dim"])
        else:
            self.log_std = nn.Parameter(torch.zeros(config["action_dim"]))

    def moments(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, cond_dim)`` -> mean and log of the standard deviation, ``(B, A)`` each, before any squashing."""
        features = self.trunk(cond)
        log_std = self.log_std(features) if isinstance(self.log_std, nn.Linear) else self.log_std
        # the clamp is the one of the soft actor-critic actor; it never binds for a state-independent scale
        return self.mean(features), log_std.clamp(-20, 2)

    @torch.no_grad()
    def forward(self, cond: Tensor, eps: Tensor, reach: Tensor | float = 1.0) -> Tensor:
        """``(B, cond_dim), (B, A)`` -> the agent's action ``(B, A)``, inside the box; ``reach`` multiplies its mean."""
        mean, log_std = self.moments(cond)
        raw, bound = reach * mean + log_std.exp() * eps, self.config["bound"]
        return bound * torch.tanh(raw) if self.config["squash"] else raw.clamp(-bound, bound)
