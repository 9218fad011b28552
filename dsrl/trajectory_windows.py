"""Windows of recorded episodes, and how they look to a network: one row per env step, every channel standardised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dsrl.data import Trajectories, Trajectory, concat_keys
from dsrl.errors import DsrlError

ACTION_CLIP = 0.999
"""of actions in units of their limits, before arctanh"""


class Windows(NamedTuple):
    """``N`` windows of ``L`` env steps, in environment units."""

    obs: Tensor
    """``(N, L + 1, Do)``; the last one follows the last action"""
    action: Tensor
    """``(N, L, Da)``"""
    reward: Tensor
    """``(N, L)``"""
    terminated: Tensor
    """``(N, L)`` bool"""

    def at(self, rows: Tensor) -> Windows:
        """Some of them."""
        return Windows(*(part[rows] for part in self))

    def to(self, device: torch.device | str) -> Windows:
        """On another device."""
        return Windows(*(part.to(device) for part in self))

    def alive(self) -> Tensor:
        """``(N, L)`` bool: which env steps come before or at the first termination."""
        before = self.terminated.long().cumsum(dim=1) - self.terminated.long()
        return before == 0


def cut_windows(
    data: Trajectories, length: int, stride: int = 1, source: str = "the data set", ending_repeats: int = 1
) -> Windows:
    """Windows of ``length`` env steps, of which none crosses a reset or ends in a time-out.

    They begin every ``stride`` env steps, and one more ends in each termination. An episode ends at its first
    termination; one without any was cut off, and its last env step stands in no window.

    Args:
        data: its rewards and terminations are taken as they are.
        length: in env steps.
        stride: between the first env steps of two windows.
        source: for messages.
        ending_repeats: how often each window that ends in a termination is there. They are rare among windows that
            begin at every env step; 8 gives them the share that they have with a stride of 8 (arXiv 2404.06356).

    Raises:
        DsrlError: when no episode is long enough, or something is not finite.
    """
    parts = [_windows_of(episode, data, length, stride) for episode in data.episodes]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if not columns or not len(columns[0]):
        longest = max((_usable(episode)[0] for episode in data.episodes), default=0)
        raise DsrlError(
            f"{source} has no window of {length} env steps: its longest episode has {longest} without the step that "
            "ran into the time limit; give a smaller --window"
        )
    for name, column in zip(Windows._fields, columns, strict=True):
        if not np.isfinite(column).all():
            raise DsrlError(f"{source} holds NaN or infinite values in its {name}s; remove those episodes")
    windows = Windows(*map(torch.from_numpy, columns))
    ends = windows.terminated.any(dim=1).long()
    return windows.at(torch.arange(len(ends)).repeat_interleave(1 + ends * (ending_repeats - 1)))


def _usable(episode: Trajectory) -> tuple[int, bool]:
    """Env steps of an episode that windows may hold, and whether the last of them terminates it."""
    ends = np.flatnonzero(episode.terminated)
    return (int(ends[0]) + 1, True) if len(ends) else (len(episode) - 1, False)


def _windows_of(episode: Trajectory, data: Trajectories, length: int, stride: int) -> tuple[np.ndarray, ...]:
    steps, terminates = _usable(episode)
    first = np.arange(0, max(0, steps - length + 1), stride)
    if terminates and steps >= length:
        first = np.union1d(first, [steps - length])
    seen = np.concatenate(
        [concat_keys(episode.obs, data.obs_shapes), concat_keys(episode.next_obs, data.obs_shapes)[-1:]]
    )
    if steps < len(episode):
        seen[steps] = concat_keys(episode.next_obs, data.obs_shapes)[steps - 1]
    time = first[:, None] + np.arange(length)
    return (
        seen[first[:, None] + np.arange(length + 1)],
        np.asarray(episode.actions, np.float32)[time],
        np.asarray(episode.rewards, np.float32)[time],
        np.asarray(episode.terminated, bool)[time],
    )


def to_trajectories(windows: Windows, like: Trajectories) -> Trajectories:
    """Every window as an episode of its own, which ends at its first termination, or else was cut off."""
    shapes = {key: tuple(shape) for key, shape in like.obs_shapes.items()}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    obs, action, reward, terminated = (part.cpu().numpy() for part in windows)
    lengths = windows.alive().sum(dim=1).tolist()
    episodes = []
    for i, steps in enumerate(lengths):
        columns = np.split(obs[i], np.cumsum(sizes)[:-1], axis=-1)
        keyed = {key: c.reshape(-1, *shape) for (key, shape), c in zip(shapes.items(), columns, strict=True)}
        episodes.append(
            Trajectory(
                obs={key: values[:steps] for key, values in keyed.items()},
                next_obs={key: values[1 : steps + 1] for key, values in keyed.items()},
                actions=action[i, :steps],
                rewards=reward[i, :steps],
                terminated=terminated[i, :steps],
            )
        )
    return Trajectories(tuple(episodes), shapes, like.env)


@dataclass(frozen=True)
class Layout:
    """Channels of a row: observation, action, reward, terminated."""

    obs_dim: int
    action_dim: int
    length: int
    """env steps of a window; one row more holds the observation behind the last one"""
    reward_values: tuple[float, float] | None = None
    """of a sparse reward, which is snapped to the nearer one"""

    @property
    def channels(self) -> int:
        """Numbers per row."""
        return self.obs_dim + self.action_dim + 2

    @property
    def rows(self) -> int:
        """Per window."""
        return self.length + 1

    @property
    def actions(self) -> slice:
        """Where the actions stand in a row."""
        return slice(self.obs_dim, self.obs_dim + self.action_dim)


class WindowCodec(nn.Module):
    """Environment units to network units and back.

    Actions, in units of their limits, pass through arctanh; then every channel has zero mean over the data, and unit
    variance, but for those of two values, which lie 2 apart: by its own deviation a rare one would lie so far out that
    little else was learned. The action, reward and termination of the last row, which do not exist, are zero.

    Args:
        layout: the channels.
        low, high: limits of the actions, ``(Da,)``.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layout: Layout, low: Tensor, high: Tensor):
        super().__init__()
        self.layout = layout
        self.register_buffer("offset", torch.zeros(layout.channels))
        self.register_buffer("scale", torch.ones(layout.channels))
        self.register_buffer("low", low.float())
        self.register_buffer("high", high.float())

    def fit(self, windows: Windows) -> None:
        """Take mean and scale of every channel; one that never changes keeps scale 1."""
        flat = self._raw(windows).flatten(0, 1).double()
        std = flat.std(0, correction=0)
        last = windows.obs[:, -1].double()
        seen = torch.cat([windows.obs[:, :-1].flatten(0, 1).double(), last])
        obs = slice(0, self.layout.obs_dim)
        self.offset.copy_(flat.mean(0))
        self.offset[obs] = seen.mean(0).float()
        std[obs] = seen.std(0, correction=0)
        if self.layout.reward_values is not None:
            low, high = self.layout.reward_values
            std[-2] = (high - low) / 2
        std[-1] = 0.5
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def encode(self, windows: Windows) -> Tensor:
        """-> ``(N, L + 1, C)``."""
        rows = (self._raw(windows) - self.offset) / self.scale
        last = torch.zeros_like(rows[:, :1])
        obs = slice(0, self.layout.obs_dim)
        last[:, 0, obs] = (windows.obs[:, -1] - self.offset[obs]) / self.scale[obs]
        return torch.cat([rows, last], dim=1)

    def decode(self, x: Tensor) -> Windows:
        """``(N, L + 1, C)`` -> windows; terminations, and sparse rewards, are thresholded."""
        layout, raw = self.layout, x * self.scale + self.offset
        reward = raw[:, :-1, -2]
        if layout.reward_values is not None:
            low, high = layout.reward_values
            reward = torch.where(reward > (low + high) / 2, high, low).to(reward)
        return Windows(raw[..., : layout.obs_dim], self.actions(x), reward, raw[:, :-1, -1] > 0.5)

    def actions(self, x: Tensor) -> Tensor:
        """``(N, L + 1, C)`` -> ``(N, L, Da)`` in environment units, inside their limits."""
        return self._center + self._half * torch.tanh(self._angles(x))

    def action_slope(self, x: Tensor) -> Tensor:
        """``d action / d x`` of the action channels, ``(N, L, Da)``."""
        own = self.scale[self.layout.actions]
        return self._half * own * (1 - torch.tanh(self._angles(x)).square())

    def action_std(self) -> Tensor:
        """Of the actions of the data, about, ``(Da,)`` in environment units."""
        where = self.layout.actions
        return self._half * self.scale[where] * (1 - torch.tanh(self.offset[where]).square())

    def _angles(self, x: Tensor) -> Tensor:
        where = self.layout.actions
        return x[:, :-1, where] * self.scale[where] + self.offset[where]

    def _raw(self, windows: Windows) -> Tensor:
        """``(N, L, C)``."""
        unit = ((windows.action - self._center) / self._half).clamp(-ACTION_CLIP, ACTION_CLIP)
        flags = torch.stack([windows.reward, windows.terminated.to(unit)], dim=-1)
        return torch.cat([windows.obs[:, :-1], torch.atanh(unit), flags], dim=-1)

    @property
    def _center(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> Tensor:
        return (self.high - self.low) / 2


def sparse_values(data: Trajectories) -> tuple[float, float] | None:
    """The two values that the rewards of a sparse task take; None for any other reward."""
    values = np.unique(np.concatenate([np.asarray(episode.rewards, np.float32) for episode in data.episodes]))
    return (float(values[0]), float(values[1])) if len(values) == 2 else None
