"""Base policy, steered policy and the controls that need no learning, on the same initial states."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from dsrl.episodes import MEASURES, Episodes, episodes_path
from dsrl.evaluate import Evaluation, evaluate, mean_of
from dsrl.files import write_text
from dsrl.policy import FrozenPolicy
from dsrl.probe import Probe
from dsrl.statistics import Paired, paired_difference, paired_means, wilson
from dsrl.steered import SteeredPolicy

BASE = "base, N(0, I)"


@dataclass(frozen=True)
class Comparison:
    """Evaluations on ``N`` common initial states."""

    base: Evaluation
    """``repeats`` noise seeds per state; the first of them is the base policy of the table"""
    repeats: int
    controls: tuple[Evaluation, ...]
    """what needs no learning: zero noise, half the noise"""
    steered: Evaluation | None
    """as it acts best: an actor's mean, or the best of a few noises by its critics"""
    sampled: Evaluation | None
    """the same actor with its own noise"""
    trained: int | None = None
    """env steps of training, where a run has ended with it"""

    @property
    def base_success(self) -> np.ndarray:
        """``(N,)``: the base policy, one noise seed per initial state."""
        return self._first("success")

    @property
    def env_steps(self) -> int:
        """That were played for it."""
        others = (*self.controls, self.steered, self.sampled)
        return self.base.env_steps + sum(each.env_steps for each in others if each is not None)

    def gain(self) -> Paired:
        """``(difference, low, high, p)`` of the success of the steered over the base policy."""
        if self.steered is None:
            raise ValueError("nothing was steered, so there is no gain")
        return paired_difference(self.base_success, self.steered.success)

    def gains(self, policy: Evaluation) -> dict[str, Paired]:
        """All measures of a policy against those of the base policy, on the same initial states."""
        return paired({name: self._first(name) for name in _PAIRED}, policy)

    def rows(self) -> list[dict[str, Any]]:
        """A row per policy."""
        rows = [row_of(BASE, self.base, self._first)]
        rows += [row_of(e.policy, e) for e in self.controls]
        if self.repeats > 1:
            rows.append(self._hindsight())
        rows += [row_of(e.policy, e) for e in (self.steered, self.sampled) if e is not None]
        return rows

    def episodes(self) -> Episodes:
        """Every policy of the table on every initial state, hindsight left out."""
        others = [e for e in (*self.controls, self.steered, self.sampled) if e is not None]
        return Episodes(
            seeds=self.base.seed + np.arange(self.base_success.size),
            starts=self._first("starts"),
            columns=self.base.columns,
            policies=(BASE, *(e.policy for e in others)),
            **{name: np.stack([self._first(name), *(getattr(e, name) for e in others)]) for name in MEASURES},
        )

    def print(self, console: Console) -> None:
        """The table, and what the steered policy does more than the base policy beside succeeding."""
        print_rows(self.rows(), console)
        if self.steered is not None:
            print_gains(self.gains(self.steered), console)

    def verdict(self) -> str:
        """One line."""
        episodes = self.base_success.size
        if self.steered is None:
            return f"base policy {self.base_success.mean():.0%} on {episodes} episodes"
        rate, base = self.steered.success_rate, self.base_success.mean()
        return f"steered {rate:.0%} against base {base:.0%}: {in_words(self.gain())}, on {episodes} episodes"

    def save(self, path: Path) -> None:
        """Write the numbers as JSON, and the episodes one by one beside them (``*_episodes.npz``).

        Raises:
            RunFailed: when they cannot be written.
        """
        data: dict[str, Any] = {
            "seed": self.base.seed,
            "repeats": self.repeats,
            "env_steps": self.env_steps,
            "trained_env_steps": self.trained,
            "rows": self.rows(),
        }
        if self.steered is not None:
            gains = self.gains(self.steered)
            data["paired"] = gains.pop("success")._asdict()
            data["paired_others"] = {name: gain._asdict() for name, gain in gains.items()}
        if self.sampled is not None:
            data["paired_sampled"] = self.gains(self.sampled)["success"]._asdict()
        write_json(path, data)
        self.episodes().save(episodes_path(path))

    def _first(self, measure: str) -> np.ndarray:
        """One measure of the base policy, ``(N, ...)``: its first noise seed per initial state."""
        return getattr(self.base, measure)[:: self.repeats]

    def _hindsight(self) -> dict[str, Any]:
        success, held, lengths = (
            getattr(self.base, name).reshape(-1, self.repeats) for name in ("success", "held", "lengths")
        )
        best = {
            "success": success.any(axis=1),
            "held": held.any(axis=1),
            "lengths": lengths.min(axis=1),
            "returns": self.base.returns.reshape(-1, self.repeats).max(axis=1),
            "jerk": np.empty(0),
        }
        row = row_of(f"best of {self.repeats} noises, in hindsight", self.base, best.__getitem__)
        return {**row, "decision_ms": None}


_PAIRED = {"success": "success", "held": "held", "returns": "return", "lengths": "length", "jerk": "jerk"}


def compare(
    base: FrozenPolicy,
    steered: SteeredPolicy | None,
    envs: VecEnv,
    *,
    episodes: int,
    seed: int,
    repeats: int = 1,
    controls: bool = True,
    console: Console | None = None,
) -> Comparison:
    """Play the initial states ``seed, seed + 1, ...`` with every policy.

    Args:
        base: the frozen policy.
        steered: the same with an actor, or None to look at the base policy and its controls only.
        envs: from ``make_vec_env`` with ``gamma=1``.
        episodes: number of initial states.
        seed: of the first one.
        repeats: noise seeds of the base policy per state, for best-of-N in hindsight.
        controls: whether zero noise, half the noise, and the actor with its own noise play too.
        console: shows progress.
    """

    def score(policy: FrozenPolicy, name: str, noise_scale: float = 1.0, repeats: int = 1) -> Evaluation:
        return evaluate(
            policy,
            envs,
            episodes=episodes,
            seed=seed,
            name=name,
            noise_scale=noise_scale,
            repeats=repeats,
            console=console,
        )

    return Comparison(
        base=score(base, "base", repeats=repeats),
        repeats=repeats,
        controls=(score(base, "zero noise", 0.0), score(base, "half the noise", 0.5)) if controls else (),
        steered=None if steered is None else score(steered, "steered", steered.acting_scale),
        # where it is drawn anyhow, there is nothing else to draw
        sampled=score(steered, "steered, sampled") if controls and steered and not steered.acting_scale else None,
    )


def print_probe(check: Probe, console: Console) -> None:
    """The steerability table and its verdict."""
    table = Table("steerability check", "")
    for name, value in check.rows():
        table.add_row(name, value)
    console.print(table)
    console.print(check.verdict())


def paired(first: Mapping[str, np.ndarray], second: Evaluation) -> dict[str, Paired]:
    """All measures of ``second`` against those of another policy on the same episodes."""
    rates = ("success", "held")
    tests = {name: paired_difference if name in rates else paired_means for name in _PAIRED}
    return {word: tests[name](first[name], getattr(second, name)) for name, word in _PAIRED.items()}


def measures(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What :func:`paired` takes first."""
    return {name: getattr(evaluation, name) for name in _PAIRED}


def in_words(gain: Paired) -> str:
    """``+22 points, 95 % interval +10 to +33, p = 0.0003``."""
    return (
        f"{100 * gain.difference:+.0f} points, 95 % interval {100 * gain.low:+.0f} to {100 * gain.high:+.0f}, "
        f"p = {gain.p:.1g}"
    )


def print_rows(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table of policies."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "policy": lambda row: row["policy"],
        "success": lambda row: f"{row['success_rate']:.0%}",
        "95 %": lambda row: f"[{100 * row['success_low']:.0f}, {100 * row['success_high']:.0f}]",
        "held": lambda row: f"{row['held_rate']:.0%}",
        "return": lambda row: f"{row['mean_return']:.3g}",
        "env steps": lambda row: f"{row['mean_length']:.0f}",
        "jerk": lambda row: "-" if row["jerk"] is None else f"{row['jerk']:.2g}",
        "ms per call": lambda row: "-" if row["decision_ms"] is None else f"{row['decision_ms']:.2g}",
    }
    # where an episode ends with success and earns 1 for it, two columns would only repeat the first
    for name, measure in (("held", "held_rate"), ("return", "mean_return")):
        if all(abs(row[measure] - row["success_rate"]) < 1e-9 for row in rows):
            del columns[name]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(show(row) for show in columns.values()))
    console.print(table)


def print_gains(gains: Mapping[str, Paired], console: Console) -> None:
    """Every difference but that of success, which the verdict names; held only where it is another one."""
    for name, gain in gains.items():
        if name == "success" or (name == "held" and gain == gains["success"]) or np.isnan(gain.difference):
            continue
        interval = f"95 % interval {gain.low:+.3g} to {gain.high:+.3g}"
        console.print(f"{name}: {gain.difference:+.3g}, {interval}, p = {gain.p:.1g}")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Numbers that strict readers take too: what is not finite becomes null."""
    write_text(path, json.dumps(_finite(data), indent=2) + "\n")


def row_of(name: str, evaluation: Evaluation, measure: Any = None) -> dict[str, Any]:
    """Plain values; ``measure`` gives the episodes of another choice of them."""
    get = measure or (lambda word: getattr(evaluation, word))
    success, held, jerk = get("success"), get("held"), mean_of(get("jerk"))
    low, high = wilson(int(success.sum()), success.size)
    held_low, held_high = wilson(int(held.sum()), held.size)
    return {
        "policy": name,
        "deterministic": evaluation.deterministic,
        "episodes": int(success.size),
        "success_rate": float(success.mean()),
        "success_low": low,
        "success_high": high,
        "held_rate": float(held.mean()),
        "held_low": held_low,
        "held_high": held_high,
        "mean_return": float(get("returns").mean()),
        "mean_length": float(get("lengths").mean()),
        "jerk": jerk if np.isfinite(jerk) else None,
        "decision_ms": 1000 * evaluation.decision_seconds if np.isfinite(evaluation.decision_seconds) else None,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
