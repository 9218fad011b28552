"""What a chunk is as one environment step."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

from dsrl.wrappers import ActionChunk, ObservationHistory, SeededEpisodes


class Counter(gym.Env):
    """Counts its steps in its observation; reward 1 per step; success while the count is in ``success``."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, ends_at: int = 10**9, success: tuple[int, ...] = ()):
        self.ends_at, self.success = ends_at, success
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.count, self.actions = 0, []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        info = {"success": self.count in self.success}
        return np.array([self.count], np.float32), 1.0, self.count >= self.ends_at, False, info


def play(env: gym.Env, decisions: int, n_action_steps: int = 4):
    env.reset(seed=0)
    for _ in range(decisions):
        result = env.step(np.zeros((n_action_steps, 2), np.float32))
    return result


def test_a_chunk_is_played_whole():
    env = Counter()
    obs, reward, terminated, truncated, info = play(ActionChunk(env, 4), 1)
    assert (obs, reward, terminated, truncated, info["chunk_length"]) == (np.array([4]), 4.0, False, False, 4)


def test_a_chunk_stops_at_termination_with_the_true_last_observation():
    obs, reward, terminated, truncated, info = play(ActionChunk(Counter(ends_at=6), 4), 2)
    assert obs == 6 and reward == 2 and terminated and not truncated and info["chunk_length"] == 2


def test_a_chunk_stops_at_the_time_limit_which_stays_a_truncation():
    obs, _, terminated, truncated, info = play(ActionChunk(TimeLimit(Counter(), 7), 4), 2)
    assert obs == 7 and truncated and not terminated and info["chunk_length"] == 3


def test_rewards_inside_a_chunk_are_discounted_per_env_step():
    _, reward, *_ = play(ActionChunk(Counter(), 4, gamma=0.5), 1)
    assert reward == pytest.approx(1 + 0.5 + 0.25 + 0.125)


def test_success_inside_a_chunk_counts_and_held_is_the_last_step():
    env = ActionChunk(TimeLimit(Counter(success=(2,)), 8), 4)
    *_, first = play(env, 1)
    *_, second = play(env, 2)
    assert first["success"] and "is_success" not in first
    assert second["is_success"] and not second["success"] and not second["success_held"]
    *_, info = play(ActionChunk(TimeLimit(Counter(success=(8,)), 8), 4), 2)
    assert info["is_success"] and info["success_held"]


def test_success_does_not_outlive_its_episode():
    env = ActionChunk(TimeLimit(Counter(success=(2,)), 8), 4)
    play(env, 2)
    env.unwrapped.success = ()
    *_, info = play(env, 2)
    assert not info["is_success"]


def test_actions_are_clipped_to_the_limits():
    env = Counter()
    chunked = ActionChunk(env, 2)
    chunked.reset()
    chunked.step(np.full((2, 2), 3.0, np.float32))
    assert all((action == 1).all() for action in env.actions)


def test_history_is_stacked_at_every_env_step_oldest_first():
    env = ActionChunk(ObservationHistory(Counter(), 3), 4)
    obs, _ = env.reset(seed=0)
    assert obs.ravel().tolist() == [0, 0, 0]
    obs, *_ = env.step(np.zeros((4, 2), np.float32))
    assert obs.ravel().tolist() == [2, 3, 4]


def test_gymnasium_accepts_the_chunked_environment():
    check_env(ActionChunk(TimeLimit(gym.make("Pendulum-v1").unwrapped, 20), 4), skip_render_check=True)


def test_seeded_episodes_play_the_queue_and_idle():
    seen = []

    class Seen(Counter):
        def reset(self, *, seed=None, options=None):
            seen.append(seed)
            return super().reset(seed=seed)

    env = SeededEpisodes(ActionChunk(Seen(ends_at=1), 1))
    env.set_seeds([5, 6])
    for _ in range(4):
        env.reset()
    *_, info = env.step(np.zeros((1, 2), np.float32))
    assert seen == [5, 6] and info["idle"] and info["chunk_length"] == 0
    env.set_seeds(None)
    env.reset()
    assert seen[-1] is None
