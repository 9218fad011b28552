"""An environment that breaks once, when a file says so: it dies, it hangs, or it observes what is no number."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np

from dsrl.wrappers.toy import MAX_EPISODE_STEPS, PointReach

ORDER = "DSRL_TEST_FAULT"
"""environment variable with the path of a file that holds ``dies``, ``hangs``, ``nan`` or ``raises``"""


class Faulty(PointReach):
    """Obeys the order at its 120th step in this process; the file is removed first, so the next process is sound."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.steps, self.blind = 0, False

    def step(self, action: np.ndarray):
        self.steps += 1
        order = Path(os.environ.get(ORDER, "/nowhere"))
        if self.blind or self.steps < 120 or not order.is_file():
            return self._seen(*super().step(action))
        fault = order.read_text()
        order.unlink()
        if fault == "dies":
            os._exit(9)
        if fault == "hangs":
            time.sleep(3600)
        if fault == "raises":
            raise RuntimeError("the contact solver has diverged")
        self.blind = True
        return self._seen(*super().step(action))

    def _seen(self, obs: np.ndarray, *rest):
        # to the end: a chunk shows its last observation only
        return (obs * np.float32("nan") if self.blind else obs, *rest)


class Restless(PointReach):
    """Its chance does not come from gymnasium's generator, so no episode can be played again."""

    def step(self, action: np.ndarray):
        jitter = np.frombuffer(os.urandom(2), np.uint8) / 2550
        return super().step(np.asarray(action) + jitter)


gymnasium.register("test/Faulty-v0", Faulty, max_episode_steps=MAX_EPISODE_STEPS)
gymnasium.register("test/Restless-v0", Restless, max_episode_steps=MAX_EPISODE_STEPS)
