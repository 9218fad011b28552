"""The networks of noise-aliased SAC: an actor on noise, critics on executed chunks, critics on noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from dsrl.actor import NoiseActor
from dsrl.critics import CriticEnsemble

ActorKind = Literal["gaussian", "box"]


class NoiseAliasedPolicy(SACPolicy):
    """What :class:`~dsrl.noise_aliased.NoiseAliasedSAC` learns.

    Args:
        chunk_dim: length of a flattened executed chunk.
        actor: ``gaussian`` starts as ``N(0, I)`` exactly and is held near it by a KL term; ``box`` is SAC's squashed
            Gaussian in ``[-bound, bound]``, which at ``bound = 1.5`` starts near the prior.
        n_critics: members of the ensemble on chunks.
        n_noise_critics: members of the ensemble on noise.
        critic_dropout: share of the hidden numbers of the critics on chunks that a gradient step leaves out.
        explore_spread: share of the actor's noise that training episodes are flown with.
        activation: of all networks.
        actor_layer_norm: a LayerNorm in the actor too, as published.
    """

    actor: NoiseActor  # type: ignore[assignment]  # anything with .optimizer does
    critic: CriticEnsemble  # type: ignore[assignment]
    critic_target: CriticEnsemble  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: Sequence[int] = (128, 128),
        *,
        chunk_dim: int,
        actor: ActorKind = "gaussian",
        n_critics: int = 4,
        n_noise_critics: int = 2,
        critic_dropout: float = 0.1,
        explore_spread: float = 0.25,
        activation: str = "silu",
        actor_layer_norm: bool = False,
        use_sde: bool = False,
    ):
        if use_sde:
            raise ValueError("generalised state-dependent exploration is not part of noise-aliased SAC")
        self.hidden_dims, self.chunk_dim, self.activation = tuple(net_arch), chunk_dim, activation
        self.actor_kind, self.actor_layer_norm = actor, actor_layer_norm
        self.n_noise_critics, self.critic_dropout, self.explore_spread = n_noise_critics, critic_dropout, explore_spread
        super().__init__(observation_space, action_space, lr_schedule, list(net_arch), n_critics=n_critics)
        # the actor speaks in noise; stable-baselines3 must not scale what it says
        self._squash_output = False

    @property
    def bound(self) -> float:
        """Half-width of the box of noise."""
        return float(self.action_space.high.flat[0])  # type: ignore[attr-defined]

    def _build(self, lr_schedule: Schedule) -> None:
        cond_dim, noise_dim = (int(np.prod(s.shape)) for s in (self.observation_space, self.action_space))  # type: ignore[arg-type]
        n_critics = int(self.critic_kwargs["n_critics"])  # type: ignore[call-overload]
        self.actor = NoiseActor(
            {
                "sizes": [cond_dim, *self.hidden_dims],
                "action_dim": noise_dim,
                "activation": self.activation,
                "state_dependent_std": True,
                "squash": self.actor_kind == "box",
                "bound": self.bound,
                "layer_norm": self.actor_layer_norm,
            }
        )
        # with heads at zero the Gaussian is N(0, I), whatever it observes
        for head in (self.actor.mean, self.actor.log_std):
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        # its moving average, and a copy of that from when it had proved itself
        self.average_actor, self.deployed_actor = (deepcopy(self.actor).requires_grad_(False) for _ in range(2))
        self.critic = CriticEnsemble(
            cond_dim, self.chunk_dim, self.hidden_dims, n_critics, self.activation, self.critic_dropout
        )
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        self.noise_critic = CriticEnsemble(cond_dim, noise_dim, self.hidden_dims, self.n_noise_critics, self.activation)
        for network in (self.actor, self.critic, self.noise_critic):
            learned: Any = network
            learned.optimizer = torch.optim.Adam(network.parameters(), lr=lr_schedule(1), fused=True)

    def sample_noise(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Noise with a gradient ``(B, A)``, and how far its distribution is from the prior, ``(B,)`` nats.

        Both measures are about the noise itself, so they mean the same for every bound and dimension: the KL divergence
        ``KL(pi || N(0, I))`` of a Gaussian actor, ``log pi(w)`` (minus the entropy, up to sampling) of a boxed one.
        """
        # 1. w = f(mean + std * eps)
        mean, log_std = self.actor.moments(cond)
        eps = torch.randn_like(mean)
        raw = mean + log_std.exp() * eps
        if self.actor_kind == "gaussian":
            kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(dim=-1)
            return raw, kl
        # 2. change of variables w = bound * tanh(raw); log(1 - tanh^2) in the form that does not overflow
        log_normal = -0.5 * (eps.square() + math.log(2 * math.pi)) - log_std
        log_slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw)) + math.log(self.bound)
        return self.bound * torch.tanh(raw), (log_normal - log_slope).sum(dim=-1)

    def explore(self, cond: Tensor) -> Tensor:
        """A draw of the learning actor ``(B, A)``."""
        return self.actor(cond, torch.randn(len(cond), self.actor.config["action_dim"], device=cond.device))

    def rehearse(self, cond: Tensor, reach: Tensor) -> Tensor:
        """What the averaged actor flies ``(B, A)``: ``reach`` ``(B, 1)`` times its mean, some of its noise."""
        eps = torch.randn(len(cond), self.actor.config["action_dim"], device=cond.device)
        return self.average_actor(cond, self.explore_spread * eps, reach)

    @torch.no_grad()
    def deploy(self, reach: float = 1.0) -> None:
        """A copy of the averaged actor, its mean times ``reach``."""
        self.deployed_actor.load_state_dict(self.average_actor.state_dict())
        for parameter in self.deployed_actor.mean.parameters():
            parameter.mul_(reach)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Noise of the deployed actor."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        shape = (len(observation), self.deployed_actor.config["action_dim"])
        eps = torch.zeros(shape, device=observation.device)
        return self.deployed_actor(observation, eps if deterministic else torch.randn_like(eps))

    def set_training_mode(self, mode: bool) -> None:
        """Nothing here behaves differently while training."""
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "net_arch": self.hidden_dims,
            "chunk_dim": self.chunk_dim,
            "actor": self.actor_kind,
            "n_critics": self.critic_kwargs["n_critics"],
            "n_noise_critics": self.n_noise_critics,
            "critic_dropout": self.critic_dropout,
            "explore_spread": self.explore_spread,
            "activation": self.activation,
            "actor_layer_norm": self.actor_layer_norm,
        }
