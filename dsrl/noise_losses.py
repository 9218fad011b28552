"""What the three networks of noise-aliased SAC regress on and climb."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dsrl.critics import Reduction, reduce_q
from dsrl.noise_policy import NoiseAliasedPolicy
from dsrl.pools import Decoder, Pool
from dsrl.samples import SteeringSamples

Targets = Literal["returns", "td"]
Backup = Literal["max", "mean", "actor"]


@dataclass
class NoiseLosses:
    """The losses of noise-aliased SAC (arXiv 2506.15799, algorithm 1) on a batch; nothing here takes a step.

    ``price`` is what the actor pays per nat that it leaves the prior by, a tensor of no dimensions.
    """

    policy: NoiseAliasedPolicy
    decoder: Decoder
    targets: Targets
    """of Q_A: what an episode has earned from a decision on, or temporal differences"""
    backup: Backup
    """for temporal differences, value of the next observation: the best or the mean of its pool, or the actor's"""
    soft_backup: bool
    """pay for the actor's divergence there too"""
    lower_bound: bool
    """no target falls below what an episode that terminated has earned"""
    reduction: Reduction
    """of the ensemble on chunks"""
    target_range: tuple[float, float]
    """what a return can be"""
    distill_noises: int
    """per observation"""
    distill_per_head: bool
    """head i of Q_W follows head i of Q_A; else all follow the reduced Q_A"""

    def critic(self, batch: SteeringSamples, target: Tensor) -> tuple[Tensor, Tensor]:
        """Q_A towards the targets ``(B,)``; beside the loss the mean value."""
        q = self.policy.critic(batch.observations, batch.chunks, dropout=True)
        error = q - target.clamp(*self.target_range)
        return 0.5 * error.square().mean(dim=1).sum(), q.detach().mean()

    @torch.no_grad()
    def returns(self, batch: SteeringSamples, price: Tensor) -> Tensor:
        """What the episode earned from here on, ``(B,)``; a value stands in for what was not played to its end."""
        assert batch.end_observations is not None
        pool = batch.end_pool
        value = self._value(batch.end_observations, pool and self._some_of(pool, 1), "mean", price)
        return (batch.earned + batch.remaining * value[:, None]).squeeze(1)

    @torch.no_grad()
    def bootstrap(self, batch: SteeringSamples, price: Tensor) -> Tensor:
        """``y = r + gamma^k * V(s')``, ``(B,)``; nothing after a termination."""
        value = self._value(batch.next_observations, batch.next_pool, self.backup, price)[:, None]
        target = batch.rewards + (1 - batch.dones) * batch.discounts * value
        if self.lower_bound:
            # the best noise earns at least what has been earned once
            earned = torch.where(batch.remaining == 0, batch.earned, -torch.inf)
            target = torch.maximum(target, earned)
        return target.squeeze(1)

    def _value(self, cond: Tensor, pool: Pool | None, backup: Backup, price: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B,)``: of the best noise of the pool, of the mean one, or of the actor's."""
        if backup != "actor" and pool is not None:
            q = reduce_q(self.policy.critic_target(cond, pool.chunks), self.reduction)
            return q.amax(dim=1) if backup == "max" else q.mean(dim=1)
        noise, divergence = self.policy.sample_noise(cond)
        q = reduce_q(self.policy.critic_target(cond, self.decoder.decode(cond, noise)), self.reduction)
        return q - price * divergence if self.soft_backup else q

    @staticmethod
    def _some_of(pool: Pool, count: int) -> Pool:
        """The same random noises of every pool."""
        size, device = pool.actions.shape[1], pool.actions.device
        return pool.part(torch.randperm(size, device=device)[:count])

    def distill(self, batch: SteeringSamples) -> Tensor:
        """``Q_W(s, w) <- Q_A(s, pi_dp(s, w))`` for prior noises w, of the pool where there is one."""
        cond, pool = batch.observations, batch.pool
        pool = self.decoder(cond, 1) if pool is None else self._some_of(pool, self.distill_noises)
        with torch.no_grad():
            q = self.policy.critic(cond, pool.chunks)
            target = q if self.distill_per_head else reduce_q(q, self.reduction)
        q_w = self.policy.noise_critic(cond, pool.actions * self.policy.bound)
        return 0.5 * (q_w - target).square().flatten(1).mean(dim=1).sum()

    def actor(self, batch: SteeringSamples, price: Tensor) -> tuple[Tensor, Tensor]:
        """Climbs Q_W and pays; beside the loss the divergence from the prior, ``(B,)`` nats."""
        noise, divergence = self.policy.sample_noise(batch.observations)
        q_w = self.policy.noise_critic(batch.observations, noise)
        value = reduce_q(q_w, self.reduction) if self.distill_per_head else q_w.mean(dim=0)
        return (price * divergence - value).mean(), divergence.detach()

    def compiled(self, **options: Any) -> NoiseLosses:
        """The same, every loss compiled for one size of batch; ``options`` are those of :func:`torch.compile`."""
        ours: Any = copy(self)
        for name in ("critic", "returns", "bootstrap", "distill", "actor"):
            setattr(ours, name, torch.compile(getattr(self, name), dynamic=False, **options))
        return ours
