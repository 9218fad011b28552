"""Several runs as one number: interquartile mean, probability of improvement, intervals (arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2_000


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """``(..., N)`` -> ``(...)``: the mean without the lowest and the highest quarter (rounded down) of the scores."""
    ordered = np.sort(np.asarray(scores, float), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(..., N), (..., M)`` -> ``(...)``: how often a run of ``first`` beats one of ``second``; a tie counts half."""
    a, b = np.asarray(first, float)[..., :, None], np.asarray(second, float)[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1))


def estimate(
    statistic: Callable[..., np.ndarray], *groups: Sequence[np.ndarray], resamples: int = _RESAMPLES
) -> Estimate:
    """A statistic with its stratified bootstrap interval: percentiles over resampled runs.

    Args:
        statistic: of arrays ``(..., N)``, along the last axis, one for each group.
        groups: of each, the strata (tasks, for one) as arrays of N runs; the runs of every stratum are resampled among
            themselves, and strata are put side by side before the statistic is taken.
        resamples: of the bootstrap, with a fixed seed.
    """
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([s[rng.integers(len(s), size=(resamples, len(s)))] for s in map(np.asarray, strata)], axis=1)
        for strata in groups
    ]
    low, high = np.percentile(statistic(*drawn), (2.5, 97.5))
    return Estimate(float(statistic(*(np.concatenate([*strata]) for strata in groups))), float(low), float(high))


def curve(seeds: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[Estimate]]:
    """Several seeds of a method, ``(env steps, scores)`` each, as one curve with intervals.

    Seeds are evaluated at slightly different env steps: they are interpolated on the grid of all of them, where all
    have values.
    """
    first, last = max(steps[0] for steps, _ in seeds), min(steps[-1] for steps, _ in seeds)
    grid = np.unique(np.concatenate([steps for steps, _ in seeds]))
    grid = grid[(grid >= first) & (grid <= last)]
    scores = np.stack([np.interp(grid, steps, values) for steps, values in seeds], axis=1)
    return grid, [estimate(interquartile_mean, [row]) for row in scores]
