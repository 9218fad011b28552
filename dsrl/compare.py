"""Base policy, steered policy and the controls that need no learning, on the same initial states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from dsrl.evaluate import Evaluation, evaluate
from dsrl.files import write_text
from dsrl.policy import FrozenPolicy
from dsrl.probe import Probe
from dsrl.statistics import paired_difference, wilson
from dsrl.steered import SteeredPolicy


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

    @property
    def base_success(self) -> np.ndarray:
        """``(N,)``: the base policy, one noise seed per initial state."""
        return self.base.success.reshape(-1, self.repeats)[:, 0]

    def gain(self) -> tuple[float, float, float, float]:
        """``(difference, low, high, p)`` of the steered over the base policy."""
        if self.steered is None:
            raise ValueError("nothing was steered, so there is no gain")
        return paired_difference(self.base_success, self.steered.success)

    def rows(self) -> list[dict[str, Any]]:
        """A row per policy."""
        per_state = (self.base.success.reshape(-1, self.repeats), self.base.held.reshape(-1, self.repeats))
        first_length = self.base.lengths.reshape(-1, self.repeats)[:, 0]
        rows = [_row("base, N(0, I)", per_state[0][:, 0], per_state[1][:, 0], first_length)]
        rows += [_row(e.policy, e.success, e.held, e.lengths) for e in self.controls]
        if self.repeats > 1:
            shortest = self.base.lengths.reshape(-1, self.repeats).min(axis=1)
            name = f"best of {self.repeats} noises, in hindsight"
            rows.append(_row(name, per_state[0].any(axis=1), per_state[1].any(axis=1), shortest))
        rows += [_row(e.policy, e.success, e.held, e.lengths) for e in (self.steered, self.sampled) if e is not None]
        return rows

    def print(self, console: Console) -> None:
        """The table."""
        table = Table("policy", "success", "95 % interval", "held at the end", "env steps", "episodes")
        for row in self.rows():
            low, high = row["success_low"], row["success_high"]
            table.add_row(
                row["policy"],
                f"{row['success_rate']:.0%}",
                f"[{low:.0%}, {high:.0%}]",
                f"{row['held_rate']:.0%}",
                f"{row['mean_length']:.0f}",
                str(row["episodes"]),
            )
        console.print(table)

    def verdict(self) -> str:
        """One line."""
        episodes = self.base_success.size
        if self.steered is None:
            return f"base policy {self.base_success.mean():.0%} on {episodes} episodes"
        difference, low, high, p = self.gain()
        return (
            f"steered {self.steered.success_rate:.0%} against base {self.base_success.mean():.0%}: "
            f"{100 * difference:+.0f} points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f}, p = {p:.1g}, "
            f"on {episodes} episodes"
        )

    def save(self, path: Path) -> None:
        """Write the numbers as JSON.

        Raises:
            RunFailed: when they cannot be written.
        """
        data: dict[str, Any] = {"seed": self.base.seed, "rows": self.rows()}
        if self.steered is not None:
            data["paired"] = dict(zip(("difference", "low", "high", "p"), self.gain(), strict=True))
        write_text(path, json.dumps(data, indent=2) + "\n")


def compare(
    base: FrozenPolicy,
    steered: SteeredPolicy | None,
    envs: VecEnv,
    *,
    episodes: int,
    seed: int,
    repeats: int = 1,
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
        controls=(score(base, "zero noise", 0.0), score(base, "half the noise", 0.5)),
        steered=None if steered is None else score(steered, "steered", steered.acting_scale),
        # where it is drawn anyhow, there is nothing else to draw
        sampled=None if steered is None or steered.acting_scale else score(steered, "steered, sampled"),
    )


def print_probe(check: Probe, console: Console) -> None:
    """The steerability table and its verdict."""
    table = Table("steerability check", "")
    for name, value in check.rows():
        table.add_row(name, value)
    console.print(table)
    console.print(check.verdict())


def _row(name: str, success: np.ndarray, held: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(success.sum()), success.size)
    return {
        "policy": name,
        "episodes": int(success.size),
        "success_rate": float(success.mean()),
        "success_low": low,
        "success_high": high,
        "held_rate": float(held.mean()),
        "mean_length": float(lengths.mean()),
    }
