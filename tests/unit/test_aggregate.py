"""Several runs as one number."""

from itertools import product

import numpy as np
import pytest

from dsrl.aggregate import curve, estimate, interquartile_mean, probability_of_improvement

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (4, 2), (5, 3), (10, 7)])
def test_the_interquartile_mean_is_rliables(shape):
    stats = pytest.importorskip("scipy.stats")
    scores = RNG.random(shape)
    # rliable.metrics.aggregate_iqm
    assert interquartile_mean(scores.ravel()) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (8, 8)])
def test_the_probability_of_improvement_is_rliables(n, m):
    stats = pytest.importorskip("scipy.stats")
    first, second = RNG.integers(4, size=n) / 4, RNG.integers(4, size=m) / 4  # with ties
    # rliable.metrics.probability_of_improvement for one task
    expected = stats.mannwhitneyu(first, second, alternative="greater").statistic / (n * m)
    assert probability_of_improvement(first, second) == pytest.approx(expected, abs=1e-12)
    assert probability_of_improvement(first, first) == pytest.approx(0.5)


def test_the_bootstrap_resamples_the_runs_of_every_stratum_among_themselves():
    tasks = [np.array([0.1, 0.5, 0.9]), np.array([10.0, 20.0])]
    found = estimate(interquartile_mean, tasks, resamples=50_000)
    every = [
        interquartile_mean(np.r_[tasks[0][list(a)], tasks[1][list(b)]])
        for a in product(range(3), repeat=3)
        for b in product(range(2), repeat=2)
    ]
    # mean of 0.5, 0.9 and 10 once the lowest and the highest are cut
    assert found.value == pytest.approx(np.mean([0.5, 0.9, 10.0]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(np.tile(every, 500), (2.5, 97.5))), abs=0.05)


def test_one_run_has_no_interval():
    assert estimate(interquartile_mean, [np.array([0.7])]) == (0.7, 0.7, 0.7)
    better = estimate(probability_of_improvement, [np.array([0.8, 0.9])], [np.array([0.1, 0.2, 0.3])])
    assert better == (1, 1, 1)


def test_a_curve_covers_what_all_seeds_cover():
    seeds = [(np.array([0, 100, 200]), np.array([0.0, 0.5, 1.0])), (np.array([50, 150]), np.array([0.5, 0.5]))]
    grid, points = curve(seeds)
    assert grid.tolist() == [50, 100, 150]
    assert [p.value for p in points] == pytest.approx([0.375, 0.5, 0.625])
    assert all(p.low <= p.value <= p.high for p in points)
