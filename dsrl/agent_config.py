"""What the three agents are told; the defaults are those that measured best (docs/algorithms.md says on what)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dsrl.errors import DsrlError
from dsrl.limits import within


@dataclass(frozen=True)
class NAConfig:
    """Noise-aliased SAC: a critic on executed chunks, distilled into noise space (arXiv 2506.15799, DSRL-NA)."""

    learning_rate: float = 3e-4
    """of actor and critics"""
    updates_per_env_step: float = 0.5
    """gradient steps per env step; 0.5 is two per chunk of four"""
    updates_per_chunk: float | None = None
    """as published: gradient steps per decision instead, however many env steps it takes"""
    batch_size: int = 128
    """transitions per gradient step"""
    n_critics: int = 4
    """networks of the ensemble on chunks, 2 to 10"""
    critic_dropout: float = 0.1
    """share of their hidden numbers that a gradient step leaves out, so that they do not learn few episodes by heart"""
    critic_reduction: Literal["min", "mean", "subset"] = "mean"
    """of that ensemble, in targets; subset: the smaller of two random members. Candidates are rated by the minimum"""
    tau: float = 0.005
    """Polyak factor of the target critics"""
    buffer_size: int = 1_000_000
    """decisions that are kept"""
    fit_updates: int = 200
    """gradient steps of the critics on the returns of the warm-up, before the first steered decision"""
    fit_actor_updates: int = 150
    """gradient steps of the actor after them"""
    pool_size: int = 8
    """prior noises per observation that are decoded once and learned from; 0 decodes in every gradient step"""
    pool_refresh: float = 0.0
    """share of a batch whose pools are drawn and decoded anew, per gradient step"""
    targets: Literal["returns", "td"] = "returns"
    """of the critics on chunks: what the episode has earned from a decision on, or temporal differences"""
    backup: Literal["max", "mean", "actor"] = "max"
    """for temporal differences, value of the next observation: the best of its pool, the mean, or the actor's noise"""
    soft_backup: bool = False
    """backup 'actor': subtract the price of the actor's divergence there too"""
    lower_bound: bool = True
    """no target falls below what an episode that terminated has earned; for simulators, which repeat themselves"""
    clamp_targets: bool = True
    """keep targets inside what the reward can give"""
    actor: Literal["gaussian", "box"] = "gaussian"
    """gaussian: starts as N(0, I), a price on its KL divergence holds it there; box: SAC's, squashed into the bound"""
    ent_coef: str = "auto_0.05"
    """price of a nat away from the prior: a number, or 'auto_0.1' to adapt it from 0.1 on"""
    ent_coef_max: float = float("inf")
    """cap of an adapted price"""
    ent_coef_learning_rate: float = 0.01
    """of an adapted price"""
    target_divergence: float | None = None
    """nats that an adapted price aims at: KL divergence of the Gaussian, minus the entropy of a boxed actor's noise;
    left out: 1, or 0.03 per dimension of the noise where that is more"""
    average_decay: float = 0.998
    """of the moving average of the actor"""
    candidates: int = 8
    """noises of the prior from which the critics choose, where they do"""
    deploy: Literal["auto", "actor", "candidates"] = "auto"
    """what acts in the end: the mean of the averaged actor, the best of the candidates by the critics, or, in auto, the
    base policy, the candidates and copies of the averaged actor, each once it did so well in episodes of training"""
    distill_noises: int = 2
    """noises of the pool per observation in a distillation step"""
    distill_after: int = 0
    """as published: so many distillation steps after the gradient steps of a decision, instead of one inside each"""
    distill_per_head: bool = False
    """as published: head i of the noise critic follows head i of the other one; else all follow the reduced one"""
    activation: Literal["silu", "relu", "tanh"] = "silu"
    """of all networks"""
    actor_layer_norm: bool = False
    """as published: a LayerNorm in every hidden layer of the actor too"""
    clip_prior: bool = True
    """prior noise is clipped to the bound, which the actor cannot leave; as published it is not"""
    decode_bfloat16: bool = False
    """denoise the pools in half the precision, for large policies on a GPU; what is executed is not affected"""
    compile_update: bool = False
    """compile the gradient step, which takes a minute or more at the start; on a CPU it gains next to nothing"""
    discount_per_chunk: bool = False
    """as published: --gamma once per chunk, however many env steps it took, and none inside"""
    time_limit_terminates: bool = False
    """as published: nothing is worth anything after a time limit"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "batch_size", "n_critics", "buffer_size", "distill_noises", "candidates", prefix="na.")
        within(self, "[0, inf)", "pool_size", "fit_updates", "fit_actor_updates", "distill_after", prefix="na.")
        rates = ("learning_rate", "ent_coef_learning_rate", "updates_per_env_step", "updates_per_chunk")
        within(self, "(0, inf)", *rates, prefix="na.")
        within(self, "(0, inf]", "ent_coef_max", prefix="na.")
        within(self, "(0, 1]", "tau", prefix="na.")
        within(self, "[0, 1)", "critic_dropout", "average_decay", prefix="na.")
        within(self, "[0, 1]", "pool_refresh", prefix="na.")
        _number_or_auto(self, "na", "ent_coef")
        if self.targets == "td" and self.backup != "actor" and not self.pool_size:
            raise DsrlError(
                f"--na.backup {self.backup} needs a pool; with --na.pool-size 0 the noise of the actor is decoded: "
                "--na.backup actor"
            )
        if self.soft_backup and self.backup != "actor":
            raise DsrlError(f"--na.soft-backup is about the actor's noise; --na.backup is '{self.backup}', not 'actor'")


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic on the noise (arXiv 2506.15799, DSRL-SAC)."""

    learning_rate: float = 3e-4
    """of actor, critics and temperature"""
    updates_per_env_step: float = 1.25
    """gradient steps per env step; 1.25 is five per chunk of four"""
    batch_size: int = 128
    """transitions per gradient step"""
    n_critics: int = 4
    """Q-networks; the target takes their minimum. On Lift four learned more steadily than two"""
    tau: float = 0.005
    """Polyak factor of the target critics"""
    ent_coef: str = "0.003"
    """temperature: a number, 'auto', or 'auto_0.1' to start the automatic one at 0.1"""
    target_entropy: str = "auto"
    """for the automatic temperature: a number, in nats of u = noise / bound, or 'auto' (minus the dimension)"""
    buffer_size: int = 1_000_000
    """decisions that are kept"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "batch_size", "n_critics", "buffer_size", prefix="sac.")
        within(self, "(0, inf)", "learning_rate", "updates_per_env_step", prefix="sac.")
        within(self, "(0, 1]", "tau", prefix="sac.")
        _number_or_auto(self, "sac", "ent_coef", "target_entropy")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on the noise."""

    learning_rate: float = 3e-4
    """of actor and value network"""
    rollout_env_steps: int = 4096
    """env steps between updates, over all environments"""
    batch_size: int = 128
    """decisions per gradient step"""
    n_epochs: int = 10
    """passes over each roll-out"""
    gae_lambda: float = 0.95
    """of the generalised advantage estimate, per decision"""
    clip_range: float = 0.2
    """of the probability ratio"""
    ent_coef: float = 0.0
    """entropy bonus"""
    target_kl: float | None = 0.03
    """stops the epochs of an update early: a noise of 28 dimensions moves fast"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "rollout_env_steps", "batch_size", "n_epochs", prefix="ppo.")
        within(self, "(0, inf)", "learning_rate", "clip_range", "target_kl", prefix="ppo.")
        within(self, "[0, 1]", "gae_lambda", prefix="ppo.")
        within(self, "[0, inf)", "ent_coef", prefix="ppo.")


def _number_or_auto(config: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        try:
            float(value.removeprefix("auto").removeprefix("_") or 1.0)
        except ValueError:
            flag = f"--{prefix}.{name.replace('_', '-')}"
            raise DsrlError(f"{flag} is '{value}'; a number, 'auto' or 'auto_0.1'") from None
