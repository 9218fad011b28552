"""What the guidance weight of a policy does: success and what else changes, at every weight on the same episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.cfgrl import Guided
from dsrl.evaluate import Evaluation, evaluate
from dsrl.files import write_text
from dsrl.plots import weight_curve
from dsrl.statistics import paired_difference

_AT_THE_EDGE = 1 - 1e-4


@dataclass(frozen=True)
class Chunks:
    """What the chunks of an evaluation look like."""

    clipped: float
    """share of the numbers that lie at the edge of the policy's box, or at or beyond the environment's limits"""
    spread: float
    """standard deviation over noise at the same observation, mean over observations and numbers, in action units"""
    jerk: float
    """mean square of the second differences along a chunk, in action units; NaN for chunks shorter than 3"""


@dataclass(frozen=True)
class WeightPoint:
    """One weight."""

    weight: float
    reported: Evaluation
    choice: Evaluation
    """on other initial states"""
    chunks: Chunks

    def row(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        low, high = self.reported.interval
        return {
            "weight": self.weight,
            "episodes": int(self.reported.success.size),
            "success_rate": self.reported.success_rate,
            "success_low": low,
            "success_high": high,
            "mean_return": float(self.reported.returns.mean()),
            "mean_length": float(self.reported.lengths.mean()),
            "choice_success_rate": self.choice.success_rate,
            "choice_mean_return": float(self.choice.returns.mean()),
            "clipped": self.chunks.clipped,
            "spread": self.chunks.spread,
            "jerk": None if np.isnan(self.chunks.jerk) else self.chunks.jerk,
        }


@dataclass(frozen=True)
class WeightCurve:
    """All weights, in order, on common initial states."""

    points: tuple[WeightPoint, ...]

    @property
    def recommended(self) -> WeightPoint:
        """Best on the other initial states: by success, then by return, then the smallest weight."""
        return max(self.points, key=lambda p: (p.choice.success_rate, float(p.choice.returns.mean()), -p.weight))

    def print(self, console: Console) -> None:
        """The table."""
        columns = ("weight", "success, 95 %", "other starts", "env steps", "clipped", "spread", "jerk")
        table = Table(*columns)
        for point in self.points:
            row = point.row()
            table.add_row(
                f"{point.weight:g}" + (" *" if point is self.recommended else ""),
                f"{row['success_rate']:.0%} [{100 * row['success_low']:.0f}, {100 * row['success_high']:.0f}]",
                f"{row['choice_success_rate']:.0%}",
                f"{row['mean_length']:.0f}",
                f"{row['clipped']:.1%}",
                f"{row['spread']:.3g}",
                "-" if row["jerk"] is None else f"{row['jerk']:.3g}",
            )
        console.print(table)

    def verdict(self) -> str:
        """One line."""
        best, first = self.recommended, self.points[0]
        seeds = f"the seeds from {best.choice.seed} on"
        words = f"recommended weight {best.weight:g}, chosen on {seeds}; on those reported {best.reported.describe()}"
        if best is first:
            return words
        difference, low, high, p = paired_difference(first.reported.success, best.reported.success)
        return (
            f"{words}, against {first.reported.success_rate:.0%} with {first.weight:g}: {100 * difference:+.0f} "
            f"points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f}, p = {p:.1g}"
        )

    def save(self, path: Path) -> None:
        """Write the numbers as JSON.

        Raises:
            RunFailed: when they cannot be written.
        """
        first = self.points[0]
        data = {
            "seed": first.reported.seed,
            "choice_seed": first.choice.seed,
            "recommended": self.recommended.weight,
            "rows": [point.row() for point in self.points],
        }
        write_text(path, json.dumps(data, indent=2) + "\n")

    def draw(self, path: Path, title: str) -> None:
        """Success against the weight.

        Raises:
            RunFailed: when the picture cannot be written.
        """
        weight_curve([point.row() for point in self.points], path, title, self.recommended.weight)


def guidance_curve(
    policy: Guided,
    envs: VecEnv,
    weights: Sequence[float],
    *,
    episodes: int,
    seed: int,
    choice_seed: int,
    console: Console | None = None,
) -> WeightCurve:
    """Play the initial states ``seed, seed + 1, ...`` with every weight, and as many others to choose one.

    Args:
        policy: any guided one; its own weight does not matter.
        envs: from ``make_vec_env`` with ``gamma=1``.
        weights: in the order of the table.
        episodes: per weight and set of initial states.
        seed: of the first initial state that is reported, and of the noise.
        choice_seed: of the first one that the recommended weight is chosen on.
        console: shows progress.

    Raises:
        DsrlError: for a negative weight, before anything is played.
    """
    guided = [(weight, policy.at_weight(weight)) for weight in weights]
    points = []
    for weight, each in guided:
        look = _Look(each, envs)
        name = f"weight {weight:g}"
        settings: dict[str, Any] = {"episodes": episodes, "console": console}
        reported = evaluate(each, envs, seed=seed, name=name, watch=look, **settings)
        choice = evaluate(each, envs, seed=choice_seed, name=f"{name}, to choose", **settings)
        points.append(WeightPoint(weight, reported, choice, look.chunks(seed)))
    return WeightCurve(tuple(points))


class _Look:
    """Watches an evaluation."""

    def __init__(self, policy: Guided, envs: VecEnv):
        assert isinstance(envs.action_space, Box)
        self.policy = policy
        limits = (envs.action_space.low, envs.action_space.high)
        self.low, self.high = (torch.as_tensor(limit, device=policy.device) for limit in limits)
        self.visited: list[Tensor] = []
        self.clipped: list[Tensor] = []
        self.jerks: list[Tensor] = []

    def __call__(self, cond: Tensor, noise: Tensor, chunk: Tensor) -> None:
        self.visited.append(cond)
        at_the_edge = (chunk <= self.low) | (chunk >= self.high)
        if (box := self.policy.base.box) is not None:
            at_the_edge |= self.policy.base.action_normalizer.normalize(chunk).abs() >= box * _AT_THE_EDGE
        self.clipped.append(at_the_edge.float().mean())
        self.jerks.append(chunk.diff(n=2, dim=1).square().mean())

    def chunks(self, seed: int, states: int = 64, samples: int = 16) -> Chunks:
        """The averages over all decisions, and samples at some of the observations."""
        generator = torch.Generator().manual_seed(seed)
        cond = torch.cat(self.visited)
        cond = cond[torch.randperm(len(cond), generator=generator)[:states].to(cond.device)]
        noise = torch.randn(samples, len(cond), *self.policy.spec.noise_shape, generator=generator).to(cond.device)
        made = torch.stack([self.policy.decode(cond, each) for each in noise])
        clipped, jerk = (float(torch.stack(values).mean()) for values in (self.clipped, self.jerks))
        return Chunks(clipped, float(made.std(dim=0).mean()), jerk)
