"""How noise-aliased SAC acts: who flies its training episodes, and what it deploys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.critics import reduce_q
from dsrl.errors import DsrlError
from dsrl.noise_policy import NoiseAliasedPolicy
from dsrl.pilots import BASE, CANDIDATES, INCUMBENT, Pilots
from dsrl.pools import Decoder, Pool
from dsrl.replay import SteeringReplayBuffer

Deploy = Literal["auto", "actor", "candidates"]


class PilotedSAC(SAC):
    """SAC on noise whose training episodes are flown in turns, so that it knows what to deploy.

    What learns in it is left to a subclass, :class:`~dsrl.noise_aliased.NoiseAliasedSAC`, which also gives it the
    attributes below before SAC sets itself up.
    """

    policy: NoiseAliasedPolicy  # type: ignore[assignment]
    replay_buffer: SteeringReplayBuffer | None  # type: ignore[assignment]
    decoder: Decoder
    candidates: int
    """noises of the prior among which the critics choose"""
    pool_size: int
    deploy: Deploy
    deployed: str
    """``base``, ``candidates`` or ``actor``: what :meth:`predict` plays now"""
    pilots: Pilots

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        warming_up = self.num_timesteps < learning_starts
        pilots = self.pilots.start(n_envs, warming_up=warming_up)
        if warming_up:
            noise = self.decoder.prior(n_envs)
        else:
            cond = torch.as_tensor(self._last_obs, dtype=torch.float32, device=self.device)
            noise = self._fly(cond, pilots)
        played = noise.cpu().numpy()
        return played, played / self.policy.bound

    @torch.no_grad()
    def _fly(self, cond: Tensor, pilots: Sequence[str]) -> Tensor:
        """Noise ``(n_envs, A)``: of every environment's pilot, or of the actor alone where that is what is deployed."""
        if self.deploy == "actor":
            return self.policy.explore(cond)
        reaches = torch.tensor(self.pilots.reaches, device=cond.device)[:, None]
        by_pilot = dict.fromkeys(pilots, self.policy.rehearse(cond, reaches))
        if BASE in pilots:
            by_pilot[BASE] = self.decoder.prior(len(cond))
        if CANDIDATES in pilots:
            by_pilot[CANDIDATES] = self._best_of_pool(cond)
        if INCUMBENT in pilots:
            by_pilot[INCUMBENT] = self.policy(cond, deterministic=True)
        return torch.stack([by_pilot[pilot][env] for env, pilot in enumerate(pilots)])

    def _best_of_pool(self, cond: Tensor) -> Tensor:
        """The noise ``(n_envs, A)`` that the critics like best, of the pools that are stored where they are enough."""
        assert self.replay_buffer is not None
        obs = self._last_original_obs if self._vec_normalize_env is not None else self._last_obs
        pool = self.replay_buffer.pool_for(obs) if self.pool_size >= self.candidates else None  # type: ignore[arg-type]
        return self.best_candidate(cond, pool)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        for env in np.flatnonzero(dones):
            episode = infos[env].get("episode", {"r": reward[env]})
            self.pilots.landed(int(env), float(infos[env].get("is_success", episode["r"])))
        if self.deploy != "auto" or not dones.any():
            return
        self._choose_what_is_deployed()

    def _choose_what_is_deployed(self) -> None:
        if self.deployed != "actor" or self.pilots.relapse():
            self.deployed = "candidates" if self.pilots.first_is_trusted() else "base"
        reach = self.pilots.judge()
        if reach is not None:
            self.policy.deploy(reach)
            self.deployed = "actor"

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The noise that is deployed; that of the prior is drawn anew every time, also when it is deterministic.

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
            noise = self.decoder.prior(len(cond)) if self.deployed == "base" else self.best_candidate(cond)
        played = noise.cpu().numpy()
        return (played if vectorized else played[0]), state

    def best_candidate(self, cond: Tensor, pool: Pool | None = None) -> Tensor:
        """``(B, C)`` -> the noise ``(B, A)`` of highest pessimistic value, of a pool or freshly drawn."""
        pool = pool or self.decoder(cond, self.candidates)
        best = self.score(cond, pool.chunks[:, : self.candidates]).argmax(dim=1)
        return pool.actions[torch.arange(len(cond), device=cond.device), best] * self.policy.bound

    def choice(self) -> dict[str, Any]:
        """What :class:`~dsrl.steered.SelectingPolicy` must know: plain values."""
        space = self._steering().chunk_space
        low, high = (limit[0].tolist() for limit in (space.low, space.high))
        return {"candidates": self.candidates, "low": low, "high": high}

    def score(self, cond: Tensor, chunks: Tensor) -> Tensor:
        """``(B, C), (B, M, Ta * Da)`` -> the pessimistic value of every chunk, ``(B, M)``."""
        return reduce_q(self.critic(cond, chunks), "min")  # type: ignore[operator]

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


def _of_first(env: VecEnv) -> Any:
    """The steering of environments that are steered one by one."""
    try:
        found: Iterable[Any] = env.get_attr("steering", indices=[0])
        return next(iter(found))
    except AttributeError:
        return None
