"""What the safety layer held back, in the metrics of a run and beside an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrl.safety import SafetyTally


class SafetyLog(BaseCallback):
    """Logs the counts so far as ``safety/...``."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = SafetyTally()

    def state(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": dict(self.tally.counts), "slowest": self.tally.slowest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.tally.counts.update(state["counts"])
        self.tally.slowest = state["slowest"]

    def _on_step(self) -> bool:
        self.tally.add(self.locals["infos"])
        for name, count in self.tally.counts.items():
            self.logger.record(f"safety/{name}", count)
        self.logger.record("safety/slowest_decision", self.tally.slowest)
        return True


class TalliedEnvs(VecEnvWrapper):
    """Counts while somebody else plays, such as an evaluation."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.tally = SafetyTally()

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Receive what the chunks led to."""
        result = self.venv.step_wait()
        self.tally.add(result[3])
        return result
