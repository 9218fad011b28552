"""DSRL-NA: a critic on executed chunks, distilled into a critic on noise that the actor climbs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from dsrl.critics import Reduction
from dsrl.demo_mix import DemoMix
from dsrl.errors import OtherBasePolicy
from dsrl.noise_fit import FittedSAC
from dsrl.noise_losses import Backup, NoiseLosses, Targets
from dsrl.noise_policy import NoiseAliasedPolicy
from dsrl.piloted import Deploy
from dsrl.pilots import Pilots
from dsrl.pools import Decoder
from dsrl.replay import SteeringReplayBuffer


class NoiseAliasedSAC(FittedSAC):
    """Noise-aliased SAC (arXiv 2506.15799, algorithm 1), called like stable-baselines3's SAC.

    ::

        Q_A(s, a)   on executed chunks, by temporal differences
        Q_W(s, w)   on noise, distilled:  Q_W(s, w) <- Q_A(s, pi_dp(s, w))
        pi(w | s)   climbs Q_W, and pays ent_coef for every nat that it leaves the prior by

    Every stored observation carries a *pool* of prior noises that the frozen policy has decoded once, so a gradient
    step does not call the frozen policy. ``pool_size=0`` with ``backup="actor"`` is the published update, which decodes
    in every step.

    Before the first steered decision the critics learn the value of the base policy from its own episodes
    (``fit_updates``), and the actor takes its first steps on them (``fit_actor_updates``).

    Args:
        policy: ``"MlpPolicy"``.
        env: a steered environment: ``SteeredVecEnv``, or ``SteeredEnv`` for one alone.
        learning_rate: of all networks.
        buffer_size: decisions that are kept.
        learning_starts: decisions of the base policy before anything is learned.
        batch_size: decisions per gradient step.
        tau: Polyak factor of the target critics.
        gamma: discount per env step.
        train_freq: vectorised decisions between updates.
        gradient_steps: per update.
        pool_size: decoded noises per observation; 0 decodes afresh in every gradient step.
        pool_refresh: share of a batch whose pools are redrawn per gradient step (each costs two decodes).
        targets: of the critics on chunks: what the episode has earned from a decision on, or temporal differences.
        backup: for temporal differences, the value of the next observation: the best or the mean of its pool, or the
            noise that the actor plays.
        soft_backup: pay for the actor's divergence in the target too (``backup="actor"`` only).
        lower_bound: no target falls below what an episode that terminated has earned from there on (sound where the
            simulator has little randomness of its own).
        critic_reduction: of the ensemble on chunks, in targets; candidates are always rated by its minimum.
        target_range: what a return can be; targets are clamped to it.
        ent_coef: price per nat; ``"auto"`` or ``"auto_0.1"`` adapts it.
        ent_coef_max: cap of the adapted one.
        ent_coef_learning_rate: of the adapted one.
        target_divergence: nats that the adapted price aims at: the KL divergence of a Gaussian actor, minus the entropy
            of a boxed one. None: 1, or 0.03 per dimension of the noise where that is more.
        fit_updates: critic updates on the warm-up decisions, before the first steered one.
        fit_actor_updates: actor updates after them.
        distill_noises: noises per observation and distillation step.
        distill_after: 0 distils in every gradient step, before the actor moves; a number does so many distillation
            steps after all others, as published.
        distill_per_head: head i of Q_W follows head i of Q_A, as published; else all follow the reduced Q_A.
        average_decay: of the moving average of the actor.
        candidates: noises of the prior among which the critics choose, where they do.
        deploy: what ``predict`` plays: ``actor``, the mean of the averaged actor; ``candidates``, the one of a few
            prior noises whose chunk the critics like best, which stays inside what the base policy does; ``auto``, the
            base policy, then the candidates, then copies of the averaged actor, its mean times what does best, each
            once it is no worse than what was deployed before, in episodes of training
            (:class:`~dsrl.pilots.Pilots`).
        clip_prior: clip prior noises to the bound, which the actor cannot leave.
        decode_bfloat16: denoise pools in half the precision.
        compile_update: compile the losses; worth it on a GPU.
        policy_kwargs: of :class:`~dsrl.noise_policy.NoiseAliasedPolicy`.

    Raises:
        DsrlError: when the environment is not a steered one.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": NoiseAliasedPolicy}

    def __init__(
        self,
        policy: str | type[NoiseAliasedPolicy],
        env: GymEnv,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 800,
        batch_size: int = 128,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 20,
        *,
        pool_size: int = 8,
        pool_refresh: float = 0.0,
        targets: Targets = "returns",
        backup: Backup = "max",
        soft_backup: bool = False,
        lower_bound: bool = True,
        critic_reduction: Reduction = "mean",
        target_range: tuple[float, float] = (-float("inf"), float("inf")),
        ent_coef: str | float = "auto_0.05",
        ent_coef_max: float = float("inf"),
        ent_coef_learning_rate: float = 0.01,
        target_divergence: float | None = None,
        fit_updates: int = 200,
        fit_actor_updates: int = 150,
        distill_noises: int = 2,
        distill_after: int = 0,
        distill_per_head: bool = False,
        average_decay: float = 0.998,
        candidates: int = 8,
        deploy: Deploy = "auto",
        clip_prior: bool = True,
        decode_bfloat16: bool = False,
        compile_update: bool = False,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.pool_size, self.pool_refresh = pool_size, pool_refresh
        self.targets, self.backup, self.soft_backup, self.lower_bound = targets, backup, soft_backup, lower_bound
        self.critic_reduction = critic_reduction
        self.target_range = target_range
        self.ent_coef_max, self.ent_coef_learning_rate = ent_coef_max, ent_coef_learning_rate
        self.target_divergence = target_divergence
        self.fit_updates, self.fit_actor_updates = fit_updates, fit_actor_updates
        self.distill_noises, self.distill_after = distill_noises, distill_after
        self.distill_per_head, self.average_decay, self.candidates = distill_per_head, average_decay, candidates
        self.clip_prior, self.deploy = clip_prior, deploy
        self.decode_bfloat16, self.compile_update = decode_bfloat16, compile_update
        self.deployed = "base" if deploy == "auto" else deploy
        self.pilots = Pilots()
        self.base_policy_sha256 = ""
        self._actor_updates = 0
        self.demos: DemoMix | None = None
        """demonstrations to learn from too, in a buffer of :meth:`new_buffer`"""
        if targets == "td" and backup != "actor" and not pool_size:
            raise ValueError(
                f"backup='{backup}' needs a pool; without one the actor's noise is decoded: backup='actor'"
            )
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            replay_buffer_class=SteeringReplayBuffer,
            replay_buffer_kwargs=replay_buffer_kwargs,
            ent_coef=ent_coef,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        if self.env is not None:
            spec = self._steering().policy.spec
            chunk_dim = spec.n_action_steps * spec.action_dim
            self.policy_kwargs["chunk_dim"] = chunk_dim
            kept = {"gamma": self.gamma, "chunk_dim": chunk_dim, "pool_size": self.pool_size}
            self.replay_buffer_kwargs = {**kept, **self.replay_buffer_kwargs}
        target = self.target_divergence
        if target is None:
            assert self.action_space.shape is not None
            target = max(1.0, 0.03 * self.action_space.shape[0])
        # stable-baselines3's name for what the temperature aims at
        self.target_entropy = -target  # type: ignore[assignment]
        super()._setup_model()
        if self.ent_coef_optimizer is not None:
            self.ent_coef_optimizer.param_groups[0]["lr"] = self.ent_coef_learning_rate
        self._attach()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Steer in another environment, of the same base policy."""
        super().set_env(env, force_reset)
        self._attach()

    def _attach(self) -> None:
        """Give the buffer the way to decode, which is not saved with it.

        Raises:
            OtherBasePolicy: when the environment is steered by another base policy than the one of this agent.
        """
        if self.env is None or self.replay_buffer is None:
            return
        steering = self._steering()
        sha256 = steering.policy.spec.sha256
        if self.base_policy_sha256 not in ("", sha256):
            raise OtherBasePolicy("this agent", self.base_policy_sha256, sha256)
        self.base_policy_sha256 = sha256
        assert self.action_space.shape is not None
        self.decoder = Decoder(
            steering,
            action_dim=self.action_space.shape[0],
            bound=self.policy.bound,
            size=self.pool_size or 1,
            clip_prior=self.clip_prior,
            bfloat16=self.decode_bfloat16,
        )
        self.losses = NoiseLosses(
            self.policy,
            self.decoder,
            targets=self.targets,
            backup=self.backup,
            soft_backup=self.soft_backup,
            lower_bound=self.lower_bound,
            reduction=self.critic_reduction,
            target_range=self.target_range,
            distill_noises=self.distill_noises,
            distill_per_head=self.distill_per_head,
        )
        if self.compile_update:
            self.losses = self.losses.compiled()
        self.replay_buffer.decoder = self.decoder

    def new_buffer(self, rows: int) -> SteeringReplayBuffer:
        """An empty buffer of the kind that this agent learns from, for demonstrations for one."""
        assert self.replay_buffer_kwargs is not None
        buffer = SteeringReplayBuffer(
            rows, self.observation_space, self.action_space, self.device, **self.replay_buffer_kwargs
        )
        buffer.decoder = self.decoder
        return buffer

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "demos", "decoder", "losses"]

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Take the buffer of an earlier run of the same shape.

        Raises:
            DsrlError: when a shape differs.
        """
        mine = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        assert mine is not None and self.replay_buffer is not None
        loaded, self.replay_buffer = self.replay_buffer, mine
        mine.fits(loaded)
        self.replay_buffer = loaded
        self._attach()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "policy.noise_critic.optimizer"], tensors
