"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BASE, INCUMBENT, CHALLENGER, EXPLORE = "base", "incumbent", "challenger", "explore"

_STATE = ("successions", "_shown", "_sent", "_turn", "_warming_up", "_flying")


class Pilots:
    """Takes turns, episode by episode, and decides when what is deployed gives way.

    A challenger, a frozen copy of the averaged actor, flies up to half of the training episodes; the incumbent, which
    is what would be deployed, at least a quarter; the learning actor's own draws a quarter. A challenger succeeds the
    choice among candidates, which costs more per decision, when it has done as well, and another actor when it has done
    better: with equals, chance would replace a good one sooner or later. One that no longer can is dropped at once.
    Either way a newer copy is the next. An incumbent that proves worse than the base policy was in the warm-up gives
    way to the first one again. All of these are episodes that are learned from anyhow, so the comparison costs no env
    step.

    Failures take longer than successes. So a challenger is judged when all of its episodes have landed, not by the
    first ones that do, and the base policy plays what the warm-up has begun to its end.

    The first incumbent is the critics' choice among noises of the prior. Critics of few episodes choose well on most
    seeds and badly on some, so it flies the first episodes after the warm-up, and is not deployed unseen
    (:meth:`first_is_trusted`); its successor has to be as good as the base policy was in the warm-up too.

    Args:
        window: last results of an incumbent that count.
        trust: results without which an incumbent cannot be beaten.
        trials: episodes of a challenger, the first time and later: the first incumbent is the choice among candidates,
            often little better than the base policy.
        first: episodes that the first incumbent flies before anybody else, to be compared with the base policy.
        enough: episodes of the warm-up whose critics are trusted unseen.
    """

    TURNS = (CHALLENGER, INCUMBENT, CHALLENGER, EXPLORE)

    def __init__(
        self, window: int = 20, trust: int = 2, trials: tuple[int, int] = (6, 10), first: int = 4, enough: int = 40
    ):
        self.window, self.trust, self.trials, self.first, self.enough = window, trust, trials, first, enough
        self.results: dict[str, deque[float]] = {}
        self.successions = 0
        self._shown = 0
        self._sent = 0
        self._turn = 0
        self._warming_up = True
        self._flying: list[str] = []

    def state(self) -> dict[str, Any]:
        """Results, turns and who is flying, as plain values."""
        results = {pilot: list(flown) for pilot, flown in self.results.items()}
        return {"results": results, **{name: getattr(self, name) for name in _STATE}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.results = {pilot: self._deque(pilot, flown) for pilot, flown in state["results"].items()}

    @property
    def needed(self) -> int:
        """Episodes of the challenger until it is judged."""
        return self.trials[self.successions > 0]

    def start(self, n_envs: int, *, warming_up: bool) -> list[str]:
        """Who plays in each environment now."""
        if len(self._flying) != n_envs:
            self._flying = [BASE] * n_envs
        self._warming_up = warming_up
        return list(self._flying)

    def landed(self, env: int, result: float) -> None:
        """The episode in this environment has ended."""
        pilot = self._flying[env]
        self.results.setdefault(pilot, self._deque(pilot)).append(result)
        if self._warming_up:
            self._flying[env] = BASE
            return
        if self._shown < self.first:
            self._shown += 1
            self._flying[env] = INCUMBENT
            return
        pilot = self.TURNS[self._turn % len(self.TURNS)]
        if pilot == CHALLENGER:
            pilot = CHALLENGER if self._sent < self.needed else INCUMBENT
            self._sent += 1
        self._flying[env] = pilot
        self._turn += 1

    def mean(self, pilot: str) -> float:
        """Of the last results; NaN without any."""
        return float(np.mean(self.results[pilot])) if self.results.get(pilot) else float("nan")

    def verdict(self) -> bool | None:
        """Whether the challenger has done well enough to succeed the incumbent; None while that is open."""
        flown = self.results.get(CHALLENGER, deque())
        if not flown or len(self.results.get(INCUMBENT, ())) < self.trust:
            return None
        level = self.mean(INCUMBENT)
        if not self.successions and self.results.get(BASE):
            level = max(level, self.mean(BASE))
        to_come = self.needed - len(flown)
        best = 1.0 if set(flown) <= {0.0, 1.0} else float("inf")  # an episode's success, or a return
        enough = np.greater if self.successions else np.greater_equal
        if to_come and enough((sum(flown) + to_come * best) / self.needed, level):
            return None
        return not to_come and bool(enough(self.mean(CHALLENGER), level))

    def first_is_trusted(self) -> bool:
        """Whether the first incumbent may be deployed: it has done as well as the base policy, or much was learned."""
        flown = self.results.get(INCUMBENT, ())
        if self.successions or len(flown) < self.first:
            return len(self.results.get(BASE, ())) >= self.enough
        return not self.mean(INCUMBENT) < self.mean(BASE)

    def next_challenger(self, *, succeeds: bool) -> None:
        """Another challenger begins; the one before is the incumbent now, with its results, if it ``succeeds``."""
        flown = self.results.pop(CHALLENGER)
        if succeeds:
            self.successions += 1
            self.results[INCUMBENT] = deque(flown, maxlen=self.window)
        self._sent = 0
        # what one has begun and another ends belongs to neither
        self._flying = [EXPLORE if pilot == CHALLENGER else pilot for pilot in self._flying]

    def relapse(self) -> bool:
        """Whether the incumbent has proved worse than the base policy; if so the first one begins anew."""
        if not self.successions or len(self.results[INCUMBENT]) <= self.trials[1]:
            return False
        if not self.mean(INCUMBENT) < self.mean(BASE):
            return False
        self.successions = 0
        del self.results[INCUMBENT]
        return True

    def _deque(self, pilot: str, flown: Iterable[float] = ()) -> deque[float]:
        # the base policy stays as it is: all of its episodes count
        return deque(flown, maxlen=None if pilot == BASE else self.window)
