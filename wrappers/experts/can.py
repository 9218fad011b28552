"""A scripted operator for robosuite PickPlaceCan."""

from __future__ import annotations

import gymnasium
import numpy as np

from dsrl.wrappers.experts.base import ReachingExpert


class CanExpert(ReachingExpert):
    """Above the can, down, close, up, over the bin, let go."""

    HOVER = np.array([0.0, 0.0, 0.08])
    LIFT = np.array([0.0, 0.0, 0.12])
    CARRY_HEIGHT = 0.15
    """above the height of the grasp: clears the wall between the bins"""
    DESCENT_STEPS = 12
    CLOSE_STEPS = 6

    def object_position(self, env: gymnasium.Env) -> np.ndarray:
        """Where the can is."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        return np.array(simulator.sim.data.body_xpos[simulator.obj_body_id[simulator.obj_to_use]])

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action of the script."""
        eef = self.eef_position(env)
        if self.phase == 0:  # above
            target = self.perceived(env) + self.HOVER
            self.advance_if(np.linalg.norm((eef - target)[:2]) < 0.012 and abs(eef[2] - target[2]) < 0.04)
            return self.towards(eef, target, close=False)
        if self.phase == 1:  # down
            target = self.perceived(env)
            # at the far end of the bin the arm sags and stops a little higher
            self.advance_if(eef[2] - target[2] < 0.01 or self.ticks >= self.DESCENT_STEPS)
            return self.towards(eef, target, close=False)
        if self.phase == 2:  # close
            self.hold = eef.copy() if self.ticks == 0 else self.hold
            self.advance_if(self.ticks >= self.CLOSE_STEPS)
            return self.towards(eef, self.hold, close=True)
        if self.phase == 3:  # up
            self.advance_if(eef[2] - self.hold[2] > 0.8 * self.LIFT[2])
            return self.towards(eef, self.hold + self.LIFT, close=True)
        if self.phase == 4:  # over the bin
            target = self.bin_position(env)
            target[2] = self.hold[2] + self.CARRY_HEIGHT
            self.advance_if(np.linalg.norm((eef - target)[:2]) < 0.03)
            return self.towards(eef, target, close=True)
        return self.towards(eef, eef, close=False)

    def bin_position(self, env: gymnasium.Env) -> np.ndarray:
        """The middle of the can's own bin."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        return np.array(simulator.target_bin_placements[simulator.object_id])
