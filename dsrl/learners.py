"""How far along its mean the learning actor should go: tried out in training episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsrl.statistics import estimate

REACHES = (1.0, 1.5)


class Learners:
    """The averaged actor, as it is at the time, with its mean itself or times 1.5: which of the two flies next?

    A price in nats bounds how far the actor leaves the prior, and what suits one base policy is timid for another: on
    some tasks 1.5 times the mean succeeds in nine of ten episodes where the mean itself does in six, on others it is
    the other way round. So the one of the highest mean result, plus a standard error, flies. Only the last episodes of
    both count, for the actor soon is another one, and one that had failed is tried again, unless the other one hardly
    ever fails.

    Failures take longer than successes. So episodes count in the order in which they began.

    Args:
        memory: last episodes that count, of the two together.
    """

    def __init__(self, memory: int = 24):
        self.memory = memory
        self.fresh = 0
        """episodes that have begun to count since this was last set to 0"""
        self._flown: list[list[float]] = []
        """reach and result"""
        self._under_way: list[list[Any]] = []
        """environment, reach and result, from the first one on that has not landed"""

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"flown": list(self._flown), "under_way": [list(each) for each in self._under_way], "fresh": self.fresh}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        self._flown, self.fresh = list(state["flown"]), state["fresh"]
        self._under_way = [list(each) for each in state["under_way"]]

    def results(self, reach: float) -> list[float]:
        """Of its last episodes, oldest first."""
        return [result for flown, result in self._flown if flown == reach]

    def take_off(self, env: int) -> float:
        """The reach that flies in this environment from now on."""
        reach = max(REACHES, key=self._promise)
        self._under_way.append([env, reach, None])
        return reach

    def reach(self, env: int) -> float:
        """That flies in this environment; 1 where none does."""
        return next((reach for where, reach, result in self._under_way if where == env and result is None), 1.0)

    def landed(self, env: int, result: float) -> None:
        """The episode that took off in this environment has ended."""
        (episode,) = (each for each in self._under_way if each[0] == env and each[2] is None)
        episode[2] = result
        while self._under_way and self._under_way[0][2] is not None:
            _, *flown = self._under_way.pop(0)
            self._flown = [*self._flown, flown][-self.memory :]
            self.fresh += 1

    def abandon(self) -> None:
        """Nobody is flying any more."""
        self._under_way = []

    def best(self, at_least: int) -> float | None:
        """The reach of the best mean among those that have flown so often; None without one."""
        ready = [reach for reach in REACHES if len(self.results(reach)) >= at_least]
        return max(ready, key=lambda reach: sum(self.results(reach)) / len(self.results(reach)), default=None)

    def _promise(self, reach: float) -> float:
        # what is under way narrows the doubt as if it had landed
        results = self.results(reach)
        count = len(results) + sum(flying == reach and result is None for _, flying, result in self._under_way)
        mean, error = estimate(results, count, [result for _, result in self._flown])
        return mean + error
