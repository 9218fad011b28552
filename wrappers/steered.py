"""The environment whose action is the noise of a frozen policy, in three thin shells over one batched core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from dsrl.errors import SimulatorFailed
from dsrl.noise import NoiseSpace
from dsrl.policy import FrozenPolicy
from dsrl.wrappers.episodes import OpenEpisodes


class Steering:
    """The one place that denoises: observations in, encodings out; noise in, action chunks out.

    What the agent observes is ``policy.encode(obs)``, the frozen policy's own normalised view of the observation
    history. The encoding of the current observation is kept, so a decision costs one ``decode`` and nothing else.

    Where the noise space leaves rows to the prior, they are drawn here, from a generator that is seeded with the
    environments.
    """

    def __init__(
        self,
        policy: FrozenPolicy,
        noise_space: NoiseSpace | None,
        obs_space: gym.Space,
        action_space: gym.Space,
    ):
        self.policy = policy
        self.noise_space = noise_space or NoiseSpace(policy.spec.noise_shape)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(policy.cond_dim,), dtype=np.float32)
        self.action_space = self.noise_space.action_space()
        self.chunk = np.empty(0)
        """what :meth:`act` returned last; learners find their part of it in ``info["chunk"]``, or what a safety layer
        played in its place"""
        self.outside = np.zeros(0, int)
        """``(B,)``: actions of these chunks that were beyond the limits"""
        self._cond = torch.empty(0, policy.cond_dim)
        self._rest = torch.Generator()
        self.seed(0)
        check_fit(policy, obs_space, action_space)
        assert isinstance(action_space, spaces.Box)
        self.chunk_space = action_space
        self._low, self._high = (
            torch.as_tensor(v, device=policy.device) for v in (action_space.low, action_space.high)
        )

    def seed(self, seed: int | None) -> None:
        """Seed what is drawn from the prior beside the agent's rows; None leaves the generator as it is."""
        if seed is not None:
            self.rest_seed = seed
            self._rest.manual_seed(seed)

    @property
    def rest_generator(self) -> torch.Generator:
        """What the prior rows beside the agent's are drawn from."""
        return self._rest

    def observe(self, obs: np.ndarray) -> np.ndarray:
        """``(B, To, Do)`` -> ``(B, cond_dim)``; remembered for the next :meth:`act`."""
        self._cond = self.policy.encode(torch.as_tensor(obs, dtype=torch.float32, device=self.policy.device))
        return self._cond.cpu().numpy()

    def peek(self, obs: np.ndarray) -> np.ndarray:
        """Encode observations that nobody will act on, such as the last one of an episode."""
        return self.policy.encode(torch.as_tensor(obs, dtype=torch.float32, device=self.policy.device)).cpu().numpy()

    def decode(self, cond: Tensor, action: Tensor) -> Tensor:
        """``(B, cond_dim), (B, size)`` -> the chunk that will be executed, ``(B, Ta, Da)`` within the limits."""
        return self._decode(cond, action).clamp(self._low, self._high)

    def _decode(self, cond: Tensor, action: Tensor) -> Tensor:
        # on the CPU: the same seed gives the same noise on every device
        rest = torch.randn(len(action), self.noise_space.rest_size, generator=self._rest).to(action)
        return self.policy.decode(cond, self.noise_space.to_noise(action, rest))

    def act(self, action: np.ndarray) -> np.ndarray:
        """``(B, size)`` of the noise space -> ``(B, Ta, Da)`` in environment units, for what was observed last."""
        chosen = torch.as_tensor(action, dtype=torch.float32, device=self.policy.device)
        decoded = self._decode(self._cond, chosen)
        chunk = decoded.clamp(self._low, self._high)
        self.outside = (decoded != chunk).any(dim=-1).sum(dim=-1).cpu().numpy()
        self.chunk = chunk.cpu().numpy()
        return self.chunk

    def played(self, index: int, info: dict[str, Any]) -> np.ndarray:
        """The chunk of one environment as it was executed; what was clipped here is counted where safety is watched."""
        if "safety" in info:
            info["safety"]["limited"] += int(self.outside[index])
        return info.pop("executed", self.chunk[index])


class SteeredVecEnv(VecEnvWrapper):
    """A stable-baselines3 ``VecEnv`` over chunked environments; its action is the noise.

    Args:
        venv: environments with observations ``(To, Do)`` and actions ``(Ta, Da)``, as ``make_vec_env`` makes them.
        policy: the frozen policy; one batched call per step, whatever the number of environments.
        noise_space: defaults to the whole noise in a box of half-width 1.5.

    Raises:
        ValueError: when policy and environments do not fit, with both shapes and what to do.
    """

    def __init__(self, venv: VecEnv, policy: FrozenPolicy, noise_space: NoiseSpace | None = None):
        self.steering = Steering(policy, noise_space, venv.observation_space, venv.action_space)
        super().__init__(venv, self.steering.observation_space, self.steering.action_space)
        self.open = OpenEpisodes(venv.num_envs)
        """the episodes in progress"""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the environments, and what is drawn from the prior beside the agent's rows."""
        seeds = self.venv.seed(seed)
        self.steering.seed(seeds[0])
        return seeds

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        obs = np.asarray(self.venv.reset())
        self.open.began(obs, self.venv.reset_infos)
        return self.steering.observe(obs)

    def reopen(
        self, episodes: Sequence[Mapping[str, Any]], expected: np.ndarray, seeds: Sequence[int]
    ) -> tuple[np.ndarray, list[int]]:
        """Bring fresh environments to where :attr:`open` was recorded, by playing the open episodes again.

        Args:
            episodes: ``open.state()``.
            expected: what was observed there, ``(B, cond_dim)``.
            seeds: of the episodes that are begun where a simulator does not repeat itself.

        Returns:
            encoded observations ``(B, cond_dim)``, and the environments whose episodes were begun anew.
        """
        raw = self.open.play_again(self.venv, episodes)
        blank = np.zeros(self.venv.observation_space.shape, self.venv.observation_space.dtype)  # type: ignore[arg-type]
        obs = self.steering.observe(np.stack([blank if found is None else found for found in raw]))
        others = [i for i, found in enumerate(raw) if found is None or not np.array_equal(obs[i], expected[i])]
        for index in others:
            raw[index] = self.open.begin_anew(self.venv, index, seeds[index])
        return (self.steering.observe(np.stack(raw)) if others else obs), others

    def step_async(self, actions: np.ndarray) -> None:
        """Denoise and send the chunks."""
        self.venv.step_async(self.steering.act(actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Receive what the chunks led to; terminal observations are encoded as every other one."""
        obs, rewards, dones, infos = self.venv.step_wait()
        for index, info in enumerate(infos):
            info["chunk"] = self.steering.played(index, info)
        ended = [info for info in infos if "terminal_observation" in info]
        if ended:
            last = self.steering.peek(np.stack([info["terminal_observation"] for info in ended]))
            _check_finite(last)
            for info, encoded in zip(ended, last, strict=True):
                info["terminal_observation"] = encoded
        encoded = self.steering.observe(np.asarray(obs))
        _check_finite(encoded)
        self.open.played(self.steering.chunk, dones, np.asarray(obs), self.venv.reset_infos)
        return encoded, rewards, dones, infos


class SteeredVectorEnv(VectorWrapper):
    """The same as a ``gymnasium.vector.VectorEnv``, for autoreset modes ``SAME_STEP`` and ``DISABLED``.

    With ``NEXT_STEP`` (gymnasium's default) one step in every episode ignores its action, which a learner would have to
    mask; it is refused.
    """

    def __init__(self, env: VectorEnv, policy: FrozenPolicy, noise_space: NoiseSpace | None = None):
        super().__init__(env)
        if env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP) == AutoresetMode.NEXT_STEP:
            raise ValueError(
                "this vector environment resets in the step after the end (AutoresetMode.NEXT_STEP), so one action of "
                "every episode would be ignored; build it with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.steering = Steering(policy, noise_space, env.single_observation_space, env.single_action_space)
        self.single_observation_space = self.steering.observation_space
        self.single_action_space = self.steering.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        # gymnasium's batch_space would make a plain box of it, whose samples are not the base policy
        self.action_space = self.steering.noise_space.action_space(self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all environments."""
        self.steering.seed(seed[0] if isinstance(seed, list) else seed)
        obs, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # takes lists too
        return self.steering.observe(obs), info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Denoise, play the chunks; ``info["final_obs"]`` is encoded too."""
        obs, rewards, terminated, truncated, info = self.env.step(self.steering.act(actions))
        info["chunk"] = self.steering.chunk.copy()
        for found in (info, info.get("final_info", {})):  # of those that ended the info of the step is the final one
            where = found.get("_executed", np.zeros(self.num_envs, bool))
            info["chunk"][where] = found.get("executed", info["chunk"])[where]
        for index in np.flatnonzero(info.get("_final_obs", ())):
            info["final_obs"][index] = self.steering.peek(info["final_obs"][index][None])[0]
        return self.steering.observe(obs), rewards, terminated, truncated, info


class SteeredEnv(gym.Wrapper):
    """The same as a single ``gymnasium.Env``, for custom loops and checkers."""

    def __init__(self, env: gym.Env, policy: FrozenPolicy, noise_space: NoiseSpace | None = None):
        super().__init__(env)
        self.steering = Steering(policy, noise_space, env.observation_space, env.action_space)
        self.observation_space = self.steering.observation_space
        self.action_space = self.steering.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        self.steering.seed(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self.steering.observe(obs[None])[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Denoise one noise vector ``(size,)`` and play the chunk."""
        obs, reward, terminated, truncated, info = self.env.step(self.steering.act(np.asarray(action)[None])[0])
        info = {**info}
        info["chunk"] = self.steering.played(0, info)
        return self.steering.observe(obs[None])[0], reward, terminated, truncated, info


def _check_finite(encoded: np.ndarray) -> None:
    if not np.isfinite(encoded).all():
        raise SimulatorFailed("the environment returned an observation that is nan or infinite")


def check_fit(policy: FrozenPolicy, obs_space: gym.Space, action_space: gym.Space) -> None:
    """Check that a policy can act in these spaces of a chunked environment.

    Raises:
        ValueError: when it cannot, with both shapes and what to do.
    """
    spec = policy.spec
    expected_obs = (spec.n_obs_steps, spec.obs_dim)
    if obs_space.shape != expected_obs:
        raise ValueError(
            f"the environment observes {obs_space.shape}, the policy reads (n_obs_steps, obs_dim) = {expected_obs} "
            f"from {dict(spec.obs_shapes)}; wrap it in ObservationHistory, or use make_vec_env(env, policy)"
        )
    expected_action = (spec.n_action_steps, spec.action_dim)
    if action_space.shape != expected_action:
        raise ValueError(
            f"the environment takes actions {action_space.shape}, the policy plays chunks (n_action_steps, action_dim) "
            f"= {expected_action}; wrap it in ActionChunk, or use make_vec_env(env, policy)"
        )
