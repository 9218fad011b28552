"""Evaluations that stay below a quarter of the env steps of training."""

import numpy as np
import pytest

from dsrl.eval_budget import EvaluationPlan, plan_evaluations


def run(plan: EvaluationPlan, length: int, step: int = 4) -> list[int]:
    """Train, with episodes of so many env steps; when the agent was evaluated."""
    plan.played(plan.episodes * length)  # the base policy
    scored: list[int] = []
    for trained in range(step, plan.total + step, step):
        first = not scored
        if plan.starts(trained) if first else plan.due(trained):
            plan.played(plan.episodes * length)
            scored.append(trained)
    if (not scored or scored[-1] < plan.total) and plan.ends(plan.total, bool(scored)):
        plan.played(plan.episodes * length)
        scored.append(plan.total)
    return scored


@pytest.mark.parametrize("total", [1_000, 8_000, 100_000])
@pytest.mark.parametrize("length", [10, 40, 80])
def test_by_default_a_quarter_is_never_exceeded_and_well_used(total, length):
    plan = plan_evaluations(total, 80, None, None)
    scored = run(plan, length)
    assert plan.spent <= total / 4 and plan.note() is None
    assert len(scored) >= 2 and max(np.diff([0, *scored])) <= 0.65 * total
    assert plan.spent >= 0.5 * total / 4 or length == 10


def test_episodes_that_grow_stay_within_it():
    """A walker that falls at first and does not in the end."""
    plan = plan_evaluations(20_000, 1_000, None, None)
    plan.played(plan.episodes * 50)
    for trained in range(0, 20_000, 8):
        if plan.due(trained):
            plan.played(plan.episodes * 1_000)
    assert plan.spent <= 5_000


def test_what_was_asked_for_is_obeyed_and_said():
    plan = plan_evaluations(8_000, 80, 1_000, 50)
    # the first one comes as soon as something is learned, the next not just after it
    assert run(plan, 45) == [4, *range(1_000, 8_001, 1_000)] and plan.episodes == 50
    assert plan.note() is not None and "--eval-interval" in plan.note()
    assert plan.spent == 10 * 50 * 45 and "22,500 env steps of evaluation, 281%" in plan.describe()


def test_the_flag_that_is_left_out_makes_room_for_the_other():
    plan = plan_evaluations(100_000, 80, 10_000, None)
    assert len(run(plan, 80)) == 11 and plan.spent <= 25_000 and plan.note() is None
    plan = plan_evaluations(100_000, 80, None, 20)
    assert len(run(plan, 80)) >= 5 and plan.episodes == 20 and plan.spent <= 25_000


def test_the_agent_is_evaluated_once_in_any_case():
    plan = plan_evaluations(100, 32, None, None)
    assert run(plan, 32) == [100] and plan.note() is not None
    assert run(plan_evaluations(300, 32, None, 40), 32) == [300]
