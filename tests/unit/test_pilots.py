"""Who flew an episode gets the credit for it, and only enough of them decide."""

from collections import deque
from itertools import pairwise

import numpy as np
import pytest

from dsrl.learners import REACHES
from dsrl.pilots import BASE, CANDIDATES, INCUMBENT, LEARNER, NOBODY, PROOF, Pilots


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
    assert pilots.start(2, warming_up=False) == [BASE, LEARNER], "the other environment still plays its second one"
    pilots.landed(0, 0.0)
    assert list(pilots.results[BASE]) == [1.0, 0.0, 0.0]


def test_the_candidates_fly_first():
    pilots = after_warm_up(first=3)
    assert [fly(pilots) for _ in range(5)] == [CANDIDATES] * 3 + [LEARNER, CANDIDATES]


def test_the_learner_flies_half_and_the_candidates_the_rest_until_an_actor_is_deployed():
    pilots = after_warm_up()
    flown = [fly(pilots) for _ in range(40)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {LEARNER: 20, CANDIDATES: 20}
    pilots.results[BASE] = deque([0.0] * 20)
    assert pilots.judge() is not None
    flown = [fly(pilots) for _ in range(40)]
    assert {pilot: flown.count(pilot) for pilot in flown} == {LEARNER: 20, CANDIDATES: 10, INCUMBENT: 10}


def test_turns_are_taken_across_environments_and_a_pilot_keeps_its_episode():
    pilots = Pilots(first=0)
    pilots.start(3, warming_up=True)
    pilots.start(3, warming_up=False)
    for env in range(3):
        pilots.landed(env, 0.0)
    flying, reaches = pilots.start(3, warming_up=False), pilots.reaches
    assert flying == [LEARNER, CANDIDATES, LEARNER]
    assert pilots.start(3, warming_up=False) == flying and pilots.reaches == reaches
    pilots.landed(1, 1.0)
    assert pilots.start(3, warming_up=False)[::2] == flying[::2] and pilots.reaches[::2] == reaches[::2]
    assert list(pilots.results[CANDIDATES]) == [1.0]


def test_only_the_learner_reaches_further():
    pilots = Pilots(first=0)
    pilots.start(1, warming_up=True)
    pilots.start(1, warming_up=False)
    assert pilots.reaches == [1.0]
    flown = set()
    for _ in range(40):
        (pilot,), (reach,) = pilots.start(1, warming_up=False), pilots.reaches
        flown.add((pilot, reach))
        pilots.landed(0, 0.0)
    assert {reach for pilot, reach in flown if pilot == LEARNER} == set(REACHES)
    assert {reach for pilot, reach in flown if pilot != LEARNER} == {1.0}


def test_only_the_last_results_count_but_all_of_the_base_policy():
    pilots = Pilots(window=2, first=3)
    pilots.start(1, warming_up=True)
    for result in (1.0, 0.0, 0.0):
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 1 / 3
    pilots.start(1, warming_up=False)
    for result in (0.0, 1.0, 0.0, 0.0):  # the first one ends what the warm-up began
        pilots.landed(0, result)
    assert pilots.mean(BASE) == 1 / 4 and pilots.mean(CANDIDATES) == 0.0


def judged(
    learner: list[float], candidates: list[float], *, base: tuple[float, ...] = (), reach: float = 1.0
) -> float | None:
    pilots = Pilots(trust=2, trial=3, round_size=3)
    teach(pilots, learner, reach)
    pilots.results = {CANDIDATES: deque(candidates), BASE: deque(base)}
    return pilots.judge()


def teach(pilots: Pilots, results: list[float], reach: float = 1.0) -> None:
    flown = [[reach, result] for result in results]
    pilots.learners.restore({"flown": flown, "under_way": [], "fresh": len(flown)})


def test_nobody_is_judged_before_both_have_flown_enough():
    assert after_warm_up().judge() is None and "learner_x1" not in after_warm_up().means()
    assert judged([1.0] * 3, [0.0]) is None
    assert judged([1.0] * 2, [0.0] * 2) is None
    assert judged([1.0] * 3, [0.0] * 2) == 1.0
    assert judged([1.0] * 3, [0.0] * 2, reach=1.5) == 1.5


def challenged(learner: list[float], incumbent: list[float], *, proof: list[float]) -> float | None:
    """An actor that was deployed after that proof, and has flown since."""
    pilots = Pilots(trust=2, trial=3, round_size=3)
    teach(pilots, learner)
    pilots.successions = 1
    # the candidates' failures no longer matter
    pilots.results = {CANDIDATES: deque([0.0] * 9), PROOF: deque(proof), INCUMBENT: deque(incumbent)}
    return pilots.judge()


@pytest.mark.parametrize(
    ("results", "defended", "succeeds"),
    [
        ([1.0, 1.0, 0.0], [1.0, 1.0, 0.0], True),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0], True),
        ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], False),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 0.0], False),
        ([1.0, 0.0, 0.0] * 2, [1.0, 1.0, 0.0] * 2, False),
        ([1.0] * 3, [1.0] * 9, False),  # so few say less
    ],
)
def test_who_is_no_worse_than_the_incumbent_succeeds(results: list[float], defended: list[float], succeeds: bool):
    assert (judged(results, defended) == 1.0) is succeeds
    assert (challenged(results, defended[:2], proof=defended[2:]) == 1.0) is succeeds


def test_a_learner_that_gets_worse_does_not_drag_along_what_is_deployed():
    """From 90 to 50 % within 60 episodes, judged every two: each step down is small."""
    rng, deployed = np.random.default_rng(0), []
    for _ in range(100):
        pilots, flown = Pilots(), [float(result) for result in rng.random(24) < 0.9]
        pilots.results = {BASE: deque([1.0] * 8 + [0.0] * 12), CANDIDATES: deque([1.0, 0.0] * 4)}
        teach(pilots, flown)
        assert pilots.judge() is not None
        rate = 0.9
        for now in np.repeat(np.linspace(0.9, 0.5, 30), 2):
            flown = [*flown, float(rng.random() < now)][-24:]
            teach(pilots, flown)
            pilots.results[INCUMBENT].append(float(rng.random() < rate))
            rate = now if pilots.judge() is not None else rate
        deployed.append(rate)
    assert np.mean(deployed) > 0.75


def test_a_lead_over_the_base_policy_that_may_be_chance_is_not_enough():
    base, candidates = (1.0, 0.0) * 10, [1.0, 0.0]
    assert judged([1.0, 1.0, 0.0], candidates, base=base) is None
    assert judged([1.0] * 6, candidates, base=base) == 1.0
    assert judged([1.0, 1.0, 0.0] * 3, candidates, base=base) is None
    assert judged([1.0, 1.0, 1.0, 0.0] * 3, candidates, base=base) == 1.0


def test_it_is_judged_round_after_round_by_its_last_episodes():
    pilots = Pilots(trust=2, trial=3, round_size=2, first=0)
    pilots.results = {CANDIDATES: deque([1.0, 0.0]), BASE: deque([0.0] * 4)}
    pilots.TURNS = (LEARNER,)
    pilots.start(1, warming_up=False)
    pilots.landed(0, 0.0)
    verdicts = []
    for result in (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        pilots.learners.memory = 4
        pilots.landed(0, result)
        verdicts.append(pilots.judge() is not None)
    # the reaches share the episodes; the one that succeeds flies on
    assert not any(verdicts[:4]) and any(verdicts[4:])
    assert not any(now and after for now, after in pairwise(verdicts)), "a round lasts two episodes"


def test_a_bad_actor_seldom_passes_even_where_the_base_policy_was_unlucky():
    """Its warm-up succeeded 4 times of 24, by chance; the actor succeeds in a fifth of its episodes."""
    rng, passed = np.random.default_rng(0), []
    for _ in range(400):
        pilots = Pilots()
        pilots.results = {BASE: deque([1.0] * 4 + [0.0] * 20), CANDIDATES: deque([1.0, 0.0, 0.0, 0.0])}
        teach(pilots, [float(result) for result in rng.random(12) < 0.2])
        passed.append(pilots.judge() is not None)
    assert np.mean(passed) < 0.1


def test_who_succeeds_brings_the_proof_that_is_kept_apart():
    pilots = Pilots(first=0)
    pilots.start(4, warming_up=True)
    pilots.start(4, warming_up=False)
    for env in range(4):
        pilots.landed(env, 0.0)
    assert pilots.start(4, warming_up=False) == [LEARNER, CANDIDATES, LEARNER, CANDIDATES]
    teach(pilots, [1.0] * 6)
    pilots.results[CANDIDATES] = deque([0.5] * 4)
    assert pilots.judge() == 1.0
    assert list(pilots.results[PROOF]) == [1.0] * 6 and list(pilots.results[CANDIDATES]) == [0.5] * 4
    assert not pilots.results[INCUMBENT], "what flatters it is not its record"
    assert pilots.start(4, warming_up=False) == [LEARNER, CANDIDATES, LEARNER, CANDIDATES]
    pilots.landed(1, 1.0)
    assert list(pilots.results[CANDIDATES]) == [0.5] * 4 + [1.0], "the candidates are who they were"


def test_what_one_incumbent_has_begun_and_the_next_one_ends_counts_for_nobody():
    pilots = after_warm_up()
    pilots.successions, pilots.results[INCUMBENT], pilots.results[PROOF] = 1, deque([1.0] * 4), deque([1.0] * 6)
    while fly(pilots) != CANDIDATES:
        pass
    fly(pilots)
    assert pilots.start(1, warming_up=False) == [INCUMBENT]
    teach(pilots, [1.0] * 12)
    assert pilots.judge() == 1.0
    assert pilots.start(1, warming_up=False) == [NOBODY]
    pilots.landed(0, 1.0)
    assert not pilots.results[INCUMBENT]
    assert pilots.learners.results(1.0) == [1.0] * 12, "the actor learns on, and so do its last results count on"


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
    pilots.results = {BASE: deque([0.0, 1.0] * 12), CANDIDATES: deque([1.0] * 2)}
    pilots.results |= {PROOF: deque([1.0] * 6), INCUMBENT: deque(later)}
    assert pilots.incumbent == (INCUMBENT if successions else CANDIDATES)
    assert pilots.relapse() is relapses
    if relapses:
        assert pilots.incumbent == CANDIDATES and list(pilots.results[CANDIDATES]) == [1.0] * 2
        assert INCUMBENT not in pilots.results and PROOF not in pilots.results


def test_the_proof_of_an_incumbent_counts_when_it_is_challenged():
    assert challenged([1.0, 0.0, 0.0], [0.0], proof=[1.0] * 3) is None
    assert challenged([1.0, 0.0, 0.0], [0.0] * 9, proof=[1.0] * 3) == 1.0


def test_the_critics_of_few_episodes_are_not_trusted_unseen():
    pilots = Pilots(enough=2)
    for _ in range(2):
        assert not pilots.first_is_trusted()
        pilots.start(1, warming_up=True)
        pilots.landed(0, 1.0)
    assert pilots.first_is_trusted(), "these were enough"
    pilots.results[CANDIDATES] = deque([1.0, 1.0, 0.0, 1.0])
    assert not pilots.first_is_trusted(), "they have flown, and did worse than the base policy"
    pilots.results[CANDIDATES] = deque([1.0] * 4)
    assert pilots.first_is_trusted()
