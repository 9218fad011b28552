"""Intervals for success rates and for paired differences; closed forms and resampling, no scipy."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np

_Z95 = 1.959963984540054
_RESAMPLES, _AT_ONCE = 10_000, 500


class Paired(NamedTuple):
    """How much more one policy does than another on the same episodes."""

    difference: float
    low: float
    """of the 95 % interval"""
    high: float
    p: float
    """probability of a difference at least as large, were there none"""


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); ``(0, 1)`` without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_difference(first: np.ndarray, second: np.ndarray, z: float = _Z95) -> Paired:
    """How much better ``second`` does than ``first`` on the same episodes.

    Returns:
        The difference of the success rates, its 95 % interval (Bonett and Price 2012, the adjusted Wald interval for
        paired proportions) and the two-sided p-value of McNemar's exact test (a sum of binomial coefficients).

    Raises:
        ValueError: when the two do not have the same episodes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired episodes are needed, got {first.shape} and {second.shape}")
    trials = first.size
    gained = int(np.sum(~first.astype(bool) & second.astype(bool)))
    lost = int(np.sum(first.astype(bool) & ~second.astype(bool)))
    # one episode is added to each discordant cell
    plus, minus = (gained + 1) / (trials + 2), (lost + 1) / (trials + 2)
    half = z * sqrt((plus + minus - (plus - minus) ** 2) / (trials + 2))
    discordant = gained + lost
    tail = sum(comb(discordant, k) for k in range(min(gained, lost) + 1)) / 2**discordant
    centre = plus - minus
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired((gained - lost) / trials, low, high, min(1.0, 2 * tail))


def paired_means(first: np.ndarray, second: np.ndarray) -> Paired:
    """The same for a number per episode, such as a return; pairs with a NaN are left out.

    Returns:
        The mean difference, its 95 % bootstrap interval (percentiles over resampled episodes) and the two-sided p-value
        of the sign-flip permutation test. Both resample 10,000 times with a fixed seed, so the smallest p is 1e-4. All
        NaN when no pair is left.

    Raises:
        ValueError: when the two do not have the same episodes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired episodes are needed, got {first.shape} and {second.shape}")
    change = np.asarray(second, float) - np.asarray(first, float)
    change = change[np.isfinite(change)]
    if not change.size:
        return Paired(*[float("nan")] * 4)
    rng = np.random.default_rng(0)
    difference = float(change.mean())
    means, flipped = [], []
    for _ in range(_RESAMPLES // _AT_ONCE):
        rows = (_AT_ONCE, change.size)
        means.append(change[rng.integers(change.size, size=rows)].mean(axis=1))
        flipped.append(np.abs((change * rng.choice((-1.0, 1.0), size=rows)).mean(axis=1)))
    # not less than the least that differs by rounding
    extreme = int(np.sum(np.concatenate(flipped) >= abs(difference) * (1 - 1e-12)))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Paired(difference, float(low), float(high), (1 + extreme) / (1 + _RESAMPLES))


def lead(results: Sequence[float], over: Sequence[float]) -> float:
    """By how many standard errors the mean of ``results`` lies above that of ``over``; infinite over nothing.

    Of successes (0 or 1) by Agresti and Caffo (2000), one success and one failure added to either; else by Welch.
    """
    if not len(over):
        return float("inf")
    (mean, error), (other, other_error) = (estimate(each, len(each), [*results, *over]) for each in (results, over))
    return (mean - other) / max(float(np.hypot(error, other_error)), 1e-12)


def estimate(results: Sequence[float], count: int, among: Sequence[float]) -> tuple[float, float]:
    """The mean of results, and the standard error that it had if there were ``count`` of them.

    Of successes, one success and one failure added, where all ``among`` them are 0 or 1. Of returns, the mean and the
    spread of all ``among`` them stand in where these are too few.
    """
    if {*among} <= {0.0, 1.0}:
        rate = (sum(results) + 1) / (len(results) + 2)
        return rate, (rate * (1 - rate) / (count + 2)) ** 0.5
    mean = np.mean(results) if len(results) else np.mean(among)
    spread = np.std(results, ddof=1) if len(results) > 1 else np.std(among)
    return float(mean), float(spread) / max(count, 1) ** 0.5
