"""Two runs, or a run and a checkpoint, on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dsrl.compare import in_words, measures, paired, print_gains, print_rows, row_of, write_json
from dsrl.env_spec import EnvSpec
from dsrl.episodes import MEASURES, Episodes, episodes_path
from dsrl.errors import DsrlError
from dsrl.evaluate import Evaluation, evaluate, evaluation_envs
from dsrl.policy import FrozenPolicy
from dsrl.safety import SafetyConfig
from dsrl.statistics import Paired


@dataclass(frozen=True)
class Contender:
    """What plays: of a run the steered policy, of a checkpoint the policy itself."""

    name: str
    policy: FrozenPolicy
    base_sha256: str
    """of the policy that is steered, or its own"""
    noise_scale: float
    env: EnvSpec
    safety: SafetyConfig | None = None


@dataclass(frozen=True)
class RunComparison:
    """Two evaluations on the same initial states."""

    first: Evaluation
    second: Evaluation
    same_base: bool

    @property
    def gains(self) -> dict[str, Paired]:
        """Every measure of the second against the first."""
        return paired(measures(self.first), self.second)

    def rows(self) -> list[dict[str, Any]]:
        """A row each."""
        return [row_of(each.policy, each) for each in (self.first, self.second)]

    def print(self, console: Console) -> None:
        """The table and the differences."""
        print_rows(self.rows(), console)
        if not self.same_base:
            console.print("they steer different base policies: the difference is not that of the steering alone")
        print_gains(self.gains, console)

    def verdict(self) -> str:
        """One line."""
        one, two = self.first, self.second
        return (
            f"{two.policy} {two.success_rate:.0%} against {one.policy} {one.success_rate:.0%}: "
            f"{in_words(self.gains['success'])}, on the same {one.success.size} episodes"
        )

    def save(self, path: Path) -> None:
        """Write the numbers as JSON, and the episodes beside them.

        Raises:
            RunFailed: when they cannot be written.
        """
        gains = {name: gain._asdict() for name, gain in self.gains.items()}
        others = {name: gain for name, gain in gains.items() if name != "success"}
        data = {"seed": self.first.seed, "env_steps": self.first.env_steps + self.second.env_steps}
        write_json(path, {**data, "rows": self.rows(), "paired": gains["success"], "paired_others": others})
        both = (self.first, self.second)
        Episodes(
            seeds=self.first.seed + np.arange(self.first.success.size),
            starts=self.first.starts,
            columns=self.first.columns,
            policies=tuple(each.policy for each in both),
            **{name: np.stack([getattr(each, name) for each in both]) for name in MEASURES},
        ).save(episodes_path(path))


def compare_runs(
    first: Contender, second: Contender, *, episodes: int, seed: int, n_envs: int, reward: str, console: Console
) -> RunComparison:
    """Play the initial states ``seed, seed + 1, ...`` with both.

    Raises:
        DsrlError: when they were made for different tasks, naming what differs, before anything is played.
    """
    if differences := task_differences(first.env, second.env):
        raise DsrlError(
            f"{first.name} and {second.name} are of different tasks, so their episodes are not the same: "
            f"{'; '.join(differences)}. Compare runs of one task, or name one environment for both with --env"
        )
    names = (first.name, second.name) if first.name != second.name else (first.name, f"{second.name} (2)")
    results = []
    for contender, name in zip((first, second), names, strict=True):
        made: dict[str, Any] = {"env": contender.env, "reward": reward, "safety": contender.safety}
        with evaluation_envs(contender.policy, n_envs=min(n_envs, episodes), **made) as envs:
            settings: dict[str, Any] = {"noise_scale": contender.noise_scale, "console": console}
            results.append(evaluate(contender.policy, envs, episodes=episodes, seed=seed, name=name, **settings))
    return RunComparison(results[0], results[1], same_base=first.base_sha256 == second.base_sha256)


def task_differences(one: EnvSpec, other: EnvSpec) -> list[str]:
    """``max_episode_steps is 80 and 140``, for whatever makes two tasks; which observations are read does not."""
    fields = {"environment": "id", "max_episode_steps": "max_episode_steps", "version": "version"}
    pairs: dict[str, tuple[Any, Any]] = {w: (getattr(one, name), getattr(other, name)) for w, name in fields.items()}
    for group in ("kwargs", "options"):
        pairs |= _merged(getattr(one, group), getattr(other, group))
    return [f"{name} is {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (_plain(one.get(key)), _plain(other.get(key))) for key in sorted({*one, *other})}


def _plain(value: Any) -> Any:
    """Tuples and lists are the same once they have been in a file."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
