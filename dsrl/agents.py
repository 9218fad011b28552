"""The stock agents of stable-baselines3, set up to steer: SAC and PPO over a steered environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from dsrl.config import FinetuneConfig
from dsrl.errors import DsrlError
from dsrl.policy import FrozenPolicy


class ChunkReplayBuffer(ReplayBuffer):
    """A replay buffer that knows how many env steps each transition took.

    Its samples carry ``discounts = gamma ** k``, which stock SAC uses in place of its own ``gamma``.
    """

    def __init__(self, *args: Any, gamma: float = 0.99, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self.chunk_lengths = np.ones((self.buffer_size, self.n_envs), dtype=np.float32)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one decision of every environment."""
        self.chunk_lengths[self.pos] = [info.get("chunk_length", 1) for info in infos]
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        env_inds = np.random.randint(0, self.n_envs, size=len(batch_inds))
        at = (batch_inds, env_inds)
        # a time limit is not a termination: the value of the last observation still counts
        terminated = self.dones[at] * (1 - self.timeouts[at])
        rewards = self._normalize_reward(self.rewards[at].reshape(-1, 1), env)
        return ReplayBufferSamples(
            observations=self.to_torch(np.asarray(self._normalize_obs(self.observations[at], env))),
            actions=self.to_torch(self.actions[at]),
            next_observations=self.to_torch(np.asarray(self._normalize_obs(self.next_observations[at], env))),
            dones=self.to_torch(terminated.reshape(-1, 1)),
            rewards=self.to_torch(rewards),
            discounts=self.to_torch(self.gamma ** self.chunk_lengths[at].reshape(-1, 1)),
        )


class LayerNormCritic(ContinuousCritic):
    """Q-networks with LayerNorm after every hidden layer: without it, high update ratios diverge."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        features_dim = kwargs["features_dim"] + get_action_dim(self.action_space)
        for index in range(self.n_critics):
            layers = create_mlp(
                features_dim, 1, kwargs["net_arch"], kwargs["activation_fn"], post_linear_modules=[nn.LayerNorm]
            )
            self.q_networks[index] = nn.Sequential(*layers)
            self.add_module(f"qf{index}", self.q_networks[index])


class SteeringPolicy(SACPolicy):
    """SAC's networks with LayerNorm critics and an actor that starts close to the base policy.

    The last layer of the actor starts near zero, so the first steered noise is ``bound * tanh(N(0, I))``, which for
    ``bound = 1.5`` has a standard deviation of 0.94: nearly the prior, and far from SAC's usual saturated start.
    """

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Shrink the output layers."""
        actor = super().make_actor(features_extractor)
        with torch.no_grad():
            for head in (actor.mu, actor.log_std):
                assert isinstance(head, nn.Linear)  # it would be a parameter with generalised exploration only
                head.weight.mul_(0.01)
                head.bias.zero_()
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Build the normalised critics."""
        return LayerNormCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(
            self.device
        )


def build_sac(config: FinetuneConfig, env: VecEnv, chunk_steps: int, **common: Any) -> SAC:
    """Stock SAC. One of its timesteps is one decision."""
    return SAC(
        SteeringPolicy,
        env,
        learning_rate=config.sac.learning_rate,
        buffer_size=config.sac.buffer_size,
        learning_starts=config.warmup_env_steps // chunk_steps,
        batch_size=config.sac.batch_size,
        tau=config.sac.tau,
        gamma=config.gamma**chunk_steps,
        train_freq=1,
        gradient_steps=max(1, round(config.sac.updates_per_env_step * chunk_steps * config.n_envs)),
        ent_coef=_number(config.sac.ent_coef),
        target_entropy=_number(config.sac.target_entropy),
        replay_buffer_class=ChunkReplayBuffer,
        replay_buffer_kwargs={"gamma": config.gamma},
        policy_kwargs={
            "net_arch": list(config.hidden_dims),
            "activation_fn": nn.SiLU,
            "n_critics": config.sac.n_critics,
        },
        **common,
    )


def build_ppo(config: FinetuneConfig, env: VecEnv, chunk_steps: int, **common: Any) -> PPO:
    """Stock PPO. Its Gaussian starts as ``N(0, I)``: the base policy, up to the clipping at the box.

    Raises:
        DsrlError: when a roll-out is shorter than two decisions of every environment.
    """
    n_steps = config.ppo.rollout_env_steps // (chunk_steps * config.n_envs)
    if n_steps < 2:
        raise DsrlError(
            f"--ppo.rollout-env-steps is {config.ppo.rollout_env_steps}; {config.n_envs} environments with chunks of "
            f"{chunk_steps} need at least {2 * chunk_steps * config.n_envs}"
        )
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=config.ppo.learning_rate,
        n_steps=n_steps,
        batch_size=config.ppo.batch_size,
        n_epochs=config.ppo.n_epochs,
        gamma=config.gamma**chunk_steps,
        gae_lambda=config.ppo.gae_lambda,
        clip_range=config.ppo.clip_range,
        ent_coef=config.ppo.ent_coef,
        target_kl=config.ppo.target_kl,
        policy_kwargs={"net_arch": list(config.hidden_dims), "activation_fn": nn.Tanh, "log_std_init": 0.0},
        **common,
    )


@dataclass(frozen=True)
class Algorithm:
    """What differs between agents outside of their own code."""

    build: Callable[..., BaseAlgorithm]
    bound: float
    """default half-width of the noise: SAC's squashed actor starts near N(0, I) at 1.5, PPO's Gaussian needs 3"""
    log_interval: int
    """SAC counts finished episodes between log entries, PPO roll-outs of thousands of env steps"""


ALGORITHMS = {
    "sac": Algorithm(build_sac, bound=1.5, log_interval=10),
    "ppo": Algorithm(build_ppo, bound=3.0, log_interval=1),
}


def steering_facts(
    algo: str, bound: float, policy: FrozenPolicy, noise: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What an agent file must know beside its weights: plain values that its JSON holds readably.

    ``noise`` is ``NoiseSpace.layout()``; a file without it chooses the whole noise.
    """
    facts = {"algo": algo, "bound": bound, "base_policy_sha256": policy.spec.sha256}
    return {**facts, "noise": dict(noise)} if noise else facts


def _number(value: str) -> str | float:
    """``auto`` and ``auto_0.1`` stay words, everything else is a number."""
    return value if value.startswith("auto") else float(value)
