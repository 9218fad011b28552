"""TD3+BC (arXiv 2106.06860): a deterministic actor that climbs a critic and stays near what was recorded."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from dsrl.averaging import follow
from dsrl.awr import GaussianConfig, GaussianPolicy, awr_weights
from dsrl.critics import CriticEnsemble
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.transitions import Transitions
from dsrl.values import ImplicitQ, ValuesConfig

SQUASHED = {"type": "gaussian", "hidden_dims": [256, 256], "activation": "ReLU", "layer_norm": False, "squash": True}
"""a network whose mean passes through tanh"""


@dataclass(frozen=True)
class TD3BCConfig:
    """The defaults of the paper."""

    alpha: float = 2.5
    """weight of the critic against cloning"""
    policy_noise: float = 0.2
    """of the actions in targets, in half-widths of their range"""
    noise_clip: float = 0.5
    policy_delay: int = 2
    """critic steps per step of the actor and of the targets"""
    tau: float = 0.005
    lr: float = 3e-4
    hidden_dims: tuple[int, ...] = (256, 256)
    """of the critics"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.lr <= 0 or self.policy_delay < 1:
            raise DsrlError("TD3+BC needs alpha >= 0, lr > 0 and a policy_delay of at least 1")


def squashed_policy(spec: PolicySpec, low: Tensor, high: Tensor, learn_std: bool, seed: int) -> GaussianPolicy:
    """A policy whose mean fills the range of the actions: ``tanh`` of a network, between ``low`` and ``high (Da,)``.

    Without a learned standard deviation it is 1, in half-widths of that range, as arXiv 2404.06356 takes deterministic
    actors for targets of guidance. It is evaluated at its mean either way.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = GaussianPolicy(spec, GaussianConfig({**SQUASHED, "learn_std": learn_std}))
    policy.action_normalizer.offset.copy_((low + high) / 2)
    policy.action_normalizer.scale.copy_((high - low) / 2)
    return policy


class TD3BC:
    """The learner; :attr:`policy` is a :class:`~dsrl.policy.FrozenPolicy` at any time.

    Args:
        policy: of :func:`squashed_policy`, on the device of the data; its observations are normalised as it says.
        config: rates and noise.
    """

    def __init__(self, policy: GaussianPolicy, config: TD3BCConfig | None = None):
        self.config = config = config or TD3BCConfig()
        self.policy = policy
        chunk_dim = policy.spec.n_action_steps * policy.spec.action_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.critic = CriticEnsemble(policy.cond_dim, chunk_dim, config.hidden_dims, 2, "relu").to(policy.device)
        self.policy_target = deepcopy(policy).requires_grad_(False)
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=config.lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.lr)
        self.generator = torch.Generator(device=policy.device).manual_seed(config.seed)
        self.steps = 0

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of the critics, and now and then one of the actor."""
        self.steps += 1
        critic_loss = self._critic_loss(batch)
        self.critic_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        self.critic_optimizer.step()
        metrics = {"train/critic_loss": critic_loss.detach()}
        if self.steps % self.config.policy_delay == 0:
            actor_loss, q = self._actor_loss(batch)
            self.actor_optimizer.zero_grad(set_to_none=True)
            actor_loss.backward()
            self.actor_optimizer.step()
            metrics |= {"train/actor_loss": actor_loss.detach(), "train/q": q}
            for target, net in ((self.policy_target, self.policy), (self.critic_target, self.critic)):
                follow(target.parameters(), net.parameters(), 1 - self.config.tau)
        return metrics

    def _critic_loss(self, batch: Transitions) -> Tensor:
        """Both critics towards ``r + gamma^k min Q'(s', pi'(s') + clipped noise)``."""
        with torch.no_grad():
            action = self.play(batch.next_cond, self.policy_target)
            config, half = self.config, self.policy.action_normalizer.scale
            noise = torch.randn(action.shape, generator=self.generator, device=action.device)
            noise = (noise * config.policy_noise).clamp(-config.noise_clip, config.noise_clip)
            unit = (self._unit(action) + noise).clamp(-1, 1)
            action = (unit.unflatten(1, (-1, len(half))) * half + self.policy.action_normalizer.offset).flatten(1)
            after = self.critic_target(batch.next_cond, action).amin(dim=0)
            target = batch.reward + torch.where(batch.terminated, 0.0, batch.discount) * after
        return (self.critic(batch.cond, batch.chunk) - target).square().mean(dim=1).sum()

    def _actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """``-alpha Q / mean |Q| + |pi(s) - a|^2`` over actions in units of their limits; beside it the mean of Q."""
        action = self.play(batch.cond, self.policy)
        q = self.critic(batch.cond, action)[0]
        cloning = (self._unit(action) - self._unit(batch.chunk)).square().mean()
        return cloning - self.config.alpha * q.mean() / q.detach().abs().mean().clamp_min(1e-8), q.detach().mean()

    @staticmethod
    def play(cond: Tensor, policy: GaussianPolicy) -> Tensor:
        """``(B, C)`` -> the mean chunk ``(B, Ta * Da)`` in environment units, with gradients."""
        return policy.executed(policy.denoiser.moments(cond)[0]).flatten(1)

    def _unit(self, chunk: Tensor) -> Tensor:
        return self.policy.action_normalizer.normalize(chunk.unflatten(1, (-1, self.policy.spec.action_dim))).flatten(1)


class IQL:
    """Implicit Q-learning with a Gaussian actor (arXiv 2110.06169), by the same calls as :class:`TD3BC`.

    Args:
        policy: of :func:`squashed_policy`, with a learned standard deviation.
        values: of the critics; the paper takes an expectile of 0.7 on locomotion.
        beta: inverse temperature of the advantages.
        seed: of the critics.
    """

    def __init__(self, policy: GaussianPolicy, values: ValuesConfig | None = None, beta: float = 3.0):
        self.policy, self.beta = policy, beta
        values = values or ValuesConfig(expectile=0.7)
        chunk_dim = policy.spec.n_action_steps * policy.spec.action_dim
        self.learner = ImplicitQ(policy.cond_dim, chunk_dim, values).to(policy.device)
        self.optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=values.lr)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of critics and value, and one of the actor on weights ``min(exp(beta A), 100)``."""
        metrics = self.learner.update(batch)
        weight = awr_weights(self.learner.advantages(batch.cond, batch.chunk).amin(dim=0), self.beta)
        mean, log_std = self.policy.denoiser.moments(batch.cond)
        spec, normalizer = self.policy.spec, self.policy.action_normalizer
        played = slice(spec.action_start, spec.action_start + spec.n_action_steps)
        done = normalizer.normalize(batch.chunk.unflatten(1, (-1, spec.action_dim)))
        spread = log_std[played]
        surprise = (0.5 * ((done - mean[:, played]) / spread.exp()).square() + spread).flatten(1).sum(dim=1)
        loss = (weight * surprise).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {**metrics, "train/actor_loss": loss.detach()}
