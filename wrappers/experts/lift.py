"""A scripted operator for robosuite Lift."""

from __future__ import annotations

import gymnasium
import numpy as np

from dsrl.wrappers.experts.base import ReachingExpert


class LiftExpert(ReachingExpert):
    """Above the cube, down, close, up."""

    HOVER = np.array([0.0, 0.0, 0.06])
    LIFT = np.array([0.0, 0.0, 0.2])
    CLOSE_STEPS = 5

    def object_position(self, env: gymnasium.Env) -> np.ndarray:
        """Where the cube is."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        return np.array(simulator.sim.data.body_xpos[simulator.cube_body_id])

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action of the script."""
        eef = self.eef_position(env)
        if self.phase == 0:  # above
            target = self.perceived(env) + self.HOVER
            self.advance_if(np.linalg.norm((eef - target)[:2]) < 0.01 and abs(eef[2] - target[2]) < 0.03)
            return self.towards(eef, target, close=False)
        if self.phase == 1:  # down
            target = self.perceived(env)
            self.advance_if(eef[2] - target[2] < 0.008)
            return self.towards(eef, target, close=False)
        if self.phase == 2:  # close
            self.hold = eef.copy() if self.ticks == 0 else self.hold
            self.advance_if(self.ticks >= self.CLOSE_STEPS)
            return self.towards(eef, self.hold, close=True)
        return self.towards(eef, self.hold + self.LIFT, close=True)
