"""The agents that can steer, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dsrl.agents import NEVER, build_ppo, build_sac, number
from dsrl.config import FinetuneConfig
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.policy import FrozenPolicy

_UNBOUNDED = (-float("inf"), float("inf"))


@dataclass(frozen=True)
class Algorithm:
    """What differs between agents outside of their own code."""

    build: Callable[..., BaseAlgorithm]
    bound: Callable[[FinetuneConfig], float]
    """default half-width of the noise"""
    log_interval: int
    """SAC counts finished episodes between log entries, PPO roll-outs of thousands of env steps"""


def build_na(config: FinetuneConfig, env: VecEnv, chunk_steps: int, **common: Any) -> NoiseAliasedSAC:
    """Noise-aliased SAC. One of its timesteps is one decision."""
    na = config.na
    per_decision = na.updates_per_chunk or na.updates_per_env_step * chunk_steps
    return NoiseAliasedSAC(
        "MlpPolicy",
        env,
        learning_rate=na.learning_rate,
        buffer_size=na.buffer_size,
        learning_starts=NEVER,
        batch_size=na.batch_size,
        tau=na.tau,
        gamma=config.gamma,
        gradient_steps=max(1, round(per_decision * config.n_envs)),
        pool_size=na.pool_size,
        pool_refresh=na.pool_refresh,
        targets=na.targets,
        backup=na.backup,
        soft_backup=na.soft_backup,
        lower_bound=na.lower_bound,
        critic_reduction=na.critic_reduction,
        target_range=return_range(config, chunk_steps) if na.clamp_targets else _UNBOUNDED,
        ent_coef=number(na.ent_coef),
        ent_coef_max=na.ent_coef_max,
        ent_coef_learning_rate=na.ent_coef_learning_rate,
        target_divergence=na.target_divergence,
        fit_updates=na.fit_updates,
        fit_actor_updates=na.fit_actor_updates,
        distill_noises=na.distill_noises,
        distill_after=na.distill_after,
        distill_per_head=na.distill_per_head,
        average_decay=na.average_decay,
        candidates=na.candidates,
        deploy=na.deploy,
        clip_prior=na.clip_prior,
        decode_bfloat16=na.decode_bfloat16,
        compile_update=na.compile_update,
        replay_buffer_kwargs={
            "discount_per_chunk": na.discount_per_chunk,
            "time_limit_terminates": na.time_limit_terminates,
        },
        policy_kwargs={
            "net_arch": list(config.hidden_dims),
            "actor": na.actor,
            "n_critics": na.n_critics,
            "critic_dropout": na.critic_dropout,
            "n_noise_critics": na.n_critics if na.distill_per_head else 2,
            "activation": na.activation,
            "actor_layer_norm": na.actor_layer_norm,
        },
        **common,
    )


def return_range(config: FinetuneConfig, chunk_steps: int) -> tuple[float, float]:
    """The discounted returns that the reward convention can give."""
    if config.reward == "success":
        return 0.0, 1.0
    if config.reward == "step-cost" and config.gamma < 1:
        per_discount = chunk_steps if config.na.discount_per_chunk else 1
        return -per_discount / (1 - config.gamma), 0.0
    return _UNBOUNDED


def discount_inside(config: FinetuneConfig) -> float:
    """Of the rewards inside a chunk."""
    return 1.0 if config.algo == "na" and config.na.discount_per_chunk else config.gamma


ALGORITHMS = {
    "na": Algorithm(build_na, bound=lambda config: 1.5 if config.na.actor == "box" else 10.0, log_interval=10),
    # the squashed actor starts near N(0, I) at 1.5, the Gaussian of PPO needs 3
    "sac": Algorithm(build_sac, bound=lambda _: 1.5, log_interval=10),
    "ppo": Algorithm(build_ppo, bound=lambda _: 3.0, log_interval=1),
}


def steering_facts(
    config: FinetuneConfig, model: Any, bound: float, policy: FrozenPolicy, noise: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What an agent file must know beside its weights: plain values that its JSON holds readably.

    ``noise`` is ``NoiseSpace.layout()``; a file without it chooses the whole noise.
    """
    facts: dict[str, Any] = {"algo": config.algo, "bound": bound, "base_policy_sha256": policy.spec.sha256}
    if config.algo == "na":
        facts |= {"activation": config.na.activation, "squash": config.na.actor == "box"}
        facts |= {"critic": model.policy.critic.config, "choice": model.choice()}
    return {**facts, "noise": dict(noise)} if noise else facts
