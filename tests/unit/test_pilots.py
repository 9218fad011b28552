"""Who flew an episode gets the credit for it, and only enough of them decide."""

import math
from collections import deque

import pytest

from dsrl.pilots import BASE, CHALLENGER, EXPLORE, INCUMBENT, Pilots


def fly(pilots: Pilots, result: float = 1.0) -> str:
    """One whole episode of a single environment after the warm-up; returns who flew it."""
    (pilot,) = pilots.start(1, warming_up=False)
    pilots.landed(0, result)
    return pilot


def after_warm_up() -> Pilots:
    pilots = Pilots()
    pilots.start(1, warming_up=True)
    pilots.start(1, warming_up=False)
    pilots.landed(0, 0.0)
    return pilots


def test_the_warm_up_belongs_to_the_base_policy():
    pilots = Pilots()
    for result in (0.0, 1.0, 1.0):
        assert pilots.start(2, warming_up=True) == [BASE, BASE]
        pilots.landed(0, result)
        pilots.landed(1, result)
    assert list(pilots.results) == [BASE] and pilots.mean(BASE) == 2 / 3


def test_an_episode_that_the_warm_up_began_is_credited_to_no_pilot():
    pilots = Pilots()
    assert pilots.start(2, warming_up=True) == [BASE, BASE]
    assert pilots.start(2, warming_up=False) == [EXPLORE, EXPLORE], "it is played to its end by whoever explores"
    pilots.landed(1, 1.0)
    assert list(pilots.results) == [BASE]
    assert pilots.start(2, warming_up=False) == [EXPLORE, CHALLENGER], "the other environment still plays its first one"


def test_half_of_the_episodes_try_the_challenger():
    pilots = after_warm_up()
    flown = [fly(pilots) for _ in range(40)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {CHALLENGER: 20, INCUMBENT: 10, EXPLORE: 10}


def test_turns_are_taken_across_environments_and_a_pilot_keeps_its_episode():
    pilots = Pilots()
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    flying = pilots.start(3, warming_up=False)
    assert flying == [CHALLENGER, INCUMBENT, CHALLENGER]
    assert pilots.start(3, warming_up=False) == flying
    pilots.landed(2, 1.0)
    assert pilots.start(3, warming_up=False)[:2] == flying[:2]
    assert list(pilots.results[CHALLENGER]) == [1.0]


def test_only_the_last_results_count():
    pilots = Pilots(window=2)
    pilots.start(1, warming_up=True)
    for result in (1.0, 0.0, 0.0):
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 0.0


def judged(challenger: list[float], incumbent: list[float], *, successions: int = 0) -> bool:
    pilots = Pilots(trust=2, trials=(3, 5))
    pilots.successions = successions
    pilots.results = {CHALLENGER: deque(challenger), INCUMBENT: deque(incumbent)}
    return pilots.succession()


def test_nobody_gives_way_before_both_have_flown_enough():
    assert math.isnan(after_warm_up().mean(CHALLENGER)) and not after_warm_up().succession()
    assert not judged([1.0] * 3, [0.0])
    assert not judged([1.0] * 2, [0.0] * 2)
    assert judged([1.0] * 3, [0.0] * 2)


def test_who_follows_an_actor_must_have_flown_more():
    assert not judged([1.0] * 4, [0.0] * 2, successions=1)
    assert judged([1.0] * 5, [0.0] * 2, successions=1)


@pytest.mark.parametrize(("results", "gives_way"), [([1.0, 1.0, 0.0], True), ([1.0, 0.0, 0.0], False)])
def test_as_good_is_good_enough(results: list[float], gives_way: bool):
    assert judged(results, [1.0, 1.0, 0.0]) is gives_way


def test_what_the_challenger_did_long_ago_does_not_count():
    assert judged([0.0] * 5 + [1.0] * 5, [1.0] * 5)
    assert not judged([1.0] * 5 + [0.0] * 5, [1.0] * 5)


def test_the_successor_begins_with_the_results_that_it_earned():
    pilots = after_warm_up()
    for _ in range(6):
        (pilot,) = pilots.start(1, warming_up=False)
        pilots.landed(0, 1.0 if pilot == CHALLENGER else 0.5)
        assert pilots.mean(INCUMBENT) in (0.5, 1.0) or INCUMBENT not in pilots.results
    pilots.trials = (3, 3)
    assert pilots.succession() and pilots.successions == 1
    assert list(pilots.results[INCUMBENT]) == [1.0] * 3
    pilots.results[INCUMBENT].append(0.0)
    assert list(pilots.results[CHALLENGER]) == [1.0] * 3, "what it does from here on is its own"


def test_what_another_incumbent_has_begun_counts_for_nobody():
    pilots = Pilots(trust=1, trials=(1, 1))
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    assert pilots.start(3, warming_up=False) == [CHALLENGER, INCUMBENT, CHALLENGER]
    pilots.results |= {CHALLENGER: deque([0.0]), INCUMBENT: deque([1.0])}
    assert not pilots.succession()
    assert pilots.start(3, warming_up=False) == [CHALLENGER, INCUMBENT, CHALLENGER]
    pilots.results[CHALLENGER].append(1.0)
    assert pilots.succession()
    assert pilots.start(3, warming_up=False) == [CHALLENGER, EXPLORE, CHALLENGER]


@pytest.mark.parametrize(
    ("incumbent", "successions", "relapses"),
    [
        ([0.0] * 2 + [1.0] * 4, 1, False),
        ([0.0] * 4 + [1.0] * 2, 1, True),
        ([0.0] * 3 + [1.0] * 3, 1, False),
        ([0.0] * 5, 1, False),  # no more than it was chosen by
        ([0.0] * 9, 0, False),  # it is the first one
    ],
)
def test_an_actor_that_is_worse_than_the_base_policy_gives_way_again(
    incumbent: list[float], successions: int, relapses: bool
):
    pilots = Pilots(trust=2, trials=(3, 5))
    pilots.successions = successions
    pilots.results = {BASE: deque([0.0, 1.0]), INCUMBENT: deque(incumbent), CHALLENGER: deque([0.0] * 5)}
    assert pilots.relapse() is relapses
    if relapses:
        assert list(pilots.results) == [BASE] and not pilots.successions
