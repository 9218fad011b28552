"""Prior noises, and what the frozen policy makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROWS = 1024
"""that are denoised at once"""


class Pool(NamedTuple):
    """``M`` noises per observation, and what the frozen policy makes of them."""

    actions: Tensor
    """``(B, M, A)`` in the agent's units, noise / bound"""
    chunks: Tensor
    """``(B, M, Ta * Da)``"""

    def part(self, which: slice | Tensor) -> Pool:
        """Some of the noises of every observation."""
        return Pool(self.actions[:, which], self.chunks[:, which])

    def of(self, rows: Tensor) -> Pool:
        """The pools of some of the observations."""
        return Pool(self.actions[rows], self.chunks[rows])


def named(pools: tuple[Pool, Pool]) -> dict[str, Tensor]:
    """The columns that the pools of an observation and of the next one are kept in."""
    now, after = pools
    return {
        "pool_actions": now.actions,
        "pool_chunks": now.chunks,
        "next_pool_actions": after.actions,
        "next_pool_chunks": after.chunks,
    }


class Decoder:
    """Draws noises of the prior and denoises them.

    Args:
        steering: of a steered environment: ``decode(cond, noise)`` gives what would be executed.
        action_dim: length of a noise that the agent chooses.
        bound: half-width of its box.
        size: noises per observation.
        clip_prior: clip prior noises to the bound, which the agent cannot leave.
        bfloat16: denoise in half the precision, where the frozen policy is large and the device is made for it.
    """

    def __init__(
        self,
        steering: Any,
        *,
        action_dim: int,
        bound: float,
        size: int,
        clip_prior: bool = True,
        bfloat16: bool = False,
    ):
        self.steering, self.action_dim, self.bound, self.size = steering, action_dim, bound, size
        self.clip_prior, self.bfloat16 = clip_prior, bfloat16

    def __call__(self, cond: Tensor, size: int | None = None) -> Pool:
        """``(B, C)`` -> a pool of ``size`` noises for every observation."""
        size = size or self.size
        noise = self.prior(len(cond) * size)
        chunks = self.decode(cond.repeat_interleave(size, dim=0), noise)
        return Pool((noise / self.bound).unflatten(0, (-1, size)), chunks.unflatten(0, (-1, size)))

    @torch.compiler.disable
    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(N, C), (N, A)`` -> what would be executed, ``(N, Ta * Da)``."""
        rows = zip(cond.split(_ROWS), noise.split(_ROWS), strict=True)
        with torch.autocast(cond.device.type, torch.bfloat16, enabled=self.bfloat16):
            chunks = torch.cat([self.steering.decode(c, w) for c, w in rows])
        return chunks.flatten(1).to(cond.dtype)

    def prior(self, rows: int) -> Tensor:
        """``(rows, A)``."""
        noise = torch.randn(rows, self.action_dim, device=self.steering.policy.device)
        return noise.clamp(-self.bound, self.bound) if self.clip_prior else noise
