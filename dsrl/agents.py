"""The stock agents of stable-baselines3, set up to steer: SAC and PPO over a steered environment."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from dsrl.config import FinetuneConfig
from dsrl.errors import DsrlError
from dsrl.replay import SteeringReplayBuffer

NEVER = 10**12
"""``learning_starts`` of an agent whose warm-up is counted in episodes"""


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
    """Stock SAC. One timestep is one decision; whoever counts the warm-up's episodes sets ``learning_starts``."""
    return SAC(
        SteeringPolicy,
        env,
        learning_rate=config.sac.learning_rate,
        buffer_size=config.sac.buffer_size,
        learning_starts=NEVER,
        batch_size=config.sac.batch_size,
        tau=config.sac.tau,
        gamma=config.gamma**chunk_steps,
        train_freq=1,
        gradient_steps=max(1, round(config.sac.updates_per_env_step * chunk_steps * config.n_envs)),
        ent_coef=number(config.sac.ent_coef),
        target_entropy=number(config.sac.target_entropy),
        replay_buffer_class=SteeringReplayBuffer,
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


def number(value: str) -> str | float:
    """``auto`` and ``auto_0.1`` stay words, everything else is a number."""
    return value if value.startswith("auto") else float(value)
