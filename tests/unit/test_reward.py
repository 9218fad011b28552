from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dsrl.errors import DsrlError
from dsrl.wrappers.reward import RewardConvention


class Scripted(gymnasium.Env):
    """Reports a given success at every step, and a dense reward of 7."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, success: list[bool | None]) -> None:
        self.script = success

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.steps = iter(self.script)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        success = next(self.steps)
        info = {} if success is None else {"success": success}
        return np.zeros(1, np.float32), 7.0, False, False, info


def play(mode: str, success: list[bool | None]) -> list[tuple[float, bool]]:
    env = RewardConvention(Scripted(success), mode)
    env.reset()
    return [(float(reward), terminated) for _, reward, terminated, _, _ in (env.step(0) for _ in success)]


def test_success_pays_one_and_terminates():
    assert play("success", [False, False, True]) == [(0.0, False), (0.0, False), (1.0, True)]


def test_step_cost_runs_on_and_is_zero_only_while_success_holds():
    assert play("step-cost", [False, True, False]) == [(-1.0, False), (0.0, False), (-1.0, False)]


def test_dense_changes_nothing():
    assert play("dense", [False, True]) == [(7.0, False), (7.0, False)]
    assert play("dense", [None]) == [(7.0, False)]


@pytest.mark.parametrize("mode", ["success", "step-cost"])
def test_a_sparse_reward_needs_a_notion_of_success(mode):
    with pytest.raises(DsrlError, match="reports no success"):
        play(mode, [None])


def test_an_unknown_convention_names_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'step-cost'"):
        RewardConvention(Scripted([]), "stepcost")
