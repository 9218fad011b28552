"""A wanderer in OGBench's point mazes: from goal to goal, along the shortest way through the cells."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import gymnasium
import numpy as np

from dsrl.errors import DsrlError

Cell = tuple[int, int]


class MazeWanderer:
    """Walks to a goal, then to another one, until the episode is over, as in OGBench's ``navigate`` data.

    It starts anywhere; its goals are drawn from the cells that are no mere corridor. Its action is the unit vector to
    the next cell of the shortest way, to which ``--action-noise 0.5`` adds what OGBench adds.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self._maze = cast(Any, env.unwrapped)
        simulator = self._maze.simulator
        if not hasattr(simulator, "get_oracle_subgoal") or simulator.action_space.shape != (2,):
            raise DsrlError(f"there is no scripted expert for '{self._maze.env_spec.id}'; point mazes have one")
        free = np.asarray(simulator.maze_map) == 0
        self._cells = [(int(i), int(j)) for i, j in np.argwhere(free)]
        self._turns = [cell for cell in self._cells if not _is_corridor(free, cell)]
        # the way depends on the two cells alone
        self._next_cell = cache(lambda start, goal: simulator.get_oracle_subgoal(start, goal)[0])
        self.reset(np.random.default_rng(0), np.zeros(3))

    def reset(self, rng: np.random.Generator, offset: np.ndarray) -> None:
        """Draw start and first goal; a displaced wanderer believes to be ``offset`` away from where he is."""
        self._rng, self._offset = rng, offset[:2]
        self._goal = self._draw(self._turns)

    def start(self) -> dict[str, Any]:
        """Options of the environment's reset: where to begin, and the goal."""
        return {"task_info": {"init_ij": self._draw(self._cells), "goal_ij": self._goal}}

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action, of length 1; a goal that is reached gives way to another one first."""
        simulator = self._maze.simulator
        if simulator.compute_success():
            self._goal = self._draw(self._turns)
            self._maze.wander_to(self._goal)
        at = simulator.get_xy() + self._offset
        goal = simulator.cur_goal_xy
        cell = tuple(simulator.ij_to_xy(simulator.xy_to_ij(at))), tuple(simulator.ij_to_xy(simulator.xy_to_ij(goal)))
        towards = self._next_cell(*cell) - at
        return (towards / (np.linalg.norm(towards) + 1e-6)).astype(np.float32)

    def _draw(self, cells: list[Cell]) -> Cell:
        return cells[int(self._rng.integers(len(cells)))]


def _is_corridor(free: np.ndarray, cell: Cell) -> bool:
    """Whether one can only go straight on or back."""
    i, j = cell
    along, across = (free[i - 1, j], free[i + 1, j]), (free[i, j - 1], free[i, j + 1])
    return (all(along) and not any(across)) or (all(across) and not any(along))
