"""A scripted operator for robosuite NutAssemblySquare."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from dsrl.wrappers.experts.base import ReachingExpert


class SquareExpert(ReachingExpert):
    """Above the handle and along it, down, close, up, over the peg and square to it, down, let go."""

    HOVER = np.array([0.0, 0.0, 0.08])
    LIFT = np.array([0.0, 0.0, 0.16])
    GRASP = np.array([0.064, 0.0, 0.0])
    """from the middle of the nut, in its own frame"""
    TURN = 0.5
    """radians that an action of 1 stands for (OSC_POSE)"""
    WRIST_LIMIT = 2.5
    """radians; the joint stops at 2.9"""
    DESCENT_STEPS = 15
    CLOSE_STEPS = 6
    LOWER_STEPS = 40

    def object_position(self, env: gymnasium.Env) -> np.ndarray:
        """Where to hold the nut: far out on its handle, clear of the corners of the square."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        position, rotation = self._nut_pose(simulator)
        return position + rotation @ self.GRASP

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action of the script."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        eef = self.eef_position(env)
        if self.phase <= 1:  # above, then down
            target = self.perceived(env) + (self.HOVER if self.phase == 0 else 0.0)
            turn = _half_turn(self._nut_yaw(simulator) - self._finger_yaw(simulator))
            near = np.linalg.norm((eef - target)[:2]) < 0.006 and abs(turn) < 0.05
            down = eef[2] - target[2] < 0.006 or self.ticks >= self.DESCENT_STEPS
            self.advance_if(near if self.phase == 0 else down)
            return self.towards(eef, target, close=False, turn=turn, level=-self._gripper(simulator)[:, 2])
        if self.phase == 2:  # close
            self.hold = eef.copy() if self.ticks == 0 else self.hold
            self.advance_if(self.ticks >= self.CLOSE_STEPS)
            return self.towards(eef, self.hold, close=True)
        if self.phase == 3:  # up
            self.advance_if(eef[2] - self.hold[2] > 0.9 * self.LIFT[2])
            return self.towards(eef, self.hold + self.LIFT, close=True, level=-self._gripper(simulator)[:, 2])
        return self._onto_the_peg(simulator, eef)

    def towards(
        self, eef: np.ndarray, target: np.ndarray, close: bool, turn: float = 0.0, level: np.ndarray | None = None
    ) -> np.ndarray:
        """One step of proportional control that also turns about the vertical, and keeps ``level`` pointing up."""
        action = super().towards(eef, target, close)
        rotation = np.array([0.0, 0.0, turn])
        if level is not None:
            rotation += np.cross(level, (0.0, 0.0, 1.0))
        action[3:6] = np.clip(rotation / self.TURN, -1.0, 1.0)
        return action

    def _onto_the_peg(self, simulator: Any, eef: np.ndarray) -> np.ndarray:
        peg = np.array(simulator.sim.data.body_xpos[simulator.peg1_body_id])
        nut, rotation = self._nut_pose(simulator)
        to_peg, up = peg - nut, rotation[:, 2]
        yaw = self._nut_yaw(simulator)
        if self.phase == 4 and self.ticks == 0:
            self.goal_yaw = yaw + self._choose_turn(simulator, yaw)
        turn = (self.goal_yaw - yaw + np.pi) % (2 * np.pi) - np.pi
        if self.phase == 4:  # over the peg
            target = eef + np.array([to_peg[0], to_peg[1], 0.0])
            target[2] = self.hold[2] + self.LIFT[2]
            straight = abs(turn) < 0.05 and up[2] > 0.995
            self.advance_if(np.linalg.norm(to_peg[:2]) < 0.005 and straight)
            return self.towards(eef, target, close=True, turn=turn, level=up)
        if self.phase == 5:  # down; friction on the peg needs the larger gain
            target = eef + np.array([3.0 * to_peg[0], 3.0 * to_peg[1], -0.02])
            self.advance_if(eef[2] - self.hold[2] < 0.06 or self.ticks >= self.LOWER_STEPS)
            return self.towards(eef, target, close=True, turn=turn, level=up)
        return self.towards(eef, eef, close=False)

    def _choose_turn(self, simulator: Any, yaw: float) -> float:
        """A square fits in four ways: the nearest of them that the wrist and the length of the arm allow."""
        wrist = simulator.sim.data.qpos[simulator.robots[0]._ref_joint_pos_indexes[-1]]
        nearest = _quarter_turn(-yaw)
        turns = sorted((nearest + quarter * np.pi / 2 for quarter in range(-2, 3)), key=abs)
        for turn in turns:
            handle = yaw + turn - np.pi / 2  # must not point away from the robot: the arm is too short
            if abs(wrist - turn) < self.WRIST_LIMIT and np.cos(handle) < 0.5:
                return turn
        return nearest

    @staticmethod
    def _nut_pose(simulator: Any) -> tuple[np.ndarray, np.ndarray]:
        body = simulator.obj_body_id[simulator.nuts[simulator.nut_id].name]
        return np.array(simulator.sim.data.body_xpos[body]), np.array(simulator.sim.data.body_xmat[body]).reshape(3, 3)

    def _nut_yaw(self, simulator: Any) -> float:
        """Of the axis across the handle, which is the one that the fingers should close along."""
        across = self._nut_pose(simulator)[1][:, 1]
        return float(np.arctan2(across[1], across[0]))

    def _finger_yaw(self, simulator: Any) -> float:
        """Of the axis that the fingers close along."""
        fingers = self._gripper(simulator)[:, 0]
        return float(np.arctan2(fingers[1], fingers[0]))

    @staticmethod
    def _gripper(simulator: Any) -> np.ndarray:
        robot = simulator.robots[0]
        return np.array(simulator.sim.data.site_xmat[robot.eef_site_id[robot.arms[0]]]).reshape(3, 3)


def _half_turn(angle: float) -> float:
    """The same axis, within a quarter turn either way."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _quarter_turn(angle: float) -> float:
    """The same square, within an eighth of a turn either way."""
    return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4
