"""When a run is evaluated, and what that may cost: a quarter of the env steps of training, unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

_SHARE = 4
"""training takes at least so many times the env steps of the evaluations"""
_MOST_EPISODES = 50


@dataclass
class EvaluationPlan:
    """Which evaluations a run can afford.

    With an ``interval``, one every so many env steps. Without, one as soon as a quarter of the env steps trained so far
    pays for those before and for one more like the dearest of them, as long as an evaluation of the longest possible
    episodes still fits into a quarter of the whole budget.
    """

    total: int
    """env steps of training"""
    episodes: int
    """per evaluation"""
    interval: int | None = None
    """env steps between evaluations"""
    longest: int | None = None
    """env steps of an episode at most"""
    spent: int = 0
    """env steps that evaluations have played"""
    dearest: int = 0
    """of one evaluation"""
    next: int = 0
    """point of the grid, with an interval"""

    def __post_init__(self) -> None:
        self.next = self.next or self.interval or 0

    def played(self, env_steps: int) -> None:
        """One evaluation more."""
        self.spent += env_steps
        self.dearest = max(self.dearest, env_steps)

    def starts(self, trained: int) -> bool:
        """Whether the first evaluation of the agent, once it has learned something, comes now."""
        if self.interval is None:
            return self._paid(trained)
        # the next point of the grid that is not just ahead
        self.next = self.interval * ceil(trained / self.interval + 0.5)
        return True

    def due(self, trained: int) -> bool:
        """Whether one comes after so many env steps of training."""
        if self.interval is None:
            return self._paid(trained)
        if trained < self.next:
            return False
        self.next += self.interval
        return True

    def ends(self, trained: int, scored: bool) -> bool:
        """Whether the last agent is evaluated too; one evaluation there is in any case."""
        return self.interval is not None or not scored or self._paid(trained)

    def state(self) -> dict[str, int]:
        """What was decided and spent; a run that gets a larger budget keeps its number of episodes."""
        return {"episodes": self.episodes, "spent": self.spent, "dearest": self.dearest, "next": self.next}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.episodes, self.spent = state["episodes"], state["spent"]
        self.dearest, self.next = state["dearest"], state["next"]

    def describe(self) -> str:
        """What the evaluations so far have taken, and what that is of the training."""
        return f"{self.spent:,} env steps of evaluation, {self.spent / self.total:.0%} of the training's {self.total:,}"

    def note(self) -> str | None:
        """What to say beforehand: whether they are likely to take more than their share."""
        cost = self.episodes * (self.longest or 0)
        times = 2 if self.interval is None else 2 + ceil(self.total / self.interval)
        if _SHARE * cost * times <= self.total:
            return None
        return (
            f"note: evaluations of {self.episodes} episodes, at most {cost:,} env steps each, may take more than a "
            f"quarter of the {self.total:,} env steps of training; it is kept where --eval-interval and "
            "--eval-episodes are left out and two episodes fit into it"
        )

    def _paid(self, trained: int) -> bool:
        fits = self.longest is None or _SHARE * (self.spent + self.episodes * self.longest) <= self.total
        return fits and _SHARE * (self.spent + self.dearest) <= min(trained, self.total)


def plan_evaluations(total: int, longest: int | None, interval: int | None, episodes: int | None) -> EvaluationPlan:
    """What was asked for; what was not is chosen so that all evaluations take a quarter of ``total`` at most.

    Args:
        total: env steps of training.
        longest: env steps of an episode at most, where there is a limit.
        interval: env steps between evaluations, or None.
        episodes: per evaluation, or None.
    """
    if episodes is None:
        # three of the longest possible ones fit, or as many as the grid has; they usually take half of that
        times = 3 if interval is None else 2 + ceil(total / interval)
        episodes = max(1, min(_MOST_EPISODES, total // (_SHARE * times * (longest or 1_000))))
    return EvaluationPlan(total, episodes, interval, longest)
