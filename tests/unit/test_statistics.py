"""How far one mean lies above another, in standard errors."""

import math

import pytest

from dsrl.statistics import estimate, lead


def test_lead_counts_standard_errors():
    assert lead([1.0], []) == math.inf
    # (3 + 1) / (4 + 2) - (1 + 1) / (4 + 2) over the root of the sum of p (1 - p) / 6
    assert lead([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]) == pytest.approx((1 / 3) / math.sqrt(2 * (2 / 9) / 6))
    # returns: means 4 and 1, variances of the mean 4 / 2 and 0
    assert lead([2.0, 6.0], [1.0, 1.0]) == pytest.approx(3 / 2)
    assert lead([2.0, 6.0], [4.0, 4.0]) == 0.0


def test_what_is_under_way_narrows_the_doubt_and_leaves_the_mean():
    mean, error = estimate([1.0, 0.0], 2, [1.0, 0.0])
    assert estimate([1.0, 0.0], 14, [1.0, 0.0]) == pytest.approx((mean, error / 2))
    assert estimate([], 0, []) == pytest.approx((0.5, math.sqrt(0.25 / 2)))


def test_too_few_returns_borrow_the_spread_of_all():
    assert estimate([], 0, [2.0, 6.0]) == (4.0, 2.0)
    assert estimate([6.0], 4, [2.0, 6.0]) == (6.0, 1.0)
    assert estimate([2.0, 6.0], 2, [2.0, 6.0, 50.0]) == pytest.approx((4.0, math.sqrt(8) / math.sqrt(2)))
