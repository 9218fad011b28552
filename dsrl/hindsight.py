"""Goals in hindsight: what was reached later in an episode is a goal that its earlier actions were good for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsrl.data import Trajectories, concat_keys


class Hindsight(NamedTuple):
    """Of ``B`` decisions, in environment units."""

    goal: Tensor
    """``(B, G)`` reached at a later env step of the same episode, each of them as likely as the others"""
    subgoal: Tensor
    """``(B, G)`` reached on the way to it, a fixed number of env steps ahead; the goal itself where that comes first"""
    waypoint: Tensor
    """``(B, G)`` reached that many env steps ahead, whatever the goal; the end of the episode where that comes first"""


class FutureGoals:
    """A column of training data whose rows are drawn anew whenever they are read.

    Rows are those of :func:`~dsrl.data.bc_windows`: one per env step. (In the experiments of CFGRL all later steps are
    equally likely; the geometric distribution of the paper's equation, arXiv 2505.23458, is in none of them.)

    Args:
        data: episodes.
        key: the observation that says what was reached.
        ahead: env steps to a subgoal.
        device: of everything.
        seed: of the draws.
    """

    def __init__(
        self, data: Trajectories, key: str, *, ahead: int = 25, device: torch.device | str = "cpu", seed: int = 0
    ):
        reached, now, last, begin = [], [], [], 0
        for episode in data.episodes:
            steps = len(episode)
            # observations 0 .. steps, of which the last is the true next one
            reached.append(concat_keys(episode.obs, [key]))
            reached.append(concat_keys(episode.next_obs, [key])[-1:])
            now.append(begin + np.arange(steps))
            last.append(np.full(steps, begin + steps))
            begin += steps + 1
        self.reached = torch.from_numpy(np.concatenate(reached)).to(device) if reached else torch.empty(0, 0)
        self._now, self._last = (
            torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *part])).to(device) for part in (now, last)
        )
        self.ahead, self.seed = ahead, seed
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __len__(self) -> int:
        return len(self._now)

    def __getitem__(self, rows: Tensor | slice) -> Hindsight:
        """Rows chosen one by one are drawn anew; a slice, as a validation reads it, is the same every time."""
        generator = self.generator
        if isinstance(rows, slice):
            generator = torch.Generator(device=self._now.device).manual_seed(self.seed)
        now, last = self._now[rows], self._last[rows]
        drawn = torch.rand(len(now), generator=generator, device=now.device, dtype=torch.float64)
        # a draw is below 1, so this is now + 1 .. last
        goal = now + 1 + (drawn * (last - now)).long()
        return Hindsight(
            self.reached[goal],
            self.reached[torch.minimum(now + self.ahead, goal)],
            self.reached[torch.minimum(now + self.ahead, last)],
        )
