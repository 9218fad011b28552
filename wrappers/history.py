"""The last observations, oldest first."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.wrappers import FrameStackObservation


class ObservationHistory(FrameStackObservation):
    """Stacks the last ``n_obs_steps`` observations: ``(Do,)`` becomes ``(To, Do)``, at every env step.

    At the start of an episode the first observation is repeated, as diffusion policies are trained.
    """

    def __init__(self, env: gym.Env, n_obs_steps: int):
        super().__init__(env, stack_size=n_obs_steps, padding_type="reset")
