"""A row of ``guidance.py``: one setting, on the starts that are reported and on as many others to choose one."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from dsrl.evaluate import Evaluation, evaluate

Row = dict[str, Any]

REPORT, CHOICE = 10_000_000, 20_000_000
"""first seeds of the episodes that are reported, and of those that a setting is chosen on"""


def played(setting: str, policy: Any, envs: VecEnv, episodes: int, noise_scale: float = 1.0) -> Row:
    """Let a policy play all starts."""
    reported, choice = (
        evaluate(policy, envs, episodes=episodes, seed=first, noise_scale=noise_scale) for first in (REPORT, CHOICE)
    )
    return outcome(setting, reported, choice)


def outcome(setting: str, reported: Evaluation, choice: Evaluation) -> Row:
    """The row of what was played."""
    low, high = reported.interval
    return {
        "setting": setting,
        "success_rate": reported.success_rate,
        "low": low,
        "high": high,
        "episodes": int(reported.success.size),
        "mean_length": float(reported.lengths.mean()),
        "choice_success_rate": choice.success_rate,
        "choice_mean_length": float(choice.lengths.mean()),
    }
