"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque

import numpy as np

BASE, ACTOR, CANDIDATES, EXPLORE = "base", "actor", "candidates", "explore"


class Pilots:
    """Takes turns, episode by episode, and keeps the last results of every pilot.

    The mean of the actor, the choice among candidates and the learning actor's draws fly a third of the training
    episodes each. These are episodes that are learned from anyhow, so the comparison costs no env step.

    Args:
        window: results that are kept per pilot.
        trust: results without which a pilot is not trusted.
    """

    TURNS = (ACTOR, CANDIDATES, EXPLORE)

    def __init__(self, window: int = 20, trust: int = 4):
        self.window, self.trust = window, trust
        self.results: dict[str, deque[float]] = {}
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
        return float(np.mean(self.results[pilot])) if pilot in self.results else float("nan")

    def better(self, pilot: str, other: str) -> bool:
        """Whether ``pilot`` has done at least as well as ``other``, both over enough episodes to be trusted."""
        enough = all(len(self.results.get(name, ())) >= self.trust for name in (pilot, other))
        return enough and self.mean(pilot) >= self.mean(other)
