"""Who flew an episode gets the credit for it, and only enough of them decide."""

import math
from collections import deque

import numpy as np
import pytest

from dsrl.pilots import BASE, CHALLENGER, EXPLORE, INCUMBENT, Pilots


def fly(pilots: Pilots, result: float = 1.0) -> str:
    """One whole episode of a single environment after the warm-up; returns who flew it."""
    (pilot,) = pilots.start(1, warming_up=False)
    pilots.landed(0, result)
    return pilot


def after_warm_up(first: int = 0) -> Pilots:
    pilots = Pilots(first=first)
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


def test_an_episode_that_the_warm_up_began_is_played_by_the_base_policy_to_its_end():
    """The last ones to land are the failures; without them the base policy would look better than it is."""
    pilots = Pilots(first=0)
    assert pilots.start(2, warming_up=True) == [BASE, BASE]
    pilots.landed(0, 1.0)
    assert pilots.start(2, warming_up=False) == [BASE, BASE]
    pilots.landed(1, 0.0)
    assert pilots.start(2, warming_up=False) == [BASE, CHALLENGER], "the other environment still plays its second one"
    pilots.landed(0, 0.0)
    assert list(pilots.results[BASE]) == [1.0, 0.0, 0.0]


def test_the_first_incumbent_flies_first():
    pilots = after_warm_up(first=3)
    assert [fly(pilots) for _ in range(5)] == [INCUMBENT] * 3 + [CHALLENGER, INCUMBENT]


def test_half_of_the_episodes_try_the_challenger_until_it_has_flown_enough():
    pilots = after_warm_up()
    pilots.trials = (20, 20)
    flown = [fly(pilots) for _ in range(40)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {CHALLENGER: 20, INCUMBENT: 10, EXPLORE: 10}
    flown = [fly(pilots) for _ in range(40)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {INCUMBENT: 30, EXPLORE: 10}


def test_turns_are_taken_across_environments_and_a_pilot_keeps_its_episode():
    pilots = Pilots(first=0)
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


def test_only_the_last_results_count_but_all_of_the_base_policy():
    pilots = Pilots(window=2, first=3)
    pilots.start(1, warming_up=True)
    for result in (1.0, 0.0, 0.0):
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 1 / 3
    pilots.start(1, warming_up=False)
    for result in (0.0, 1.0, 0.0, 0.0):  # the first one ends what the warm-up began
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 1 / 4 and pilots.mean(INCUMBENT) == 0.0


def judged(challenger: list[float], incumbent: list[float], *, successions: int = 0) -> bool | None:
    pilots = Pilots(trust=2, trials=(3, 5))
    pilots.successions = successions
    pilots.results = {CHALLENGER: deque(challenger), INCUMBENT: deque(incumbent)}
    return pilots.verdict()


def test_nobody_is_judged_before_both_have_flown_enough():
    assert math.isnan(after_warm_up().mean(CHALLENGER)) and after_warm_up().verdict() is None
    assert judged([1.0] * 3, [0.0]) is None
    assert judged([1.0] * 2, [0.0] * 2) is None
    assert judged([1.0] * 3, [0.0] * 2) is True


def test_who_follows_an_actor_must_fly_more():
    assert judged([1.0] * 4, [0.0] * 2, successions=1) is None
    assert judged([1.0] * 5, [0.0] * 2, successions=1) is True


@pytest.mark.parametrize(("results", "verdict"), [([1.0, 1.0, 0.0], True), ([1.0, 0.0, 0.0], False)])
def test_as_good_as_the_candidates_is_good_enough(results: list[float], verdict: bool):
    assert judged(results, [1.0, 1.0, 0.0]) is verdict


def test_an_actor_gives_way_to_a_better_one_only():
    assert judged([1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0], successions=1) is False
    assert judged([1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0], successions=1) is True
    assert judged([1.0], [1.0, 1.0, 1.0], successions=1) is False, "nobody is better than always"


def test_a_challenger_that_cannot_win_any_more_is_dropped_at_once():
    assert judged([1.0, 0.0], [1.0, 1.0]) is False
    assert judged([1.0, 0.0], [1.0, 0.0]) is None
    assert judged([0.3], [10.0, 10.0]) is None, "a return has no upper end"


@pytest.mark.parametrize("succeeds", [True, False])
def test_the_next_challenger_begins_with_nothing(succeeds: bool):
    pilots = after_warm_up()
    for _ in range(6):
        (pilot,) = pilots.start(1, warming_up=False)
        pilots.landed(0, 1.0 if pilot == CHALLENGER else 0.5)
    pilots.next_challenger(succeeds=succeeds)
    assert CHALLENGER not in pilots.results and pilots.successions == succeeds
    assert pilots.mean(INCUMBENT) == (1.0 if succeeds else 0.5)


@pytest.mark.parametrize("succeeds", [True, False])
def test_what_another_challenger_has_begun_counts_for_nobody(succeeds: bool):
    pilots = Pilots(first=0)
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    assert pilots.start(3, warming_up=False) == [CHALLENGER, INCUMBENT, CHALLENGER]
    pilots.results[CHALLENGER] = deque([1.0])
    pilots.next_challenger(succeeds=succeeds)
    assert pilots.start(3, warming_up=False) == [EXPLORE, INCUMBENT, EXPLORE]


def test_short_episodes_have_no_advantage():
    """Success ends an episode, so of those that are under way the good ones land first."""
    chance, judged_after = 0.5, []
    rng = np.random.default_rng(0)
    for _ in range(300):
        pilots = Pilots(trust=0, trials=(6, 6))
        pilots.results[INCUMBENT] = deque([0.0])
        pilots.start(4, warming_up=True)
        pilots.start(4, warming_up=False)
        ends = {env: (0, 0.0) for env in range(4)}
        while pilots.verdict() is None:
            env = min(ends, key=lambda each: ends[each][0])
            now, result = ends[env]
            pilots.landed(env, result)
            success = float(rng.random() < chance)
            ends[env] = (now + (1 if success else 20), success)
        judged_after.append(pilots.mean(CHALLENGER))
    assert np.mean(judged_after) == pytest.approx(chance, abs=0.05)


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
        assert INCUMBENT not in pilots.results and not pilots.successions


def test_the_first_actor_must_also_match_the_base_policy():
    pilots = Pilots(trust=2, trials=(3, 3))
    pilots.results = {BASE: deque([1.0, 0.0]), INCUMBENT: deque([0.0] * 3), CHALLENGER: deque([1.0, 0.0, 0.0])}
    assert pilots.verdict() is False, "better than the candidates, not as good as the base policy"
    pilots.results[CHALLENGER] = deque([1.0, 1.0, 0.0])
    assert pilots.verdict() is True
    pilots.successions = 1
    pilots.results[INCUMBENT] = deque([0.0] * 3)
    pilots.results[CHALLENGER] = deque([1.0, 0.0, 0.0])
    assert pilots.verdict() is True, "later ones are compared with what is deployed, which already matched it"


def test_the_critics_of_few_episodes_are_not_trusted_unseen():
    pilots = Pilots(enough=2)
    for _ in range(2):
        assert not pilots.first_is_trusted()
        pilots.start(1, warming_up=True)
        pilots.landed(0, 1.0)
    assert pilots.first_is_trusted(), "these were enough"
    pilots.results[INCUMBENT] = deque([1.0, 1.0, 0.0, 1.0])
    assert not pilots.first_is_trusted(), "they have flown, and did worse than the base policy"
    pilots.results[INCUMBENT] = deque([1.0] * 4)
    assert pilots.first_is_trusted()
