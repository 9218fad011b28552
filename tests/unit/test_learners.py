"""The reach that succeeds most flies most, and what flew first counts first."""

import numpy as np
import pytest

from dsrl.learners import REACHES, Learners


def fly(learners: Learners, rates: dict[float, float], episodes: int, seed: int = 0) -> list[float]:
    """Episodes of these success rates, one after the other; returns who flew."""
    rng, flown = np.random.default_rng(seed), []
    for _ in range(episodes):
        flown.append(learners.take_off(0))
        learners.landed(0, float(rng.random() < rates[flown[-1]]))
    return flown


@pytest.mark.parametrize("best", REACHES)
def test_the_best_reach_flies_most(best: float):
    rates = {reach: 0.9 if reach == best else 0.2 for reach in REACHES}
    for seed in range(5):
        learners = Learners()
        flown = fly(learners, rates, 60, seed)
        assert max(REACHES, key=flown.count) == best and learners.best(6) == best


def test_one_that_had_failed_is_tried_again_and_may_be_the_best_later():
    learners = Learners()
    fly(learners, {1.0: 0.8, 1.5: 0.1}, 30)
    assert learners.best(6) == 1.0
    fly(learners, {1.0: 0.3, 1.5: 0.9}, 90)
    assert learners.best(6) == 1.5


def test_environments_that_fly_at_once_do_not_all_try_the_same():
    learners = Learners()
    assert {learners.take_off(env) for env in range(3)} == set(REACHES)


def test_only_the_last_episodes_count():
    learners = Learners(memory=4)
    fly(learners, dict.fromkeys(REACHES, 0.0), 9)
    assert sum(len(learners.results(reach)) for reach in REACHES) == 4 and learners.fresh == 9


def test_episodes_count_in_the_order_in_which_they_began():
    """Success ends an episode, so of those that are under way the good ones land first."""
    learners = Learners()
    flying = [learners.take_off(env) for env in range(3)]
    assert flying[0] == flying[2] != flying[1]
    learners.landed(2, 1.0)
    learners.landed(1, 1.0)
    assert learners.fresh == 0 and not learners.results(flying[2])
    learners.landed(0, 0.0)
    assert learners.fresh == 3
    assert learners.results(flying[0]) == [0.0, 1.0] and learners.results(flying[1]) == [1.0]


def test_short_episodes_have_no_advantage():
    chance, seen = 0.5, []
    rng = np.random.default_rng(0)
    for _ in range(300):
        learners = Learners()
        ends = {env: (0, 0.0) for env in range(4)}
        for env in ends:
            learners.take_off(env)
            success = float(rng.random() < chance)
            ends[env] = (1 if success else 20, success)
        while learners.fresh < 6:
            env = min(ends, key=lambda each: ends[each][0])
            now, result = ends[env]
            learners.landed(env, result)
            learners.take_off(env)
            success = float(rng.random() < chance)
            ends[env] = (now + (1 if success else 20), success)
        flown = [result for reach in REACHES for result in learners.results(reach)]
        seen.append(np.mean(flown))
    assert np.mean(seen) == pytest.approx(chance, abs=0.05)


def test_returns_are_compared_by_their_own_spread():
    learners = Learners()
    worth = {1.0: -300.0, 1.5: -250.0}
    rng = np.random.default_rng(0)
    for _ in range(40):
        reach = learners.take_off(0)
        learners.landed(0, worth[reach] + rng.normal())
    assert learners.best(6) == 1.5 and learners.best(100) is None


def test_what_nobody_flies_any_more_is_forgotten():
    learners = Learners()
    learners.take_off(0)
    learners.abandon()
    learners.take_off(0)
    learners.landed(0, 1.0)
    assert learners.fresh == 1
