"""DSRL-NA: a critic on executed chunks, distilled into a critic on noise that the actor climbs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dsrl.critics import Reduction, reduce_q
from dsrl.errors import DsrlError, LossNotFinite
from dsrl.noise_policy import NoiseAliasedPolicy
from dsrl.pilots import ACTOR, CANDIDATES, EXPLORE, Pilots
from dsrl.replay import Pool, SteeringReplayBuffer, SteeringSamples, join

Backup = Literal["max", "mean", "actor"]
Deploy = Literal["auto", "actor", "candidates"]
DemoMix = Literal["prefill", "ratio", "decay"]
_DECODE_ROWS = 1024


class NoiseAliasedSAC(SAC):
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
        learning_rate: of all networks and of the temperature.
        buffer_size: decisions that are kept.
        learning_starts: decisions of the base policy before anything is learned.
        batch_size: decisions per gradient step.
        tau: Polyak factor of the target critics.
        gamma: discount per env step.
        train_freq: vectorised decisions between updates.
        gradient_steps: per update.
        pool_size: decoded noises per observation; 0 decodes afresh in every gradient step.
        pool_refresh: share of a batch whose pools are redrawn per gradient step (each costs two decodes).
        backup: value of the next observation: the best or the mean of its pool, or the noise that the actor plays.
        soft_backup: pay for the actor's divergence in the target too (``backup="actor"`` only).
        lower_bound: no target falls below what an episode that terminated has earned from there on (sound where the
            simulator has little randomness of its own).
        critic_reduction: of the ensemble on chunks, in targets and scores.
        target_range: what a return can be; targets are clamped to it.
        ent_coef: price per nat; ``"auto"`` or ``"auto_0.1"`` adapts it.
        ent_coef_max: cap of the adapted one.
        target_divergence: nats that the adapted price aims at: the KL divergence of a Gaussian actor, minus the entropy
            of a boxed one.
        fit_updates: critic updates on the warm-up decisions, before the first steered one.
        fit_actor_updates: actor updates after them.
        distill_noises: noises per observation and distillation step.
        distill_after: 0 distils in every gradient step, before the actor moves; a number does so many distillation
            steps after all others, as published.
        distill_per_head: head i of Q_W follows head i of Q_A, as published; else all follow the reduced Q_A.
        average_decay: of the moving average of the actor, which is what ``predict`` plays.
        candidates: noises of the prior among which the critics choose, where they do.
        deploy: what ``predict`` plays: ``actor``, the mean of the averaged actor; ``candidates``, the one of a few
            prior noises whose chunk the critics like best, which stays inside what the base policy does; ``auto``, the
            candidates until the actor has done at least as well in episodes of training (:class:`~dsrl.pilots.Pilots`).
        clip_prior: clip prior noises to the bound, which the actor cannot leave.
        policy_kwargs: of :class:`~dsrl.noise_policy.NoiseAliasedPolicy`.

    Raises:
        DsrlError: when the environment is not a steered one.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": NoiseAliasedPolicy}
    policy: NoiseAliasedPolicy  # type: ignore[assignment]
    replay_buffer: SteeringReplayBuffer | None  # type: ignore[assignment]

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
        backup: Backup = "max",
        soft_backup: bool = False,
        lower_bound: bool = True,
        critic_reduction: Reduction = "min",
        target_range: tuple[float, float] = (-float("inf"), float("inf")),
        ent_coef: str | float = 0.03,
        ent_coef_max: float = float("inf"),
        target_divergence: float = 1.0,
        fit_updates: int = 200,
        fit_actor_updates: int = 150,
        distill_noises: int = 2,
        distill_after: int = 0,
        distill_per_head: bool = False,
        average_decay: float = 0.998,
        candidates: int = 8,
        deploy: Deploy = "auto",
        clip_prior: bool = True,
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
        self.backup, self.soft_backup, self.lower_bound = backup, soft_backup, lower_bound
        self.critic_reduction = critic_reduction
        self.target_range, self.ent_coef_max = target_range, ent_coef_max
        self.fit_updates, self.fit_actor_updates = fit_updates, fit_actor_updates
        self.distill_noises, self.distill_after = distill_noises, distill_after
        self.distill_per_head, self.average_decay, self.candidates = distill_per_head, average_decay, candidates
        self.clip_prior, self.deploy = clip_prior, deploy
        self.deployed = "actor" if deploy == "actor" else "candidates"
        self.pilots = Pilots()
        self.base_policy_sha256 = ""
        self._actor_updates = 0
        self.demo_buffer: SteeringReplayBuffer | None = None
        self.demo_mix: DemoMix = "prefill"
        self.demo_share, self.demo_decisions = 0.5, 1
        if backup != "actor" and not pool_size:
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
            # stable-baselines3's name for what the temperature aims at
            target_entropy=-target_divergence,
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
        super()._setup_model()
        self._attach()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Steer in another environment, of the same base policy."""
        super().set_env(env, force_reset)
        self._attach()

    def _attach(self) -> None:
        """Give the buffer the way to decode, which is not saved with it.

        Raises:
            DsrlError: when the environment is steered by another base policy than the one of this agent.
        """
        if self.env is None or self.replay_buffer is None:
            return
        sha256 = self._steering().policy.spec.sha256
        if self.base_policy_sha256 not in ("", sha256):
            raise DsrlError(
                f"this agent steers the base policy {self.base_policy_sha256[:12]}, the environment has {sha256[:12]}; "
                "an agent's noise means nothing to another policy"
            )
        self.base_policy_sha256 = sha256
        self.replay_buffer.decoder = self.draw_pool

    def new_buffer(self, rows: int) -> SteeringReplayBuffer:
        """An empty buffer of the kind that this agent learns from, such as :meth:`use_demonstrations` takes."""
        assert self.replay_buffer_kwargs is not None
        buffer = SteeringReplayBuffer(
            rows, self.observation_space, self.action_space, self.device, **self.replay_buffer_kwargs
        )
        buffer.decoder = self.draw_pool
        return buffer

    def use_demonstrations(
        self, buffer: SteeringReplayBuffer, mix: DemoMix = "prefill", share: float = 0.5, decisions: int = 1
    ) -> None:
        """Learn from these transitions too; their noise need not be known.

        Args:
            buffer: from :meth:`new_buffer`.
            mix: ``prefill``: as if they stood in the replay buffer from the start, so their share falls as it fills.
                ``ratio``: a fixed ``share`` of every batch. ``decay``: a share that falls to zero.
            share: of a batch.
            decisions: after which the share has decayed.
        """
        self.demo_buffer, self.demo_mix, self.demo_share, self.demo_decisions = buffer, mix, share, decisions

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "demo_buffer"]

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

    # -- acting ---------------------------------------------------------------------------------------------------

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        warming_up = self.num_timesteps < learning_starts
        pilots = self.pilots.start(n_envs, warming_up=warming_up)
        if warming_up:
            noise = self._prior((n_envs, self.policy.actor.config["action_dim"]))
        else:
            cond = torch.as_tensor(self._last_obs, dtype=torch.float32, device=self.device)
            noise = self._fly(cond, pilots)
        played = noise.cpu().numpy()
        return played, played / self.policy.bound

    @torch.no_grad()
    def _fly(self, cond: Tensor, pilots: Sequence[str]) -> Tensor:
        """Noise ``(n_envs, A)``: of every environment's pilot, or of the actor alone where that is what is deployed."""
        noise = self.policy.explore(cond)
        if self.deploy == "actor":
            return noise
        assert self.replay_buffer is not None
        obs = self._last_original_obs if self._vec_normalize_env is not None else self._last_obs
        pool = self.replay_buffer.pool_for(obs) if self.pool_size >= self.candidates else None  # type: ignore[arg-type]
        by_pilot = {
            EXPLORE: noise,
            ACTOR: self.policy.average_actor(cond, torch.zeros_like(noise)),
            CANDIDATES: self.best_candidate(cond, pool),
        }
        return torch.stack([by_pilot[pilot][env] for env, pilot in enumerate(pilots)])

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        for env in np.flatnonzero(dones):
            episode = infos[env].get("episode", {"r": reward[env]})
            self.pilots.landed(int(env), float(infos[env].get("is_success", episode["r"])))
        if self.deploy == "auto" and dones.any():
            self.deployed = "actor" if self.pilots.better(ACTOR, CANDIDATES) else "candidates"

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The noise that is deployed; the candidates are drawn anew every time, also when it is deterministic.

        Raises:
            DsrlError: when candidates are to be decoded and there is no environment with the base policy.
        """
        if self.deployed == "actor":
            return super().predict(observation, state, episode_start, deterministic)
        if self.env is None:
            raise DsrlError(
                "this agent chooses among decoded candidates; give it its steered environment: set_env(env)"
            )
        cond, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(cond, Tensor)
        with torch.no_grad():
            noise = self.best_candidate(cond).cpu().numpy()
        return (noise if vectorized else noise[0]), state

    def best_candidate(self, cond: Tensor, pool: Pool | None = None) -> Tensor:
        """``(B, C)`` -> the noise ``(B, A)`` of highest pessimistic value, of a pool or freshly drawn."""
        pool = pool or self.draw_pool(cond, self.candidates)
        best = self.score(cond, pool.chunks[:, : self.candidates]).argmax(dim=1)
        return pool.actions[torch.arange(len(cond), device=cond.device), best] * self.policy.bound

    def choice(self) -> dict[str, Any]:
        """What :class:`~dsrl.steered.SelectingPolicy` must know: plain values."""
        space = self._steering().chunk_space
        low, high = (limit[0].tolist() for limit in (space.low, space.high))
        return {"candidates": self.candidates, "reduction": self.critic_reduction, "low": low, "high": high}

    def score(self, cond: Tensor, chunks: Tensor) -> Tensor:
        """``(B, C), (B, M, Ta * Da)`` -> the pessimistic value of every chunk, ``(B, M)``."""
        return reduce_q(self.critic(cond, chunks), self.critic_reduction)  # type: ignore[arg-type,operator]

    # -- the frozen policy ----------------------------------------------------------------------------------------

    def _steering(self) -> Any:
        """What denoises in the environment.

        Raises:
            DsrlError: when the environment is not a steered one.
        """
        assert self.env is not None
        steering = getattr(self.env, "steering", None) or _of_first(self.env)
        if steering is None:
            raise DsrlError("noise-aliased SAC learns in a steered environment; wrap yours in SteeredVecEnv")
        return steering

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(N, C), (N, A)`` -> what would be executed, ``(N, Ta * Da)``."""
        steering = self._steering()
        rows = zip(cond.split(_DECODE_ROWS), noise.split(_DECODE_ROWS), strict=True)
        return torch.cat([steering.decode(c, w) for c, w in rows]).flatten(1)

    def _prior(self, shape: tuple[int, int]) -> Tensor:
        noise = torch.randn(shape, device=self.device)
        return noise.clamp(-self.policy.bound, self.policy.bound) if self.clip_prior else noise

    @torch.no_grad()
    def draw_pool(self, cond: Tensor, size: int | None = None) -> Pool:
        """Prior noises for every observation ``(B, C)``, decoded."""
        size = size or self.pool_size or 1
        bound = self.policy.bound
        noise = self._prior((len(cond) * size, self.policy.actor.config["action_dim"]))
        chunks = self.decode(cond.repeat_interleave(size, dim=0), noise)
        return Pool((noise / bound).unflatten(0, (-1, size)), chunks.unflatten(0, (-1, size)))

    # -- learning -------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """``gradient_steps`` times: critics on chunks, their distillation, the actor."""
        assert self.replay_buffer is not None
        optimizers = [self.actor.optimizer, self.critic.optimizer, self.policy.noise_critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)  # type: ignore[arg-type]
        log = _Means()
        if not self._n_updates:
            for step in range(self.fit_updates + self.fit_actor_updates):
                self._update(batch_size, log, fit=True, actor=step >= self.fit_updates)
            self.critic_target.load_state_dict(self.critic.state_dict())
        for _ in range(gradient_steps):
            self._update(batch_size, log)
        for _ in range(self.distill_after):
            log.add(distill_loss=self._step(self.policy.noise_critic, self._distill_loss(self._batch(batch_size))))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for pilot in self.pilots.results:
            self.logger.record(f"rollout/{pilot}", self.pilots.mean(pilot))
        for name, value in log.read().items():
            self.logger.record(f"train/{name}", value)
            if not np.isfinite(value):
                raise LossNotFinite(f"train/{name} is {value} after {self._n_updates} gradient steps")

    def _update(self, batch_size: int, log: _Means, *, fit: bool = False, actor: bool = True) -> None:
        batch = self._batch(batch_size, ends=fit)
        # 1. Q_A: temporal differences on executed chunks, or in the fit the base policy's own returns
        log.add(critic_loss=self._step(self.critic, self._critic_loss(batch, log, fit=fit)))  # type: ignore[arg-type]
        _follow(self.critic_target, self.critic, 1 - self.tau)  # type: ignore[arg-type]
        # 2. Q_W <- Q_A, before anybody climbs it
        if not self.distill_after:
            log.add(distill_loss=self._step(self.policy.noise_critic, self._distill_loss(batch)))
        # 3. the actor climbs Q_W
        if actor:
            log.add(actor_loss=self._step(self.policy.actor, self._actor_loss(batch, log)))
            self._actor_updates += 1
            # a young average forgets its start sooner
            decay = min(self.average_decay, self._actor_updates / (self._actor_updates + 9))
            _follow(self.policy.average_actor, self.policy.actor, decay)

    def _batch(self, batch_size: int, *, ends: bool = False) -> SteeringSamples:
        assert self.replay_buffer is not None
        if self.pool_refresh:
            self.replay_buffer.refresh(round(self.pool_refresh * batch_size))
        kwargs: dict[str, Any] = {"env": self._vec_normalize_env, "unknown_noise": True, "ends": ends}
        shown = round(batch_size * self._demo_share())
        if not shown:
            return self.replay_buffer.sample(batch_size, **kwargs)
        assert self.demo_buffer is not None
        demonstrated = self.demo_buffer.sample(shown, **kwargs)
        if shown == batch_size:
            return demonstrated
        return join(self.replay_buffer.sample(batch_size - shown, **kwargs), demonstrated)

    def _demo_share(self) -> float:
        """Of the next batch."""
        if self.demo_buffer is None or not self.demo_buffer.rows:
            return 0.0
        assert self.replay_buffer is not None
        if self.demo_mix == "prefill":
            return self.demo_buffer.rows / (self.demo_buffer.rows + self.replay_buffer.rows)
        if self.demo_mix == "decay":
            return self.demo_share * max(0.0, 1.0 - self.num_timesteps / self.demo_decisions)
        return self.demo_share

    def _critic_loss(self, batch: SteeringSamples, log: _Means, *, fit: bool) -> Tensor:
        with torch.no_grad():
            target = self._returns(batch) if fit else self._bootstrap(batch)
            target = target.clamp(*self.target_range)
        q = self.critic(batch.observations, batch.chunks)  # type: ignore[operator]
        log.add(q_mean=q.detach().mean())
        return 0.5 * (q - target).square().mean(dim=1).sum()

    def _returns(self, batch: SteeringSamples) -> Tensor:
        """What the episode earned from here on, ``(B,)``; a value stands in for what was not played to its end."""
        assert batch.end_observations is not None
        value = self._value(batch.end_observations, batch.end_pool, "mean")
        return (batch.earned + batch.remaining * value[:, None]).squeeze(1)

    def _bootstrap(self, batch: SteeringSamples) -> Tensor:
        """``y = r + gamma^k * V(s')``, ``(B,)``; nothing after a termination."""
        value = self._value(batch.next_observations, batch.next_pool, self.backup)[:, None]
        target = batch.rewards + (1 - batch.dones) * batch.discounts * value
        if self.lower_bound:
            # the best noise earns at least what has been earned once
            earned = torch.where(batch.remaining == 0, batch.earned, -torch.inf)
            target = torch.maximum(target, earned)
        return target.squeeze(1)

    def _value(self, cond: Tensor, pool: Pool | None, backup: Backup) -> Tensor:
        """``(B, C)`` -> ``(B,)``: of the best noise of the pool, of the mean one, or of the actor's."""
        if backup != "actor" and pool is not None:
            q = reduce_q(self.critic_target(cond, pool.chunks), self.critic_reduction)  # type: ignore[operator]
            return q.amax(dim=1) if backup == "max" else q.mean(dim=1)
        noise, divergence = self.policy.sample_noise(cond)
        q = reduce_q(self.critic_target(cond, self.decode(cond, noise)), self.critic_reduction)  # type: ignore[operator]
        return q - self._price() * divergence if self.soft_backup else q

    def _distill_loss(self, batch: SteeringSamples) -> Tensor:
        # Q_W(s, w) <- Q_A(s, pi_dp(s, w)), w ~ N(0, I)
        cond, pool = batch.observations, batch.pool
        if pool is None:
            pool = self.draw_pool(cond, 1)
        else:
            some = torch.randperm(self.pool_size, device=cond.device)[: self.distill_noises]
            pool = Pool(pool.actions[:, some], pool.chunks[:, some])
        with torch.no_grad():
            q = self.critic(cond, pool.chunks)  # type: ignore[operator]
            target = q if self.distill_per_head else reduce_q(q, self.critic_reduction)
        q_w = self.policy.noise_critic(cond, pool.actions * self.policy.bound)
        return 0.5 * (q_w - target).square().flatten(1).mean(dim=1).sum()

    def _actor_loss(self, batch: SteeringSamples, log: _Means) -> Tensor:
        noise, divergence = self.policy.sample_noise(batch.observations)
        price = self._price()  # as in SAC, the one that the target has used: adapted after this step
        self._adapt_price(divergence.detach())
        q_w = self.policy.noise_critic(batch.observations, noise)
        value = reduce_q(q_w, self.critic_reduction) if self.distill_per_head else q_w.mean(dim=0)
        log.add(divergence=divergence.detach().mean(), ent_coef=price)
        return (price * divergence - value).mean()

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


class _Means:
    """Averages of scalars that stay on their device until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def read(self) -> dict[str, float]:
        if not self._values:
            return {}
        means = torch.stack([torch.stack(v).mean() for v in self._values.values()])
        return dict(zip(self._values, means.tolist(), strict=True))


def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``average <- decay * average + (1 - decay) * network``."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), 0)


def _of_first(env: VecEnv) -> Any:
    """The steering of environments that are steered one by one."""
    try:
        found: Iterable[Any] = env.get_attr("steering", indices=[0])
        return next(iter(found))
    except AttributeError:
        return None
