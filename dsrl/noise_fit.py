"""How noise-aliased SAC learns: a fit to the warm-up, then gradient steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsrl.averaging import follow
from dsrl.demo_mix import DemoMix
from dsrl.errors import LossNotFinite
from dsrl.noise_losses import NoiseLosses
from dsrl.piloted import PilotedSAC
from dsrl.samples import SteeringSamples
from dsrl.sb3_logging import Means


class FittedSAC(PilotedSAC):
    """SAC on noise whose critics and actor learn from the warm-up's episodes before anything is steered.

    What it is made of is up to :class:`~dsrl.noise_aliased.NoiseAliasedSAC`.
    """

    losses: NoiseLosses
    demos: DemoMix | None
    fit_updates: int
    fit_actor_updates: int
    distill_after: int
    average_decay: float
    ent_coef_max: float
    pool_refresh: float
    _actor_updates: int

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """``gradient_steps`` times: critics on chunks, their distillation, the actor."""
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, self.policy.noise_critic.optimizer])  # type: ignore[list-item]
        log = Means()
        if not self._n_updates:
            self._fit(batch_size, log)
        for _ in range(gradient_steps):
            self._update(batch_size, log)
        for _ in range(self.distill_after):
            log.add(distill_loss=self._step(self.policy.noise_critic, self.losses.distill(self._batch(batch_size))))
        if self.deploy == "actor":
            self.policy.deploy()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for pilot, mean in self.pilots.means().items():
            self.logger.record(f"rollout/{pilot}", mean)
        for name, value in log.read().items():
            self.logger.record(f"train/{name}", value)
            if not np.isfinite(value):
                raise LossNotFinite(f"train/{name} is {value} after {self._n_updates} gradient steps")

    def _fit(self, batch_size: int, log: Means) -> None:
        for step in range(self.fit_updates + self.fit_actor_updates):
            self._update(batch_size, log, fit=True, actor=step >= self.fit_updates)
        self.critic_target.load_state_dict(self.critic.state_dict())

    def _update(self, batch_size: int, log: Means, *, fit: bool = False, actor: bool = True) -> None:
        returns = fit or self.losses.targets == "returns"
        batch, price = self._batch(batch_size, ends=returns), self._price()
        # 1. Q_A: what the episode earned from there on, or temporal differences
        target = self.losses.returns(batch, price) if returns else self.losses.bootstrap(batch, price)
        loss, q_mean = self.losses.critic(batch, target)
        log.add(critic_loss=self._step(self.critic, loss), q_mean=q_mean)  # type: ignore[arg-type]
        follow(self.critic_target.parameters(), self.critic.parameters(), 1 - self.tau)
        # 2. Q_W <- Q_A, before anybody climbs it
        if not self.distill_after:
            log.add(distill_loss=self._step(self.policy.noise_critic, self.losses.distill(batch)))
        # 3. the actor climbs Q_W
        if actor:
            loss, divergence = self.losses.actor(batch, price)
            log.add(actor_loss=self._step(self.policy.actor, loss), divergence=divergence.mean(), ent_coef=price)
            self._adapt_price(divergence)
            self._actor_updates += 1
            # a young average forgets its start sooner
            decay = min(self.average_decay, self._actor_updates / (self._actor_updates + 9))
            follow(self.policy.average_actor.parameters(), self.policy.actor.parameters(), decay)

    def _batch(self, batch_size: int, *, ends: bool = False) -> SteeringSamples:
        assert self.replay_buffer is not None
        if self.pool_refresh:
            self.replay_buffer.refresh(round(self.pool_refresh * batch_size))
        options: dict[str, Any] = {"env": self._vec_normalize_env, "unknown_noise": True, "ends": ends}
        if self.demos is None:
            return self.replay_buffer.sample(batch_size, **options)
        return self.demos.sample(self.replay_buffer, batch_size, self.num_timesteps, **options)

    def _price(self) -> Tensor:
        """Of a nat."""
        if self.log_ent_coef is None:
            return self.ent_coef_tensor
        return self.log_ent_coef.detach().exp().squeeze()

    def _adapt_price(self, divergence: Tensor) -> None:
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            return
        self.ent_coef_optimizer.zero_grad()
        # dearer while the actor is further away than it should be
        (self.log_ent_coef * (-self.target_entropy - divergence).mean()).sum().backward()  # type: ignore[operator]
        self.ent_coef_optimizer.step()
        with torch.no_grad():
            self.log_ent_coef.clamp_(max=float(np.log(self.ent_coef_max)))

    @staticmethod
    def _step(network: nn.Module, loss: Tensor) -> Tensor:
        """One step of the network's own optimiser; the gradients of everything else are not even computed."""
        optimizer: Any = network.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=list(network.parameters()))
        optimizer.step()
        return loss.detach()
