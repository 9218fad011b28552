"""Steered policies: a frozen base, and what chooses its noise. They are FrozenPolicies themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dsrl.actor import NoiseActor
from dsrl.critics import CriticEnsemble, reduce_q
from dsrl.noise import NoiseSpace
from dsrl.policy import FrozenPolicy
from dsrl.wrapped import WrappedPolicy


class SteeredPolicy(WrappedPolicy[FrozenPolicy]):
    """``decode(cond, (eps, rest)) = base.decode(cond, noise_space.to_noise(actor(cond, eps), rest))``.

    Being a :class:`~dsrl.policy.FrozenPolicy`, it can be evaluated, saved, and steered in turn; its noise ``eps`` is
    the agent's own randomness, and zeros make it deterministic. Where the rest of the base policy's noise is drawn from
    the prior, ``rest_size`` further numbers of the noise are that draw, so zeros hold the rest at zero too.

    Raises:
        ValueError: when the actor was made for another noise.
    """

    kind = "steered"
    acting_scale = 0.0
    """of the noise, when it acts as well as it can: zeros are the mean of the actor"""

    def __init__(self, base: FrozenPolicy, actor: NoiseActor):
        super().__init__(base)
        self.actor = actor
        self.noise_space = space = NoiseSpace(
            base.spec.noise_shape, actor.config["bound"], **actor.config.get("noise", {})
        )
        if actor.config["action_dim"] != space.size:
            raise ValueError(
                f"the actor chooses {actor.config['action_dim']} numbers, its noise space has {space.size} "
                f"({space.describe()}, of {space.noise_shape})"
            )
        self.spec = replace(base.spec, noise_shape=(space.size + space.rest_size,), sha256="")

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, A + rest_size)`` -> the executed chunk ``(B, Ta, Da)``.

        Raises:
            ValueError: when the noise has another shape.
        """
        self._check_noise(cond, noise)
        space = self.noise_space
        eps, rest = noise.split([space.size, space.rest_size], dim=-1)
        return self.base.decode(cond, space.to_noise(self.actor(cond, eps), rest))

    def predict(
        self, obs: np.ndarray, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Act in the world: ``(To, Do)`` or ``(B, To, Do)`` in environment units -> ``(Ta, Da)`` or ``(B, Ta, Da)``.

        A choice among candidates draws them also when it is deterministic: zeros would leave it nothing to choose from.
        """
        batch = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        single = batch.ndim == 2
        batch = batch[None] if single else batch
        shape = (len(batch), *self.spec.noise_shape)
        still = deterministic and not self.acting_scale
        eps = torch.zeros(shape) if still else torch.randn(shape, generator=generator)
        chunk = self.sample(batch, eps.to(self.device)).cpu().numpy()
        return chunk[0] if single else chunk

    def _check_noise(self, cond: Tensor, noise: Tensor) -> None:
        expected = (len(cond), *self.spec.noise_shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {expected}")

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


class SelectingPolicy(SteeredPolicy):
    """Draws ``n`` noises from ``N(0, I)``, denoises them in one batch, and plays the chunk that the critics like best.

    It stays inside what the base policy does anyway. A decision costs the denoising of ``n`` chunks instead of one. Its
    noise is ``(n, A + rest_size)``, the candidates themselves, so it is as random as the base policy.

    Args:
        base: the frozen policy.
        actor: of the same agent; it does not act here, but is kept with it.
        critic: rates ``(cond, chunk)``.
        choice: ``{"candidates": n, "low": [Da], "high": [Da]}``: the limits are those of the
            environment's actions, which chunks are clipped to before they are rated.
    """

    kind = "selecting"
    acting_scale = 1.0
    low: Tensor
    high: Tensor

    def __init__(self, base: FrozenPolicy, actor: NoiseActor, critic: CriticEnsemble, choice: Mapping[str, Any]):
        super().__init__(base, actor)
        self.critic, self.choice = critic, dict(choice)
        size = self.noise_space.size + self.noise_space.rest_size
        self.spec = replace(self.spec, noise_shape=(int(choice["candidates"]), size))
        self.register_buffer("low", torch.tensor(choice["low"], device=base.device), persistent=False)
        self.register_buffer("high", torch.tensor(choice["high"], device=base.device), persistent=False)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, n, A + rest_size)`` -> the executed chunk ``(B, Ta, Da)``.

        Raises:
            ValueError: when the noise has another shape.
        """
        self._check_noise(cond, noise)
        n, space = noise.shape[1], self.noise_space
        # 1. all candidates of all observations in one batch, inside the box that the agent knows
        action, rest = rearrange(noise, "b n d -> (b n) d").split([space.size, space.rest_size], dim=-1)
        action = action.clamp(-space.bound, space.bound)
        chunks = self.base.decode(cond.repeat_interleave(n, dim=0), space.to_noise(action, rest))
        chunks = rearrange(chunks.clamp(self.low, self.high), "(b n) t d -> b n t d", n=n)
        # 2. the one of the highest pessimistic value
        q = self.critic(cond, rearrange(chunks, "b n t d -> b n (t d)"))
        best = reduce_q(q, "min").argmax(dim=1)
        return chunks[torch.arange(len(cond), device=cond.device), best]

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        return {**super().config_dict(), "critic": self.critic.config, "choice": self.choice}


def best_of(
    base: FrozenPolicy, critic: CriticEnsemble, candidates: int, low: Sequence[float], high: Sequence[float]
) -> SelectingPolicy:
    """Best-of-N without an agent: ``candidates`` chunks of the base policy, of which the critic's favourite is played.

    It costs ``candidates`` calls of the network where the base policy makes one; classifier-free guidance costs two.

    Args:
        base: the frozen policy.
        critic: rates ``(cond, chunk)``; that of :class:`~dsrl.values.ImplicitQ`, for one.
        candidates: how many.
        low, high: limits of the environment's actions, ``(Da,)``.
    """
    size = math.prod(base.spec.noise_shape)
    # an actor that never acts, and a box that N(0, I) does not leave
    shape: dict[str, Any] = {"sizes": [base.cond_dim], "action_dim": size, "activation": "silu"}
    actor = NoiseActor({**shape, "state_dependent_std": False, "squash": False, "bound": 10.0}).to(base.device)
    choice = {"candidates": candidates, "low": list(map(float, low)), "high": list(map(float, high))}
    return SelectingPolicy(base, actor.requires_grad_(False), critic, choice)
