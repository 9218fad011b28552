"""Who flew an episode gets the credit for it, and only enough of them decide."""

import math
from collections import deque

import numpy as np
import pytest

from dsrl.pilots import BASE, CHALLENGER, EXPLORE, FIRST, INCUMBENT, PROOF, Pilots, lead


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


def judged(
    challenger: list[float], incumbent: list[float], *, base: tuple[float, ...] = (), successions: int = 0
) -> bool | None:
    pilots = Pilots(trust=2, trials=(3, 5, 8))
    pilots.successions = successions
    pilots.results = {CHALLENGER: deque(challenger), INCUMBENT: deque(incumbent), BASE: deque(base)}
    return pilots.verdict()


def test_nobody_is_judged_before_both_have_flown_enough():
    assert math.isnan(after_warm_up().mean(CHALLENGER)) and after_warm_up().verdict() is None
    assert judged([1.0] * 3, [0.0]) is None
    assert judged([1.0] * 2, [0.0] * 2) is None
    assert judged([1.0] * 3, [0.0] * 2) is True


def test_few_episodes_replace_an_actor_beyond_chance_only():
    assert judged([1.0] * 3, [0.0] * 4, successions=1) is True
    assert judged([1.0] * 3, [0.0, 1.0, 1.0], successions=1) is None
    assert judged([1.0] * 5, [0.0, 1.0, 1.0], successions=1) is True
    assert judged([1.0, 1.0, 0.0], [0.0, 1.0, 1.0], successions=1) is False, "as good is not good enough"


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


def test_a_lead_over_the_base_policy_that_may_be_chance_takes_more_episodes():
    base, candidates = (1.0, 0.0) * 10, [1.0, 0.0]
    assert judged([1.0, 1.0, 1.0], candidates, base=base) is True
    assert judged([1.0, 1.0, 0.0], candidates, base=base) is None
    assert judged([1.0, 1.0, 0.0, 1.0, 0.0], candidates, base=base) is None
    assert judged([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0], candidates, base=base) is True
    assert judged([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0], candidates, base=base) is False, "and no more than that"


@pytest.mark.parametrize("n_envs", [1, 4])
def test_a_challenger_in_doubt_flies_on(n_envs: int):
    pilots = Pilots(trials=(3, 5, 8), first=2)
    pilots.start(n_envs, warming_up=True)
    for now in range(16):
        pilots.landed(now % n_envs, float(now % 4 > 0))
    flown = []
    while pilots.verdict() is None:
        for env, pilot in enumerate(pilots.start(n_envs, warming_up=False)):
            flown.append(pilot)
            # two of three, which is no more than the base policy may have
            pilots.landed(env, float(flown.count(CHALLENGER) % 3 != 1 and pilot == CHALLENGER))
            assert len(flown) < 100
    assert len(pilots.results[CHALLENGER]) == 8 and not pilots.verdict()


def test_a_bad_actor_seldom_passes_even_where_the_base_policy_was_unlucky():
    """Its warm-up succeeded 4 times of 24, by chance; the actor succeeds in a fifth of its episodes."""
    rng, passed = np.random.default_rng(0), []
    for _ in range(400):
        pilots = Pilots()
        pilots.results = {BASE: deque([1.0] * 4 + [0.0] * 20), INCUMBENT: deque([1.0, 0.0, 0.0, 0.0])}
        while pilots.verdict() is None:
            pilots.results.setdefault(CHALLENGER, deque()).append(float(rng.random() < 0.2))
        passed.append(pilots.verdict())
    assert np.mean(passed) < 0.25


def test_lead_counts_standard_errors():
    assert lead([1.0], []) == math.inf
    # (3 + 1) / (4 + 2) - (1 + 1) / (4 + 2) over the root of the sum of p (1 - p) / 6
    assert lead([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]) == pytest.approx((1 / 3) / math.sqrt(2 * (2 / 9) / 6))
    # returns: means 4 and 1, variances of the mean 4 / 2 and 0
    assert lead([2.0, 6.0], [1.0, 1.0]) == pytest.approx(3 / 2)
    assert lead([2.0, 6.0], [4.0, 4.0]) == 0.0


def test_a_challenger_that_fails_leaves_the_incumbent_its_results():
    pilots = after_warm_up()
    for _ in range(6):
        (pilot,) = pilots.start(1, warming_up=False)
        pilots.landed(0, 1.0 if pilot == CHALLENGER else 0.5)
    pilots.next_challenger(succeeds=False)
    assert CHALLENGER not in pilots.results and pilots.successions == 0
    assert pilots.mean(INCUMBENT) == 0.5


def test_a_challenger_that_succeeds_flies_first_and_its_trial_is_kept_apart():
    pilots = after_warm_up(first=2)
    for _ in range(8):
        (pilot,) = pilots.start(1, warming_up=False)
        pilots.landed(0, 1.0 if pilot == CHALLENGER else 0.5)
    pilots.next_challenger(succeeds=True)
    assert CHALLENGER not in pilots.results and pilots.successions == 1
    assert set(pilots.results[PROOF]) == {1.0} and set(pilots.results[FIRST]) == {0.5}
    assert not pilots.results[INCUMBENT], "what flatters it is not its record"
    # the episode under way was the one of whoever it replaces
    assert [fly(pilots) for _ in range(3)] == [EXPLORE, INCUMBENT, INCUMBENT]


@pytest.mark.parametrize("succeeds", [True, False])
def test_what_one_has_begun_and_another_ends_counts_for_nobody(succeeds: bool):
    pilots = Pilots(first=0)
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    assert pilots.start(3, warming_up=False) == [CHALLENGER, INCUMBENT, CHALLENGER]
    pilots.results |= {CHALLENGER: deque([1.0]), INCUMBENT: deque([1.0])}
    pilots.next_challenger(succeeds=succeeds)
    assert pilots.start(3, warming_up=False) == [EXPLORE, EXPLORE if succeeds else INCUMBENT, EXPLORE]


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
    ("later", "successions", "relapses"),
    [
        ([0.0] * 3, 1, False),  # too few
        ([0.0] * 4, 1, True),
        ([0.0] * 5 + [1.0] * 2, 1, True),
        ([0.0] * 3 + [1.0] * 2, 1, False),
        ([0.0] * 3 + [1.0] * 4, 1, False),
        ([0.0] * 9, 0, False),  # it is the first one
    ],
)
def test_an_actor_that_flies_worse_than_the_base_policy_gives_way_again(
    later: list[float], successions: int, relapses: bool
):
    pilots = Pilots()
    pilots.successions = successions
    pilots.results = {BASE: deque([0.0, 1.0] * 12), INCUMBENT: deque(later)}
    pilots.results |= {PROOF: deque([1.0] * 6), FIRST: deque([1.0] * 2)}
    assert pilots.relapse() is relapses
    if relapses:
        assert list(pilots.results[INCUMBENT]) == [1.0] * 2 and not pilots.successions
        assert FIRST not in pilots.results and PROOF not in pilots.results


def test_the_trial_of_an_incumbent_counts_when_it_is_challenged():
    pilots = Pilots(trust=2, trials=(2, 3))
    pilots.successions = 1
    pilots.results = {PROOF: deque([1.0] * 3), INCUMBENT: deque([0.0]), CHALLENGER: deque([1.0, 1.0, 0.0])}
    assert pilots.verdict() is False
    pilots.results[INCUMBENT].append(0.0)
    assert pilots.verdict() is True


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
