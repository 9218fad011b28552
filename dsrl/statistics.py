"""Intervals for success rates and for paired differences."""

from __future__ import annotations

from math import comb, sqrt

import numpy as np

_Z95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); ``(0, 1)`` without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_difference(first: np.ndarray, second: np.ndarray, z: float = _Z95) -> tuple[float, float, float, float]:
    """How much better ``second`` does than ``first`` on the same episodes.

    Returns:
        ``(difference, low, high, p)``: the difference of the success rates, its 95 % interval (Bonett and Price 2012,
        the adjusted Wald interval for paired proportions) and the p-value of McNemar's exact test.

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
    return (gained - lost) / trials, max(-1.0, centre - half), min(1.0, centre + half), min(1.0, 2 * tail)
