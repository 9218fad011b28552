"""Which reward the agent sees, and whether success ends the episode."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium

from dsrl.errors import DsrlError, nearest

MODES = ("success", "step-cost", "dense")


class RewardConvention(gymnasium.Wrapper):
    """One of three conventions over the same simulator.

    ``success``: +1 at the first success, where the episode terminates, else 0. ``step-cost``: -1 for every step without
    success and 0 while it holds, up to the time limit, as in the DSRL paper. ``dense``: the simulator's own reward and
    ends, unchanged.
    """

    def __init__(self, env: gymnasium.Env, mode: str = "success") -> None:
        if mode not in MODES:
            raise DsrlError(
                f"there is no reward convention '{mode}'.{nearest(mode, MODES)} Known: auto, {', '.join(MODES)}"
            )
        super().__init__(env)
        self.mode = mode

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, then put the convention's reward and end in place.

        Raises:
            DsrlError: when a sparse reward is asked for and the simulator has no notion of success.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self.mode == "dense":
            return obs, reward, terminated, truncated, info
        if "success" not in info:
            spec = getattr(self.unwrapped, "env_spec", None)
            name = spec.id if spec is not None else str(self.unwrapped)
            raise DsrlError(
                f"{name} reports no success, so the reward '{self.mode}' has no meaning; use --reward dense"
            )
        success = bool(info["success"])
        if self.mode == "success":
            return obs, float(success), terminated or success, truncated, info
        return obs, float(success) - 1.0, terminated, truncated, info
