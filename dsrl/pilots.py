"""Who plays which episode of training, and how well each of them does: the ground for what is deployed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dsrl.learners import REACHES, Learners
from dsrl.statistics import lead

BASE, CANDIDATES, INCUMBENT, LEARNER, NOBODY = "base", "candidates", "incumbent", "learner", "nobody"
PROOF = "proof"
"""The results that an incumbent was chosen by."""

_STATE = ("successions", "_shown", "_turn", "_warming_up", "_flying")


class Pilots:
    """Takes turns, episode by episode, and decides when what is deployed gives way.

    The learner, the averaged actor as it is at the time, flies half of the training episodes, with the reach that
    :class:`~dsrl.learners.Learners` finds the most promising; the incumbent, which is what would be deployed, a
    quarter, and the critics' choice among noises of the prior another one. All of them are learned from anyhow, so the
    comparison costs no env step. Round after round the best reach is judged by its last episodes: a copy of the learner
    with it is the next incumbent unless they went worse than the incumbent's, what it proved and has flown since: where
    a little worse is good enough, many little steps lead far down. They must also lead over the base policy's warm-up
    beyond chance (:func:`~dsrl.statistics.lead`).

    An actor that learns from its own episodes alone learns little where it flies badly. The candidates stay inside what
    the base policy does and are better than it, and what they fly teaches the most.

    Who asks often is told by chance some day that a bad actor is good, and what it was chosen by flatters it. So a copy
    that flies worse than the base policy *afterwards* gives way to the candidates again (:meth:`relapse`).

    Failures take longer than successes. So the base policy plays what the warm-up has begun to its end.

    The candidates are the first incumbent. Critics of few episodes choose well on most seeds and badly on some, so they
    fly the first episodes after the warm-up, and are not deployed unseen (:meth:`first_is_trusted`).

    Args:
        window: last results of an incumbent that count.
        trust: results without which an incumbent cannot be beaten, and does not give way.
        trial: episodes without which a reach is not judged.
        round_size: episodes of the learner from one judgement to the next.
        first: episodes that the candidates fly before anybody else, to be compared with the base policy.
        enough: episodes of the warm-up whose critics are trusted unseen.
        confidence: standard errors by which the learner must lead over the base policy; 1.28 is 90 %, one-sided.
        doubt: standard errors by which an incumbent is clearly worse than the base policy, and gives way; 0.67 is 75 %.
    """

    TURNS = (LEARNER, CANDIDATES, LEARNER, INCUMBENT)

    def __init__(
        self,
        window: int = 20,
        trust: int = 4,
        trial: int = 4,
        round_size: int = 2,
        first: int = 4,
        enough: int = 40,
        confidence: float = 1.28,
        doubt: float = 0.67,
    ):
        self.window, self.trust, self.trial, self.round_size = window, trust, trial, round_size
        self.first, self.enough, self.confidence, self.doubt = first, enough, confidence, doubt
        self.learners = Learners()
        self.results: dict[str, deque[float]] = {}
        self.successions = 0
        self._shown = 0
        self._turn = 0
        self._warming_up = True
        self._flying: list[str] = []

    def state(self) -> dict[str, Any]:
        """Results, turns and who is flying, as plain values."""
        results = {pilot: list(flown) for pilot, flown in self.results.items()}
        return {"results": results, "learners": self.learners.state(), **{name: getattr(self, name) for name in _STATE}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.learners.restore(state["learners"])
        self.results = {pilot: self._deque(pilot, flown) for pilot, flown in state["results"].items()}

    def start(self, n_envs: int, *, warming_up: bool) -> list[str]:
        """Who plays in each environment now."""
        if len(self._flying) != n_envs:
            self._flying = [BASE] * n_envs
            self.learners.abandon()
        self._warming_up = warming_up
        return list(self._flying)

    @property
    def reaches(self) -> list[float]:
        """The factor on the mean of the averaged actor in each environment, where the learner plays."""
        return [self.learners.reach(env) for env in range(len(self._flying))]

    def landed(self, env: int, result: float) -> None:
        """The episode in this environment has ended."""
        pilot = self._flying[env]
        if pilot == LEARNER:
            self.learners.landed(env, result)
        elif pilot != NOBODY:
            self.results.setdefault(pilot, self._deque(pilot)).append(result)
        self._flying[env] = self._next()
        if self._flying[env] == LEARNER:
            self.learners.take_off(env)

    def _next(self) -> str:
        if self._warming_up:
            return BASE
        if self._shown < self.first:
            self._shown += 1
            return CANDIDATES
        self._turn += 1
        turn = self.TURNS[(self._turn - 1) % len(self.TURNS)]
        return self.incumbent if turn == INCUMBENT else turn

    @property
    def incumbent(self) -> str:
        """The candidates, until an actor has proved itself."""
        return INCUMBENT if self.successions else CANDIDATES

    def mean(self, pilot: str) -> float:
        """Of the last results; NaN without any."""
        return float(np.mean(self.results[pilot])) if self.results.get(pilot) else float("nan")

    def means(self) -> dict[str, float]:
        """Of everybody who has flown, and of the learner by its reach."""
        learners = {f"{LEARNER}_x{reach:g}": self.learners.results(reach) for reach in REACHES}
        flown = {**self.results, **learners}
        return {pilot: float(np.mean(results)) for pilot, results in flown.items() if results}

    def judge(self) -> float | None:
        """The reach with which a copy of the learner succeeds the incumbent now, which it then has; None if none does.

        Ask after every landing.
        """
        defended = [*self.results.get(PROOF, ()), *self.results.get(self.incumbent, ())]
        if self.learners.fresh < self.round_size or len(defended) < self.trust:
            return None
        best = self.learners.best(self.trial)
        if best is None:
            return None
        self.learners.fresh = 0
        flown = self.learners.results(best)
        if lead(flown, defended) < 0 or lead(flown, self.results.get(BASE, ())) < self.confidence:
            return None
        self.successions += 1
        self.results[PROOF], self.results[INCUMBENT] = self._deque(PROOF, flown), self._deque(INCUMBENT)
        self._incumbent_leaves()
        return best

    def first_is_trusted(self) -> bool:
        """Whether the candidates may be deployed: they have done as well as the base policy, or much was learned."""
        if len(self.results.get(CANDIDATES, ())) < self.first:
            return len(self.results.get(BASE, ())) >= self.enough
        return not self.mean(CANDIDATES) < self.mean(BASE)

    def relapse(self) -> bool:
        """Whether an actor has proved worse than the base policy; if so the candidates are the incumbent again."""
        later = self.results.get(INCUMBENT, ())
        if not self.successions or len(later) < self.trust:
            return False
        if lead(later, self.results.get(BASE, ())) > -self.doubt:
            return False
        self.successions = 0
        del self.results[INCUMBENT], self.results[PROOF]
        self._incumbent_leaves()
        return True

    def _incumbent_leaves(self) -> None:
        # what one has begun and another ends belongs to neither
        self._flying = [NOBODY if pilot == INCUMBENT else pilot for pilot in self._flying]

    def _deque(self, pilot: str, flown: Iterable[float] = ()) -> deque[float]:
        # the base policy stays as it is: all of its episodes count
        return deque(flown, maxlen=None if pilot == BASE else self.window)
