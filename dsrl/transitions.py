"""Recorded episodes as decisions: what a critic learns from, one row per env step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl.data import Trajectories, Trajectory, concat_keys
from dsrl.errors import DsrlError, nearest
from dsrl.policy import FrozenPolicy, PolicySpec

_ROWS = 16_384
"""that are encoded at once"""


@dataclass(frozen=True)
class Transitions:
    """Row ``i`` is the decision that could have been taken at env step ``i``, as in :func:`~dsrl.data.bc_windows`.

    A chunk stops where the episode terminates and where its recording ends. A recording that ends without a
    termination was cut off, by a time limit or otherwise: what would have followed still has a value.
    """

    cond: Tensor
    """``(N, C)`` encoded observations"""
    chunk: Tensor
    """``(N, Ta * Da)`` in environment units; the last action is repeated where the chunk stops early"""
    reward: Tensor
    """``(N,)`` of the chunk, discounted per env step"""
    discount: Tensor
    """``(N,)`` ``gamma ** k`` after ``k`` env steps"""
    next_cond: Tensor
    """``(N, C)`` after the chunk; the true last observation at the end of an episode"""
    terminated: Tensor
    """``(N,)`` bool: whether the chunk ended in a termination, after which there is no value"""
    earned: Tensor
    """``(N,)`` discounted rewards from here to the end of what was recorded"""
    remaining: Tensor
    """``(N,)`` discount of what comes after that; 0 where the episode terminated, so ``earned`` is the return"""
    last: Tensor
    """``(N,)`` row whose ``next_cond`` is the end of the same episode"""
    gamma: float
    """per env step"""
    source: str = "the data set"
    """for messages"""

    def __len__(self) -> int:
        """Number of decisions."""
        return len(self.reward)

    def at(self, rows: Tensor | slice) -> Transitions:
        """These rows; their :attr:`last` still counts in the whole."""
        return replace(self, **{name: values[rows] for name, values in self._tensors().items()})

    def to(self, device: torch.device | str) -> Transitions:
        """The same on another device."""
        return replace(self, **{name: values.to(device) for name, values in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def cut_transitions(
    data: Trajectories, policy: FrozenPolicy, gamma: float, source: str = "the data set"
) -> Transitions:
    """Every window of ``n_action_steps`` env steps, one per env step, encoded by ``policy``, on its device.

    Args:
        data: its rewards and terminations are taken as they are.
        policy: whose history, chunk and normaliser count.
        gamma: discount per env step.
        source: of the data, for error messages.

    Raises:
        DsrlError: when there are no episodes, no rewards, or not the observations or actions of the policy.
    """
    spec = policy.spec
    _check(data, spec, gamma, source)
    parts = [_cut(episode, spec, gamma) for episode in data.episodes]
    starts = np.cumsum([0, *(len(episode) for episode in data.episodes)])
    for part, start in zip(parts, starts, strict=False):
        part["last"] += start
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tensors = {name: torch.as_tensor(values).to(policy.device) for name, values in columns.items()}
    for name in ("cond", "next_cond"):
        tensors[name] = torch.cat([policy.encode(rows) for rows in tensors[name].split(_ROWS)])
    return Transitions(**tensors, gamma=gamma, source=source)


def _cut(episode: Trajectory, spec: PolicySpec, gamma: float) -> dict[str, Any]:
    steps, now = len(episode), np.arange(len(episode))
    ended = np.asarray(episode.terminated, bool)
    # 1. the step after the last one that counts: after the first termination from here on, or after the last step
    stop = np.minimum.accumulate(np.where(ended, now + 1, steps)[::-1])[::-1]
    after = np.minimum(now + spec.n_action_steps, stop)
    # 2. what was done
    inside = now[:, None] + np.arange(spec.n_action_steps)
    chunk = episode.actions.astype(np.float32)[np.minimum(inside, after[:, None] - 1)]
    # 3. what it earned, inside the chunk and until the end
    rewards = np.asarray(episode.rewards, np.float64)
    powers = np.where(inside < after[:, None], gamma ** np.arange(spec.n_action_steps), 0.0)
    reward = (rewards[np.minimum(inside, steps - 1)] * powers).sum(axis=1)
    earned, remaining = np.zeros(steps), np.zeros(steps)
    beyond = (0.0, 1.0)
    for t in reversed(range(steps)):
        beyond = (rewards[t], 0.0) if ended[t] else (rewards[t] + gamma * beyond[0], gamma * beyond[1])
        earned[t], remaining[t] = beyond
    # 4. what was seen before and after; observations 0 .. steps, of which the last is the true next one
    seen = np.concatenate(
        [concat_keys(episode.obs, spec.obs_shapes), concat_keys(episode.next_obs, spec.obs_shapes)[-1:]]
    )
    back = np.arange(spec.n_obs_steps) - spec.n_obs_steps + 1
    before, behind = (seen[np.maximum(time[:, None] + back, 0)] for time in (now, after))
    return {
        "cond": before,
        "chunk": chunk.reshape(steps, -1),
        "reward": reward.astype(np.float32),
        "discount": (gamma ** (after - now)).astype(np.float32),
        "next_cond": behind,
        "terminated": ended[after - 1],
        "earned": earned.astype(np.float32),
        "remaining": remaining.astype(np.float32),
        "last": np.full(steps, steps - 1),
    }


def _check(data: Trajectories, spec: PolicySpec, gamma: float, source: str) -> None:
    if not 0.0 < gamma <= 1.0:
        raise DsrlError(f"--gamma is {gamma}; the discount per env step must be above 0 and at most 1")
    if not data.episodes:
        raise DsrlError(f"{source} has no episodes; `dsrl collect` records some")
    shapes: Mapping[str, tuple[int, ...]] = data.obs_shapes
    for key in spec.obs_shapes:
        if key not in shapes:
            raise DsrlError(
                f"{source} has no observation '{key}', which the policy reads.{nearest(key, list(shapes))} "
                f"It has {', '.join(shapes)}"
            )
    action_dim = data.episodes[0].actions.shape[1]
    if action_dim != spec.action_dim:
        raise DsrlError(f"{source} has actions of {action_dim} numbers, the policy plays {spec.action_dim}")
    if not any(np.any(episode.rewards) for episode in data.episodes):
        raise DsrlError(
            f"{source} has no rewards: all {data.n_steps} of them are 0, so there is no value and no advantage to "
            "label actions by; record rewards, or give labels of another source"
        )
