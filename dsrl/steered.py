"""A steered policy: a frozen base and the small actor that chooses its noise. It is a FrozenPolicy itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsrl.critics import ACTIVATIONS
from dsrl.noise import NoiseSpace
from dsrl.policy import FrozenPolicy, Obs, PolicySpec


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
    def forward(self, cond: Tensor, eps: Tensor) -> Tensor:
        """``(B, cond_dim), (B, A)`` -> the agent's action ``(B, A)``, inside the box."""
        mean, log_std = self.moments(cond)
        raw, bound = mean + log_std.exp() * eps, self.config["bound"]
        return bound * torch.tanh(raw) if self.config["squash"] else raw.clamp(-bound, bound)


class SteeredPolicy(nn.Module):
    """``decode(cond, (eps, rest)) = base.decode(cond, noise_space.to_noise(actor(cond, eps), rest))``.

    Being a :class:`~dsrl.policy.FrozenPolicy`, it can be evaluated, saved, and steered in turn; its noise ``eps`` is
    the agent's own randomness, and zeros make it deterministic. Where the rest of the base policy's noise is drawn from
    the prior, ``rest_size`` further numbers of the noise are that draw, so zeros hold the rest at zero too.

    Raises:
        ValueError: when the actor was made for another noise.
    """

    kind = "steered"

    def __init__(self, base: FrozenPolicy, actor: NoiseActor):
        super().__init__()
        self.base = base
        self.actor = actor
        self.noise_space = space = NoiseSpace(
            base.spec.noise_shape, actor.config["bound"], **actor.config.get("noise", {})
        )
        if actor.config["action_dim"] != space.size:
            raise ValueError(
                f"the actor chooses {actor.config['action_dim']} numbers, its noise space has {space.size} "
                f"({space.describe()}, of {space.noise_shape})"
            )
        self.spec: PolicySpec = replace(base.spec, noise_shape=(space.size + space.rest_size,), sha256="")

    @property
    def device(self) -> torch.device:
        """Where the base policy is."""
        return self.base.device

    @property
    def cond_dim(self) -> int:
        """That of the base policy: the actor sees what the base sees."""
        return self.base.cond_dim

    def encode(self, obs: Obs) -> Tensor:
        """The base policy's encoding."""
        return self.base.encode(obs)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, A + rest_size)`` -> the executed chunk ``(B, Ta, Da)``.

        Raises:
            ValueError: when the noise has another shape.
        """
        expected = (len(cond), *self.spec.noise_shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {expected}")
        space = self.noise_space
        eps, rest = noise.split([space.size, space.rest_size], dim=-1)
        return self.base.decode(cond, space.to_noise(self.actor(cond, eps), rest))

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)

    def predict(
        self, obs: np.ndarray, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Act in the world: ``(To, Do)`` or ``(B, To, Do)`` in environment units -> ``(Ta, Da)`` or ``(B, Ta, Da)``."""
        batch = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        single = batch.ndim == 2
        batch = batch[None] if single else batch
        shape = (len(batch), *self.spec.noise_shape)
        eps = torch.zeros(shape) if deterministic else torch.randn(shape, generator=generator)
        chunk = self.sample(batch, eps.to(self.device)).cpu().numpy()
        return chunk[0] if single else chunk

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        base: Any = self.base
        return {
            "actor": self.actor.config,
            "base": {
                "kind": base.kind,
                "config": base.config_dict(),
                "noise_shape": list(base.spec.noise_shape),
            },
        }
