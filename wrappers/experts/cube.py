"""OGBench's own operator for one cube: over it, down, grasp, over the target, down, release."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np


class CubeExpert:
    """The Markov oracle of the OGBench package, which looks at the true state of the simulator.

    A displaced operator sees the cube beside where it is, closes its gripper on nothing and tries again.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self._simulator = cast(Any, env.unwrapped).simulator
        self._oracle = CubeMarkovOracle(env=self._simulator)
        self.reset(np.random.default_rng(0), np.zeros(3))

    def reset(self, rng: np.random.Generator, offset: np.ndarray) -> None:
        """Begin; the cube seems to be displaced by ``offset``, metres."""
        self._offset = offset
        self._oracle.reset(None, None)
        # where the arm rests in the end, drawn from the global generator by the oracle itself
        self._oracle._final_pos = rng.uniform(*self._simulator._arm_sampling_bounds)
        self._oracle._final_yaw = rng.uniform(-np.pi, np.pi)

    def start(self) -> dict[str, Any]:
        """None."""
        return {}

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action, ``(5,)``: three of position, yaw, gripper."""
        simulator = self._simulator
        target = simulator._cube_target_mocap_ids[0]
        w, _, _, z = simulator._data.mocap_quat[target]  # upright
        seen = simulator.compute_ob_info()
        seen["privileged/block_0_pos"] = seen["privileged/block_0_pos"] + self._offset
        seen["privileged/target_block"] = 0
        seen["privileged/target_block_pos"] = simulator._data.mocap_pos[target].copy()
        seen["privileged/target_block_yaw"] = np.array([2 * np.arctan2(z, w)])
        return self._oracle.select_action(None, seen).astype(np.float32)
