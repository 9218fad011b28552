"""A gradient step of noise-aliased SAC, as one would write it straight from the paper: what ours is timed against.

Written from a description of the published update, not from its code: separate networks, diffusers' own loop for
decoding, a replay buffer in numpy, stock Adam, the actor's noise through numpy, a scalar read per loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]
# the exact slope: stable-baselines3 adds 1e-6 to it, which is more than rounding where the tanh saturates
_TANH = torch.distributions.transforms.TanhTransform()


class Sizes(NamedTuple):
    """Of the problem and of the networks."""

    cond: int
    horizon: int
    action: int
    hidden: Sequence[int]
    critics: int

    @property
    def chunk(self) -> int:
        """Numbers in a chunk."""
        return self.horizon * self.action


class Draws:
    """The random numbers of an update; a comparison puts recorded ones in their place."""

    def rows(self, count: int, batch: int) -> np.ndarray:
        """A batch out of ``count`` transitions."""
        return np.random.randint(count, size=batch)

    def noise(self, _what: str, batch: int, size: int) -> Tensor:
        """``(batch, size)``; ``now`` and ``next`` are of the actor, ``prior`` is of the distillation."""
        return torch.randn(batch, size)


class Actor(nn.Module):
    """A squashed Gaussian over the noise in [-1, 1]."""

    def __init__(self, sizes: Sequence[int], action_dim: int):
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.Tanh()]
        self.trunk = nn.Sequential(*layers)
        self.mean = nn.Linear(sizes[-1], action_dim)
        self.log_std = nn.Linear(sizes[-1], action_dim)

    def forward(self, cond: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``(B, A)`` and the log of its density ``(B, 1)``."""
        features = self.trunk(cond)
        mean, std = self.mean(features), self.log_std(features).clamp(-20, 2).exp()
        raw = mean + std * eps
        noise = torch.tanh(raw)
        log_prob = torch.distributions.Normal(mean, std).log_prob(raw) - _TANH.log_abs_det_jacobian(raw, noise)
        return noise, log_prob.sum(dim=1, keepdim=True)


class Critics(nn.Module):
    """Separate Q-networks."""

    def __init__(self, sizes: Sequence[int], count: int):
        super().__init__()
        self.networks = nn.ModuleList(self._network(sizes) for _ in range(count))

    @staticmethod
    def _network(sizes: Sequence[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, cond: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """``(B, C), (B, A)`` -> one ``(B, 1)`` per network."""
        x = torch.cat([cond, action], dim=1)
        return tuple(network(x) for network in self.networks)


class ReferenceUpdate:
    """The published update: ``train`` is ``gradient_steps`` steps, then ``distill_steps`` of the critic on noise.

    Args:
        sizes: of the networks.
        denoiser: the frozen policy's network.
        scheduler: with its time steps set.
        replay: columns ``obs next_obs chunk reward terminated``.
        draws: the random numbers.
    """

    def __init__(
        self,
        sizes: Sizes,
        denoiser: nn.Module,
        scheduler: DDIMScheduler,
        replay: Arrays,
        draws: Draws | None = None,
        *,
        gamma: float = 0.99,
        tau: float = 0.005,
        learning_rate: float = 3e-4,
        target_entropy: float = 0.0,
    ):
        self.sizes, self.denoiser, self.scheduler, self.replay = sizes, denoiser, scheduler, replay
        self.draws = draws or Draws()
        self.gamma, self.tau, self.target_entropy = gamma, tau, target_entropy
        widths = (sizes.cond + sizes.chunk, *sizes.hidden)
        self.actor = Actor((sizes.cond, *sizes.hidden), sizes.chunk)
        self.critic, self.critic_target = Critics(widths, sizes.critics), Critics(widths, sizes.critics)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.noise_critic = Critics(widths, sizes.critics)
        self.log_ent_coef = torch.zeros(1, requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning_rate)
        self.noise_critic_optimizer = torch.optim.Adam(self.noise_critic.parameters(), lr=learning_rate)
        self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=learning_rate)
        self.logged: dict[str, list[float]] = {}

    def train(self, gradient_steps: int, batch_size: int, distill_steps: int) -> None:
        """One call between two decisions."""
        for _ in range(gradient_steps):
            self.gradient_step(batch_size)
        for _ in range(distill_steps):
            self.distill_step(batch_size)

    def gradient_step(self, batch_size: int) -> None:
        """Temperature, Q_A, actor, target."""
        obs, next_obs, chunk, reward, terminated = self._sample(batch_size)
        # 1. temperature, as in SAC
        noise, log_prob = self.actor(obs, self.draws.noise("now", batch_size, self.sizes.chunk))
        ent_coef = self.log_ent_coef.detach().exp()
        ent_coef_loss = -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()
        self.ent_coef_optimizer.zero_grad()
        ent_coef_loss.backward()
        self.ent_coef_optimizer.step()
        # 2. Q_A, whose target decodes what the actor would do next
        with torch.no_grad():
            eps = self.draws.noise("next", batch_size, self.sizes.chunk)
            next_noise, next_log_prob = self.actor(next_obs, eps)
            executed = self._decode(next_obs, torch.as_tensor(next_noise.cpu().numpy()))
            next_q = torch.cat(self.critic_target(next_obs, executed), dim=1).min(dim=1, keepdim=True).values
            target = reward + (1 - terminated) * self.gamma * (next_q - ent_coef * next_log_prob)
        critic_loss = 0.5 * sum(F.mse_loss(q, target) for q in self.critic(obs, chunk))
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        # 3. the actor climbs Q_W
        q = torch.cat(self.noise_critic(obs, noise), dim=1).min(dim=1, keepdim=True).values
        actor_loss = (ent_coef * log_prob - q).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        # 4. target networks
        with torch.no_grad():
            for slow, fast in zip(self.critic_target.parameters(), self.critic.parameters(), strict=True):
                slow.mul_(1 - self.tau).add_(fast, alpha=self.tau)
        self._log(critic_loss=critic_loss, actor_loss=actor_loss, ent_coef=ent_coef, ent_coef_loss=ent_coef_loss)

    def distill_step(self, batch_size: int) -> None:
        """Q_W <- Q_A, head by head, on the prior."""
        obs, *_ = self._sample(batch_size)
        with torch.no_grad():
            noise = self.draws.noise("prior", batch_size, self.sizes.chunk)
            targets = self.critic(obs, self._decode(obs, noise))
        heads = zip(self.noise_critic(obs, noise), targets, strict=True)
        loss = 0.5 * sum(F.mse_loss(q, target) for q, target in heads)
        self.noise_critic_optimizer.zero_grad()
        loss.backward()
        self.noise_critic_optimizer.step()
        self._log(distill_loss=loss)

    def _sample(self, batch_size: int) -> tuple[Tensor, ...]:
        rows = self.draws.rows(len(self.replay["obs"]), batch_size)
        names = ("obs", "next_obs", "chunk", "reward", "terminated")
        return tuple(torch.as_tensor(self.replay[name][rows]) for name in names)

    @torch.no_grad()
    def _decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        x = noise.reshape(len(noise), self.sizes.horizon, self.sizes.action)
        for t in self.scheduler.timesteps:
            m = self.denoiser(x, t, cond)
            x = self.scheduler.step(m, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
        return x.flatten(1)

    def _log(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value.item())
