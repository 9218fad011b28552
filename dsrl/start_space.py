"""Where among the initial states a policy fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 4
_SHUFFLES = 200
_THE_SAME = 0.8
"""two coordinates that correlate more than that tell the same story"""


@dataclass(frozen=True)
class Telling:
    """The two coordinates of the first observation that say most about success."""

    columns: tuple[int, ...]
    """one, where there is no second"""
    share: float
    """of the variance of success that the quarters of the first explain"""
    p: float
    """how often shuffled outcomes would let some coordinate explain as much"""


def telling_coordinates(starts: np.ndarray, outcomes: Sequence[np.ndarray]) -> Telling | None:
    """Look for the coordinates whose quarters differ most in success, for any of the policies.

    Args:
        starts: ``(N, D)`` first observations.
        outcomes: ``(N,)`` bool of each policy.

    Returns:
        None when nothing varies: one start, no coordinate, or no policy that both succeeds and fails.
    """
    varied = [np.asarray(o, float) for o in outcomes if 0 < np.mean(o) < 1]
    moving = np.flatnonzero(np.ptp(starts, axis=0) > 1e-6) if len(starts) > _BINS else np.empty(0, int)
    if not varied or not len(moving):
        return None
    member = _quarters(starts[:, moving])
    scores = np.max([_explained(member, o[None])[0] for o in varied], axis=0)
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(len(starts)), (_SHUFFLES, 1)), axis=1)
    shuffled = np.max([_explained(member, o[orders]).max(axis=1) for o in varied], axis=0)
    first = int(scores.argmax())
    p = (1 + int(np.sum(shuffled >= scores[first]))) / (1 + _SHUFFLES)
    correlation = np.abs(np.corrcoef(starts[:, moving].T).reshape(len(moving), -1))[first]
    others = [i for i in np.argsort(-scores, kind="stable") if correlation[i] < _THE_SAME]
    columns = (first, *others[:1])
    return Telling(tuple(int(moving[i]) for i in columns), float(scores[first]), p)


def worst_quarter(values: np.ndarray, success: np.ndarray) -> tuple[float, float, int, int, int, int]:
    """Of one coordinate: ``(low, high, failures, episodes, failures elsewhere, episodes elsewhere)``."""
    member = _quarters(values[:, None])[0]
    failed = ~np.asarray(success, bool)
    rates = [failed[inside].mean() if inside.any() else -1.0 for inside in member]
    inside = member[int(np.argmax(rates))]
    counts = [int(part) for part in (failed[inside].sum(), inside.sum(), failed[~inside].sum(), (~inside).sum())]
    return float(values[inside].min()), float(values[inside].max()), counts[0], counts[1], counts[2], counts[3]


def _quarters(values: np.ndarray) -> np.ndarray:
    """``(N, D)`` -> ``(D, 4, N)`` bool: between which quartiles a value lies."""
    edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1], axis=0)
    which = (values[None] > edges[:, None]).sum(axis=0).T
    return which[:, None] == np.arange(_BINS)[None, :, None]


def _explained(member: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """``(D, 4, N), (K, N)`` -> ``(K, D)``: variance between the quarters over all of it."""
    counts = member.sum(axis=2)
    sums = np.einsum("dbn,kn->kdb", member.astype(float), outcomes)
    means = sums / np.maximum(counts, 1)
    between = (counts * np.square(means - outcomes.mean(axis=1)[:, None, None])).sum(axis=2) / member.shape[2]
    return between / outcomes.var(axis=1)[:, None]
