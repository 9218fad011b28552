"""Demonstrations for steering: checked against policy and environment, played back, cut into decisions.

Demonstrations have chunks but no noise, so they train the critic on chunks of noise-aliased SAC and nothing else::

    data = read_demos(path, policy, env)
    replay_check(data, env)
    fill(model.replay_buffer, decisions(data, policy, gamma, reward, action_space))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

from dsrl.data import Trajectories, Trajectory, concat_keys, read_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.playback import NEVER_END, replay_check
from dsrl.policy import FrozenPolicy
from dsrl.pools import Pool
from dsrl.replay import SteeringReplayBuffer

__all__ = ["STREAM", "Decision", "decisions", "fill", "read_demos", "replay_check", "under_convention"]

Decision = dict[str, np.ndarray]
"""What ``SteeringReplayBuffer.extend`` takes for one decision; every array has one row."""

STREAM = -1
"""of the demonstrations in a replay buffer; the environments are 0, 1, ..."""


# -- reading ----------------------------------------------------------------------------------------------------------


def read_demos(path: Path, policy: FrozenPolicy, env: EnvSpec | None) -> Trajectories:
    """Read a robomimic HDF5 file whose demonstrations this policy could have played in this environment.

    A file that does not name its environment is taken to be of ``env`` when its shapes are right, and any file does
    where ``env`` is None.

    Returns:
        the episodes, with ``obs_shapes`` as the policy concatenates them.

    Raises:
        DsrlError: when the file is broken, or of another environment, action dimension or observation layout.
    """
    path = Path(path)
    data = read_hdf5(path)
    if env is not None and data.env is not None and _identity(data.env) != _identity(env):
        raise DsrlError(
            f"{path} holds demonstrations of {data.env.id}, this run is on {env.id}; "
            f"give it demonstrations of {env.id} (`dsrl collect` records some)"
        )
    action_dim = data.episodes[0].actions.shape[1]
    if action_dim != policy.spec.action_dim:
        raise DsrlError(
            f"the demonstrations in {path} have actions of {action_dim} numbers, the policy plays "
            f"{policy.spec.action_dim}; they belong to another robot or controller"
        )
    data = _as_policy_reads(path, data, policy.spec.obs_shapes)
    return data if data.env is not None else replace(data, env=env)


def _identity(env: EnvSpec) -> tuple[str, str]:
    return env.family, env.name.rpartition(":")[2]  # `module:id` registers first, and is the same environment


def _as_policy_reads(path: Path, data: Trajectories, wanted: Mapping[str, tuple[int, ...]]) -> Trajectories:
    """The policy's observations, in its order; a single flat vector may have another name."""
    if len(wanted) == len(data.obs_shapes) == 1 and list(wanted) != list(data.obs_shapes):
        (theirs,), (ours,) = data.obs_shapes, wanted
        episodes = (replace(e, obs={ours: e.obs[theirs]}, next_obs={ours: e.next_obs[theirs]}) for e in data.episodes)
        data = replace(data, episodes=tuple(episodes), obs_shapes={ours: data.obs_shapes[theirs]})
    for key, shape in wanted.items():
        if key not in data.obs_shapes:
            known = list(data.obs_shapes)
            raise DsrlError(
                f"the demonstrations in {path} have no observation '{key}', which the policy reads."
                f"{nearest(key, known)} They have {', '.join(known)}"
            )
        if tuple(data.obs_shapes[key]) != (tuple(shape) or (1,)):
            raise DsrlError(
                f"the observation '{key}' has shape {list(data.obs_shapes[key])} in {path}, the policy reads "
                f"{list(shape)}; they belong to another environment or to another version of it"
            )
    return replace(data, obs_shapes=dict(wanted))


# -- cutting ----------------------------------------------------------------------------------------------------------


def decisions(
    data: Trajectories, policy: FrozenPolicy, gamma: float, reward: str, action_space: spaces.Box | None = None
) -> list[Decision]:
    """Cut demonstrations into the decisions that the policy would have taken, in time order.

    Decision ``d`` starts at env step ``d * Ta`` and sees the last ``To`` observations, encoded. Its chunk, flattened to
    ``(Ta * Da,)``, holds the ``k`` actions that were executed, the last of them repeated where the episode ends first.
    Rewards are those of the training, discounted by ``gamma`` per env step inside a chunk. The last decision of every
    episode is marked as ended; it is terminated only where training would terminate it.

    Args:
        data: as :func:`read_demos` returns them.
        policy: whose chunks, history and normaliser count.
        gamma: discount per env step.
        reward: ``success``, ``step-cost``, ``dense`` or ``auto``, as in
            :class:`~dsrl.wrappers.reward.RewardConvention`.
        action_space: limits of the actions, ``(Da,)`` or ``(Ta, Da)``; actions are clipped to it as in training.

    Raises:
        DsrlError: for an unknown convention, or when the file does not say what the convention needs.
    """
    reward = _convention(reward, data)
    cut: list[Decision] = []
    for number, episode in enumerate(data.episodes):
        rewards, terminated = _rebuild(episode, reward, data.env, number)
        cut += _cut(episode, data.obs_shapes, policy, gamma, rewards, terminated, action_space)
    return cut


def under_convention(data: Trajectories, reward: str) -> Trajectories:
    """The same episodes as training would have played them: rewarded, ended, and cut off where it would have ended.

    Args:
        data: as :func:`read_demos` returns them.
        reward: as in :func:`decisions`.

    Raises:
        DsrlError: for an unknown convention, or when the file does not say what the convention needs.
    """
    reward = _convention(reward, data)
    played = []
    for number, episode in enumerate(data.episodes):
        rewards, terminated = _rebuild(episode, reward, data.env, number)
        steps = len(rewards)
        obs, next_obs = ({key: values[:steps] for key, values in of.items()} for of in (episode.obs, episode.next_obs))
        ends = (np.arange(steps) == steps - 1) & terminated
        played.append(
            replace(
                episode, obs=obs, next_obs=next_obs, actions=episode.actions[:steps], rewards=rewards, terminated=ends
            )
        )
    return replace(data, episodes=tuple(played))


def _convention(reward: str, data: Trajectories) -> str:
    """Resolve ``auto`` as ``make_env`` does, and refuse rewards that were never recorded."""
    from dsrl.wrappers.make import resolve_reward
    from dsrl.wrappers.reward import MODES

    simulator = data.env is not None and data.env.family in NEVER_END
    # without a known environment there is no success to go by
    reward = resolve_reward(data.env or EnvSpec("gymnasium", ""), reward)
    if reward not in MODES:
        raise DsrlError(
            f"there is no reward convention '{reward}'.{nearest(reward, MODES)} Known: auto, {', '.join(MODES)}"
        )
    shaped = simulator and data.env is not None and data.env.kwargs.get("reward_shaping") is not False
    if reward == "dense" and shaped and all(_is_binary(episode.rewards) for episode in data.episodes):
        raise DsrlError(
            "the demonstrations record success (rewards of 0 and 1), --reward dense trains on the simulator's own "
            "reward, which they do not have; use --reward success or step-cost, or do without them"
        )
    return reward


def _is_binary(rewards: np.ndarray) -> bool:
    return bool(np.isin(rewards, (0.0, 1.0)).all())


def _rebuild(episode: Trajectory, reward: str, env: EnvSpec | None, number: int) -> tuple[np.ndarray, bool]:
    """Rewards ``(L,)`` of the ``L <= T`` env steps that training would have played, and whether it ended them."""
    family = env.family if env is not None else ""
    if family == "gymnasium" or (reward == "dense" and family not in NEVER_END):
        ends = np.array(episode.terminated, bool)
    else:
        ends = np.zeros(len(episode), bool)
    rewards = np.asarray(episode.rewards, np.float64)
    if reward != "dense":
        success = _success(episode, family, number)
        rewards = success - (1.0 if reward == "step-cost" else 0.0)
        if reward == "success":
            ends |= success
    length = int(np.argmax(ends)) + 1 if ends.any() else len(episode)
    return rewards[:length], bool(ends.any())


def _success(episode: Trajectory, family: str, number: int) -> np.ndarray:
    """At which env steps success held, ``(T,)`` bool.

    Sparse rewards are 1 there, and so is robosuite's shaped one; with any other reward the termination of a successful
    episode says it.
    """
    marked = np.zeros(len(episode), bool)
    if family == "robosuite" or _is_binary(episode.rewards):
        marked = np.asarray(episode.rewards) >= 1.0
    if episode.success and not marked.any():
        marked = np.array(episode.terminated, bool)
        if not marked.any():
            raise DsrlError(
                f"demonstration {number} is marked as a success, but neither a reward of 1 nor a 'done' says at which "
                f"step (rewards {episode.rewards.min():g} to {episode.rewards.max():g}); "
                "record it with sparse rewards, or train with --reward dense"
            )
    return marked


def _cut(
    episode: Trajectory,
    keys: Mapping[str, tuple[int, ...]],
    policy: FrozenPolicy,
    gamma: float,
    rewards: np.ndarray,
    terminated: bool,
    action_space: spaces.Box | None,
) -> list[Decision]:
    spec, steps = policy.spec, len(rewards)
    bounds = np.append(np.arange(0, steps, spec.n_action_steps), steps)
    # observations 0 .. steps, of which the last is the true next one
    seen = np.concatenate(
        [concat_keys(episode.obs, keys)[:steps], concat_keys(episode.next_obs, keys)[steps - 1 : steps]]
    )
    history = np.maximum(bounds[:, None] - spec.n_obs_steps + 1 + np.arange(spec.n_obs_steps), 0)
    cond = policy.encode(torch.as_tensor(seen[history], device=policy.device)).cpu().numpy()
    cut: list[Decision] = []
    for d, (start, stop) in enumerate(pairwise(bounds)):
        chunk = episode.actions[np.minimum(start + np.arange(spec.n_action_steps), steps - 1)]
        if action_space is not None:
            chunk = np.clip(chunk, action_space.low, action_space.high)
        ended = stop == steps
        cut.append(
            {
                "obs": cond[d : d + 1],
                "next_obs": cond[d + 1 : d + 2],
                "action": np.zeros((1, math.prod(spec.noise_shape)), np.float32),
                "reward": np.array([rewards[start:stop] @ gamma ** np.arange(stop - start)], np.float32),
                "terminated": np.array([terminated and ended]),
                "length": np.array([stop - start]),
                "chunk": np.asarray(chunk, np.float32).reshape(1, -1),
                "noise_known": np.zeros(1, np.float32),
                "ended": np.array([ended]),
            }
        )
    return cut


# -- into the buffer --------------------------------------------------------------------------------------------------


def fill(buffer: SteeringReplayBuffer, demos: Sequence[Decision]) -> None:
    """Store decisions in the order of :func:`decisions`, on the stream :data:`STREAM`.

    Pools are decoded in large batches, and shared between a next observation and the decision that begins there. The
    unknown noise is zero, of whatever size the agent's is.

    Raises:
        DsrlError: when the buffer keeps no chunks, chunks of another size, or fewer transitions than there are.
    """
    if not demos:
        return
    width = demos[0]["chunk"].shape[1]
    if not buffer.chunk_dim:
        raise DsrlError(
            "demonstrations have no noise, and this agent learns from noise alone; only noise-aliased SAC "
            "learns from chunks"
        )
    if width != buffer.chunk_dim:
        raise DsrlError(f"the demonstrations have chunks of {width} numbers, the replay buffer {buffer.chunk_dim}")
    if len(demos) > buffer.capacity:
        raise DsrlError(
            f"{len(demos)} decisions of demonstrations do not fit into a replay buffer of {buffer.capacity}; "
            "enlarge it or give fewer demonstrations"
        )
    pools = _pools(buffer, demos) if buffer.pool_size else None
    noise = np.zeros((1, buffer.action_dim), np.float32)
    for i, decision in enumerate(demos):
        row = pools and tuple(Pool(pool.actions[i : i + 1], pool.chunks[i : i + 1]) for pool in pools)
        buffer.extend([STREAM], row, **{**decision, "action": noise})  # type: ignore[arg-type]


def _pools(buffer: SteeringReplayBuffer, demos: Sequence[Decision]) -> tuple[Pool, Pool]:
    """Of all observations ``(N, M, ...)`` and of all next ones."""
    if buffer.decoder is None:
        raise DsrlError("the replay buffer keeps pools but has no decoder; give the agent its environment first")
    ended = np.concatenate([decision["ended"] for decision in demos])
    last = [decision["next_obs"] for decision, end in zip(demos, ended, strict=True) if end]
    obs = np.concatenate([*(decision["obs"] for decision in demos), *last])
    every = buffer.decoder(torch.as_tensor(obs, dtype=torch.float32, device=buffer.device))
    # what follows decision i is decision i + 1, or the end of its episode
    after = np.where(ended, len(demos) + np.cumsum(ended) - 1, np.arange(len(demos)) + 1)
    index = torch.as_tensor(after, device=buffer.device)
    return Pool(*(values[: len(demos)] for values in every)), Pool(*(values[index] for values in every))
