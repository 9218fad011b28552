"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

BASE, INCUMBENT, CHALLENGER, EXPLORE = "base", "incumbent", "challenger", "explore"
PROOF, FIRST = "proof", "candidates"
"""The trial that an incumbent was chosen by, and the first incumbent's results while another one is deployed."""

_STATE = ("successions", "_shown", "_sent", "_turn", "_warming_up", "_flying")


class Pilots:
    """Takes turns, episode by episode, and decides when what is deployed gives way.

    A challenger, a frozen copy of the averaged actor, flies up to half of the training episodes; the incumbent, which
    is what would be deployed, at least a quarter; the learning actor's own draws a quarter. A challenger succeeds the
    choice among candidates, which costs more per decision, when it has done as well, and another actor when it has done
    better, after few episodes only beyond chance: with equals, chance would replace a good one sooner or later. Either
    must have beaten the base policy's warm-up beyond chance (:func:`lead`); one that promises to, and has not yet,
    flies on. One that no longer can is dropped at once. Either way a newer copy is the next. All of these are episodes
    that are learned from anyhow, so the comparison costs no env step.

    Of many challengers a bad one passes its trial sooner or later, and its trial flatters it. So an actor that flies
    worse than the base policy *after* its trial gives way to the first incumbent again (:meth:`relapse`).

    Failures take longer than successes. So a challenger is judged when all of its episodes have landed, not by the
    first ones that do, and the base policy plays what the warm-up has begun to its end.

    The first incumbent is the critics' choice among noises of the prior. Critics of few episodes choose well on most
    seeds and badly on some, so it flies the first episodes after the warm-up, and is not deployed unseen
    (:meth:`first_is_trusted`).

    Args:
        window: last results of an incumbent that count.
        trust: results without which an incumbent cannot be beaten, and does not give way.
        trials: episodes after which a challenger is judged, the last time for good.
        first: episodes that the first incumbent flies before anybody else, to be compared with the base policy.
        enough: episodes of the warm-up whose critics are trusted unseen.
        confidence: standard errors by which a challenger must lead over the base policy; one is 84 %, one-sided.
        doubt: standard errors by which an actor that fell behind the base policy gives way; 0.67 is 75 %.
    """

    TURNS = (CHALLENGER, INCUMBENT, CHALLENGER, EXPLORE)

    def __init__(
        self,
        window: int = 20,
        trust: int = 4,
        trials: tuple[int, ...] = (6, 11, 16),
        first: int = 4,
        enough: int = 40,
        confidence: float = 1.0,
        doubt: float = 0.67,
    ):
        self.window, self.trust, self.trials = window, trust, trials
        self.first, self.enough, self.confidence, self.doubt = first, enough, confidence, doubt
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
        """Episodes of the challenger until it is judged next."""
        flown = len(self.results.get(CHALLENGER, ()))
        return next((trial for trial in self.trials if trial > flown), self.trials[-1])

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
            self._sent += pilot == CHALLENGER
        self._flying[env] = pilot
        self._turn += 1

    def mean(self, pilot: str) -> float:
        """Of the last results; NaN without any."""
        return float(np.mean(self.results[pilot])) if self.results.get(pilot) else float("nan")

    def verdict(self) -> bool | None:
        """Whether the challenger has done well enough to succeed the incumbent; None while that is open."""
        flown = self.results.get(CHALLENGER, deque())
        defended = [*self.results.get(PROOF, ()), *self.results.get(INCUMBENT, ())]
        if not flown or len(defended) < self.trust:
            return None
        level = float(np.mean(defended))
        enough = np.greater if self.successions else np.greater_equal
        if len(flown) in self.trials:
            if not enough(self.mean(CHALLENGER), level):
                return False
            # few episodes replace an actor only where they leave little doubt
            early = self.successions and len(flown) == self.trials[0]
            rivals = [self.results.get(BASE, ()), *([defended] if early else [])]
            if all(lead(flown, rival) >= self.confidence for rival in rivals):
                return True
        to_come = self.needed - len(flown)
        best = 1.0 if set(flown) <= {0.0, 1.0} else float("inf")  # an episode's success, or a return
        if to_come and enough((sum(flown) + to_come * best) / self.needed, level):
            return None
        return False

    def first_is_trusted(self) -> bool:
        """Whether the first incumbent may be deployed: it has done as well as the base policy, or much was learned."""
        if len(self.results.get(INCUMBENT, ())) < self.first:
            return len(self.results.get(BASE, ())) >= self.enough
        return not self.mean(INCUMBENT) < self.mean(BASE)

    def next_challenger(self, *, succeeds: bool) -> None:
        """Another challenger begins; the one before is the incumbent now, with its results, if it ``succeeds``."""
        flown = self.results.pop(CHALLENGER)
        self._sent = 0
        self._leave(CHALLENGER)
        if succeeds:
            if not self.successions:
                self.results[FIRST] = self.results[INCUMBENT]
            self.successions += 1
            self.results[PROOF], self.results[INCUMBENT] = flown, self._deque(INCUMBENT)
            self._shown = 0
            self._leave(INCUMBENT)

    def relapse(self) -> bool:
        """Whether an actor has proved worse than the base policy; if so the first incumbent is the incumbent again."""
        later = self.results.get(INCUMBENT, ())
        if not self.successions or len(later) < self.trust:
            return False
        if lead(later, self.results.get(BASE, ())) > -self.doubt:
            return False
        self.successions = 0
        self.results[INCUMBENT] = self.results.pop(FIRST)
        del self.results[PROOF]
        self._leave(INCUMBENT)
        return True

    def _leave(self, leaving: str) -> None:
        # what one has begun and another ends belongs to neither
        self._flying = [EXPLORE if pilot == leaving else pilot for pilot in self._flying]

    def _deque(self, pilot: str, flown: Iterable[float] = ()) -> deque[float]:
        # the base policy stays as it is: all of its episodes count
        return deque(flown, maxlen=None if pilot == BASE else self.window)


def lead(results: Sequence[float], over: Sequence[float]) -> float:
    """By how many standard errors the mean of ``results`` lies above that of ``over``; infinite over nothing.

    Of successes (0 or 1) by Agresti and Caffo (2000), one success and one failure added to either; else by Welch.
    """
    if not len(over):
        return float("inf")
    successes = {*results, *over} <= {0.0, 1.0}
    (mean, variance), (other, other_variance) = (_moments(each, successes) for each in (results, over))
    return (mean - other) / max((variance + other_variance) ** 0.5, 1e-12)


def _moments(results: Sequence[float], successes: bool) -> tuple[float, float]:
    """Mean, and variance of the mean."""
    if successes:
        rate = (sum(results) + 1) / (len(results) + 2)
        return rate, rate * (1 - rate) / (len(results) + 2)
    return float(np.mean(results)), float(np.var(results, ddof=min(1, len(results) - 1))) / len(results)
