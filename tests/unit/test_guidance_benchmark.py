"""The benchmark of guidance: how data of a maze are rewarded, which setting is chosen, and that results are kept."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dsrl.data import Trajectory
from dsrl.errors import DsrlError
from dsrl.files import read_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = ("guidance", "guidance_anchored", "guidance_mazes", "guidance_rows", "guidance_table", "mazes", "tasks")


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in OURS:
        sys.modules.pop(name, None)


def walk(*positions):
    at = np.array(positions, np.float32)[:, None]
    steps = len(at) - 1
    actions = np.arange(steps, dtype=np.float32)[:, None]
    return Trajectory({"state": at[:-1]}, {"state": at[1:]}, actions, np.zeros(steps), np.zeros(steps, bool))


def test_an_episode_is_cut_where_the_goal_of_the_task_is_reached():
    import mazes

    first, second = mazes._ended_at(walk(5, 3, 1, 0, 2, 3, 4), np.zeros(1), 1.0)
    assert first.actions.ravel().tolist() == [0, 1] and second.actions.ravel().tolist() == [4, 5]
    assert first.rewards.tolist() == [0, 1] and first.terminated.tolist() == [False, True] and first.success
    assert first.next_obs["state"].ravel().tolist() == [3, 1]
    assert not second.rewards.any() and not second.terminated.any() and not second.success
    assert mazes._ended_at(walk(0, 0.5, 0), np.zeros(1), 1.0) == [], "nothing happens outside"
    (whole,) = mazes._ended_at(walk(5, 4, 3), np.zeros(1), 1.0)
    assert whole.actions.ravel().tolist() == [0, 1]


def row(setting, seed, reported, choice, length=100, method="cfgrl"):
    return {
        "task": "large", "method": method, "seed": str(seed), "setting": setting, "success_rate": str(reported),
        "choice_success_rate": str(choice), "choice_mean_length": str(length), "mean_length": "90", "network_calls": "",
    }  # fmt: skip


def test_a_setting_is_chosen_on_what_is_not_reported():
    from guidance_table import chosen, markdown

    rows = [row("w 1", 0, 0.2, 0.9), row("w 1", 1, 0.4, 0.5), row("w 3", 0, 0.9, 0.6), row("w 3", 1, 1.0, 0.6)]
    assert chosen(rows) == "w 1"
    faster = [row("w 5", seed, 0.0, 0.7, length=50) for seed in (0, 1)]
    assert chosen([*rows, *faster]) == "w 5", "of equals the faster one"
    assert chosen([*rows, row("w 1", 2, 1.0, 1.0), *faster]) == "w 5", "by the seeds that all have"
    assert chosen([{**each, "choice_success_rate": ""} for each in rows]) is None
    table = markdown(rows)
    assert "| cfgrl | w 1 (chosen) | 30% [20, 40] | 90 | - | 2 |" in table
    assert "| cfgrl | w 3 | 95% [90, 100] |" in table


def test_a_run_is_kept_and_can_be_replaced(tmp_path):
    import guidance

    path = tmp_path / "guidance.csv"
    found = [{"setting": "w 1", "success_rate": 1 / 3}]
    guidance.merge(path, ("teleport", "cfgrl", 0), found, 1.6)
    guidance.merge(path, ("large", "cfgrl", 1), found * 2, 2.0)
    guidance.merge(path, ("teleport", "cfgrl", 0), found, 9.0)
    assert guidance.held(path) == {("large", "cfgrl", 1), ("teleport", "cfgrl", 0)}
    rows = read_rows(path)
    assert [each["task"] for each in rows] == ["large", "large", "teleport"] and rows[-1]["cpu_seconds"] == "9"
    assert rows[0]["success_rate"] == "0.3333" and rows[0]["network_calls"] == ""


def test_later_seeds_take_the_temperature_that_was_chosen(tmp_path):
    import guidance

    path = tmp_path / "guidance.csv"
    for seed in (0, 1, 2):
        with pytest.raises(DsrlError, match="must be swept"):
            guidance.swept(path, "large", "awr-flow")
        found = [
            row(f"1/beta {beta}", seed, 1, choice, method="awr-flow")
            for beta, choice in ((3, 0.4), (10, 0.6), (30, 0.5))
        ]
        guidance.merge(path, ("large", "awr-flow", seed), found, 1.0)
    assert guidance.swept(path, "large", "awr-flow") == 10.0


def test_seed_0_of_everything_comes_first():
    import guidance

    keys = guidance.planned(list(guidance.TASKS), None, None)
    assert len(set(keys)) == len(keys) and [key[2] for key in keys] == sorted(key[2] for key in keys)
    assert max(seed for task, _, seed in keys if task == "lift") == 2
    assert max(seed for task, _, seed in keys if task == "teleport") == 4
