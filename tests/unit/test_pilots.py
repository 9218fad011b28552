"""Who flew an episode gets the credit for it, and only enough of them decide."""

import math

from dsrl.pilots import ACTOR, BASE, CANDIDATES, EXPLORE, Pilots


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
    assert pilots.start(2, warming_up=False) == [EXPLORE, ACTOR], "the other environment still plays its first one"


def test_the_pilots_fly_a_third_of_the_episodes_each():
    pilots = after_warm_up()
    flown = [fly(pilots) for _ in range(30)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {ACTOR: 10, CANDIDATES: 10, EXPLORE: 10}


def test_turns_are_taken_across_environments_and_a_pilot_keeps_its_episode():
    pilots = Pilots()
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    flying = pilots.start(3, warming_up=False)
    assert sorted(flying) == sorted([ACTOR, CANDIDATES, EXPLORE])
    assert pilots.start(3, warming_up=False) == flying
    pilots.landed(2, 1.0)
    assert pilots.start(3, warming_up=False)[:2] == flying[:2]
    assert list(pilots.results[flying[2]]) == [1.0]


def test_only_the_last_results_count():
    pilots = Pilots(window=2)
    pilots.start(1, warming_up=True)
    for result in (1.0, 0.0, 0.0):
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 0.0


def test_nobody_is_better_before_both_have_flown_enough():
    pilots = after_warm_up()
    assert math.isnan(pilots.mean(ACTOR)) and not pilots.better(ACTOR, CANDIDATES)
    while len(pilots.results.get(CANDIDATES, ())) < pilots.trust:
        assert not pilots.better(ACTOR, CANDIDATES) and not pilots.better(CANDIDATES, ACTOR)
        fly(pilots)
    assert pilots.better(ACTOR, CANDIDATES) and pilots.better(CANDIDATES, ACTOR), "as good is good enough"


def test_the_better_one_is_the_one_with_the_higher_mean():
    pilots = after_warm_up()
    for _ in range(24):
        (pilot,) = pilots.start(1, warming_up=False)
        pilots.landed(0, 1.0 if pilot == ACTOR else 0.5)
    assert pilots.better(ACTOR, CANDIDATES) and not pilots.better(CANDIDATES, ACTOR)
