"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque

import numpy as np

BASE, INCUMBENT, CHALLENGER, EXPLORE = "base", "incumbent", "challenger", "explore"


class Pilots:
    """Takes turns, episode by episode, and decides when what is deployed gives way.

    Half of the training episodes are flown by a challenger, a frozen copy of the averaged actor; a quarter by the
    incumbent, which is what would be deployed; a quarter by the learning actor's own draws. A challenger that has done
    at least as well as the incumbent succeeds it; either way the next one is a newer copy. These are episodes that are
    learned from anyhow, so the comparison costs no env step.

    Args:
        window: last results that count for an incumbent.
        trust: results without which an incumbent cannot be beaten.
        trials: results that a challenger is judged by, the first time and later: the first incumbent is no actor, and
            hardly better than the base policy.
    """

    TURNS = (CHALLENGER, INCUMBENT, CHALLENGER, EXPLORE)

    def __init__(self, window: int = 20, trust: int = 2, trials: tuple[int, int] = (4, 10)):
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

    def verdict(self) -> bool | None:
        """Whether the challenger has done at least as well as the incumbent; None while too little is known."""
        flown, needed = len(self.results.get(CHALLENGER, ())), self.trials[self.successions > 0]
        if flown < needed or len(self.results.get(INCUMBENT, ())) < self.trust:
            return None
        return self.mean(CHALLENGER) >= self.mean(INCUMBENT)

    def next_challenger(self, *, succeeds: bool) -> None:
        """Another challenger begins; the one before is the incumbent now, with its results, if it ``succeeds``."""
        gone = {CHALLENGER}
        challenged = self.results.pop(CHALLENGER)
        if succeeds:
            self.results[INCUMBENT] = challenged
            self.successions += 1
            gone.add(INCUMBENT)
        # an episode that one has begun and another ends belongs to neither
        self._flying = [EXPLORE if pilot in gone else pilot for pilot in self._flying]
