"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque

import numpy as np

BASE, INCUMBENT, CHALLENGER, EXPLORE = "base", "incumbent", "challenger", "explore"


class Pilots:
    """Takes turns, episode by episode, and decides when what is deployed gives way.

    Half of the training episodes are flown by the challenger, the averaged actor as it is; a quarter by the incumbent,
    which is what would be deployed; a quarter by the learning actor's own draws. Whenever the challenger's last
    episodes have gone at least as well as the incumbent's, a copy of it is the next incumbent, with these results. One
    that turns out to do worse than the base policy did in the warm-up gives way to the first incumbent again. All of
    them are episodes that are learned from anyhow, so the comparison costs no env step.

    Args:
        window: last results of an incumbent that count.
        trust: results without which an incumbent cannot be beaten.
        trials: last results of the challenger that count, the first time and later: the first incumbent is the choice
            among candidates, often little better than the base policy.
    """

    TURNS = (CHALLENGER, INCUMBENT, CHALLENGER, EXPLORE)

    def __init__(self, window: int = 20, trust: int = 2, trials: tuple[int, int] = (6, 10)):
        self.window, self.trust, self.trials = window, trust, trials
        self.results: dict[str, deque[float]] = {}
        self.successions = 0
        self._turn = 0
        self._warming_up = True
        self._flying: list[str] = []

    def start(self, n_envs: int, *, warming_up: bool) -> list[str]:
        """Who plays in each environment now; an episode of the warm-up is played to its end by whoever explores."""
        if len(self._flying) != n_envs:
            self._flying = [BASE] * n_envs
        self._warming_up = warming_up
        return [EXPLORE if pilot == BASE and not warming_up else pilot for pilot in self._flying]

    def landed(self, env: int, result: float) -> None:
        """The episode in this environment has ended."""
        self.results.setdefault(self._flying[env], deque(maxlen=self.window)).append(result)
        if self._warming_up:
            self._flying[env] = BASE
            return
        self._flying[env] = self.TURNS[self._turn % len(self.TURNS)]
        self._turn += 1

    def mean(self, pilot: str) -> float:
        """Of the last results; NaN without any."""
        return float(np.mean(self.results[pilot])) if self.results.get(pilot) else float("nan")

    def succession(self) -> bool:
        """Whether the challenger has done at least as well as the incumbent; if so it begins to be the incumbent."""
        challenger, needed = list(self.results.get(CHALLENGER, ())), self.trials[self.successions > 0]
        if len(challenger) < needed or len(self.results.get(INCUMBENT, ())) < self.trust:
            return False
        latest = challenger[-self.trials[1] :]
        if np.mean(latest) < self.mean(INCUMBENT):
            return False
        self.successions += 1
        self.results[INCUMBENT] = deque(latest, maxlen=self.window)
        self._orphan()
        return True

    def relapse(self) -> bool:
        """Whether the incumbent has proved worse than the base policy; if so the first one begins anew."""
        if not self.successions or len(self.results[INCUMBENT]) <= self.trials[1]:
            return False
        if not self.mean(INCUMBENT) < self.mean(BASE):
            return False
        self.successions = 0
        del self.results[INCUMBENT], self.results[CHALLENGER]
        self._orphan()
        return True

    def _orphan(self) -> None:
        """What another incumbent has begun says nothing about this one."""
        self._flying = [EXPLORE if pilot == INCUMBENT else pilot for pilot in self._flying]
