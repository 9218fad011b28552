"""What the scripted operators share."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np

from dsrl.errors import DsrlError, nearest


class Expert(Protocol):
    """A script that solves a task, and fails in a known way when it sees the object in the wrong place."""

    def reset(self, rng: np.random.Generator, offset: np.ndarray) -> None:
        """Start an episode in which the object seems to be displaced by ``offset`` (3,) in environment units."""
        ...

    def start(self) -> dict[str, Any]:
        """Options of ``env.reset``; none where the seed alone decides how an episode starts."""
        ...

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action; it follows from the state of the simulator and of the script."""
        ...


class ReachingExpert:
    """A script of phases for robosuite's delta end-effector control."""

    DELTA = 0.05  # metres that an action of 1 stands for (OSC_POSE)

    def __init__(self) -> None:
        self.reset(np.random.default_rng(0), np.zeros(3))

    def reset(self, rng: np.random.Generator, offset: np.ndarray) -> None:
        """Begin with the first phase."""
        self.offset = np.asarray(offset, dtype=np.float64)
        self.phase = 0
        self.ticks = 0
        self.hold = np.zeros(3)

    def start(self) -> dict[str, Any]:
        """None."""
        return {}

    def object_position(self, env: gymnasium.Env) -> np.ndarray:
        """The true position of the object, (3,)."""
        raise NotImplementedError

    def perceived(self, env: gymnasium.Env) -> np.ndarray:
        """Where the operator believes the object to be."""
        return self.object_position(env) + self.offset

    def eef_position(self, env: gymnasium.Env) -> np.ndarray:
        """Where the gripper is."""
        simulator = env.unwrapped.simulator  # type: ignore[attr-defined]
        robot = simulator.robots[0]
        return np.array(simulator.sim.data.site_xpos[robot.eef_site_id[robot.arms[0]]])

    def advance_if(self, done: bool | np.bool_) -> None:
        """Count a step of this phase, or begin the next one."""
        self.phase, self.ticks = (self.phase + 1, 0) if done else (self.phase, self.ticks + 1)

    def towards(self, eef: np.ndarray, target: np.ndarray, close: bool) -> np.ndarray:
        """One step of proportional control: ``(dx, dy, dz, 0, 0, 0, gripper)``."""
        action = np.zeros(7, dtype=np.float32)
        action[:3] = np.clip((target - eef) / self.DELTA, -1.0, 1.0)
        action[6] = 1.0 if close else -1.0
        return action


def unknown_task(task: str, known: tuple[str, ...]) -> DsrlError:
    """The error for a task that has no script."""
    return DsrlError(f"there is no scripted expert for '{task}'.{nearest(task, known)} Known: {', '.join(known)}")
