"""Whole configurations by name: ``dsrl finetune --preset reference``."""

from __future__ import annotations

from dsrl.agent_config import NAConfig
from dsrl.config import FinetuneConfig
from dsrl.errors import DsrlError, nearest

PRESETS = {
    # DSRL-NA as its public code runs it (robomimic settings, networks of 3 x 128). Every trait can be switched back by
    # its own flag, so that comparisons change one thing at a time
    "reference": FinetuneConfig(
        algo="na",
        reward="step-cost",
        gamma=0.99,
        # the noise is held in [-1, 1] whatever the magnitude
        bound=1.0,
        warmup_episodes=60,
        warmup_successes=0,
        hidden_dims=(128, 128, 128),
        na=NAConfig(
            batch_size=256,
            n_critics=2,
            critic_dropout=0.0,
            critic_reduction="min",
            # 20 gradient steps for a decision of each of four environments, then 10 distillation steps
            updates_per_chunk=5.0,
            distill_after=10,
            distill_per_head=True,
            targets="td",
            fit_updates=0,
            fit_actor_updates=0,
            pool_size=0,
            backup="actor",
            soft_backup=True,
            lower_bound=False,
            clamp_targets=False,
            actor="box",
            ent_coef="auto_1.0",
            ent_coef_learning_rate=3e-4,
            # zero entropy of u = noise / bound
            target_divergence=0.0,
            average_decay=0.0,
            deploy="actor",
            activation="tanh",
            actor_layer_norm=True,
            clip_prior=False,
            discount_per_chunk=True,
            time_limit_terminates=True,
        ),
    ),
}


def preset(name: str) -> FinetuneConfig:
    """The configuration of that name.

    Raises:
        DsrlError: when there is none.
    """
    if name not in PRESETS:
        raise DsrlError(f"there is no preset '{name}'.{nearest(name, list(PRESETS))} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
