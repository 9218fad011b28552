"""Chunked environments for a policy: one, or many side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dsrl.env_spec import EnvSpec
from dsrl.policy import PolicySpec
from dsrl.safety import SafetyConfig
from dsrl.wrappers.chunk import ActionChunk
from dsrl.wrappers.families import family_of
from dsrl.wrappers.history import ObservationHistory
from dsrl.wrappers.make import make_env, resolve_env_spec
from dsrl.wrappers.observations import check_observations
from dsrl.wrappers.processes import SimulatorProcesses
from dsrl.wrappers.reward import RewardConvention
from dsrl.wrappers.safety import Abort, Abortable, SafeChunks
from dsrl.wrappers.seeds import SeededEpisodes


def chunked(env: gym.Env, spec: PolicySpec, gamma: float = 1.0) -> ActionChunk:
    """Give ``env`` the observation history and the action chunks that a policy of this spec works with."""
    return ActionChunk(ObservationHistory(env, spec.n_obs_steps), spec.n_action_steps, gamma)


def make_chunk_env(
    env: EnvSpec | str | Callable[[], gym.Env],
    spec: PolicySpec,
    *,
    reward: str = "auto",
    gamma: float = 1.0,
    render_mode: str | None = None,
    safety: SafetyConfig | None = None,
    abort: Callable[[], bool] | None = None,
) -> gym.Env:
    """One chunked environment whose episodes can be seeded one by one (:class:`SeededEpisodes`).

    With ``safety`` or ``abort``, a function that says whether the episode is to end, :class:`SafeChunks` stands in it.
    """
    if callable(env):
        single = env() if reward == "auto" else RewardConvention(env(), reward)
    else:
        env = resolve_env_spec(env, spec)
        single = make_env(env, reward=reward, render_mode=render_mode)
        check_observations(env.id, single.unwrapped.obs_shapes, spec)  # type: ignore[attr-defined]
    if abort is None and (safety is None or not safety.active):
        return Monitor(SeededEpisodes(chunked(single, spec, gamma)))
    config = safety or SafetyConfig()
    asked = Abort(config, abort)
    return Monitor(SeededEpisodes(SafeChunks(chunked(Abortable(single, asked), spec, gamma), config, asked)))


def make_vec_env(
    env: EnvSpec | str | Callable[[], gym.Env],
    spec: PolicySpec,
    n_envs: int = 1,
    *,
    reward: str = "auto",
    gamma: float = 1.0,
    seed: int | None = None,
    subprocess: bool | None = None,
    safety: SafetyConfig | None = None,
    abort: Callable[[], bool] | None = None,
    timeout: float = 300.0,
) -> VecEnv:
    """``n_envs`` chunked environments as a stable-baselines3 ``VecEnv``, each with starts of its own.

    Args:
        env: a spec, an id such as ``robosuite/Lift``, or a function that makes a gymnasium environment.
        spec: of the policy that will act: history and chunk lengths.
        reward: ``auto``, ``success``, ``step-cost`` or ``dense``; ``auto`` leaves a function's environment as it is.
        gamma: discount per env step inside a chunk.
        seed: of the first environment; the others follow.
        subprocess: a process per environment; by default for simulators whose steps take milliseconds.
        safety: limits for a robot, see :class:`~dsrl.safety.SafetyConfig`.
        abort: asked after every env step whether the episode is to end, as truncated.
        timeout: seconds after which a process that does not answer is given up.
    """
    if not callable(env):
        # here, not in a process of its own: an unknown name is an error of the caller's
        env = resolve_env_spec(env, spec)
    if subprocess is None:
        subprocess = n_envs > 1 and isinstance(env, EnvSpec) and family_of(env).own_process
    thunks: list[Callable[[], gym.Env]] = [
        partial(make_chunk_env, env, spec, reward=reward, gamma=gamma, safety=safety, abort=abort)
        for _ in range(n_envs)
    ]
    venv = SimulatorProcesses(thunks, timeout) if subprocess else DummyVecEnv(thunks)
    if seed is not None:
        venv.seed(seed)
    return venv
