"""Data of OGBench's point mazes, made by the recipe of its `navigate` data sets, and what the single task makes of it.

1000 episodes of 1001 steps, noise of 0.5, as OGBench's own. About five minutes per maze on a free core.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dsrl.collect import CollectConfig, collect
from dsrl.data import Trajectories, Trajectory, read_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.wrappers import make_env

FOLDER = Path("runs/benchmark/mazes")


def dataset(maze: str, folder: Path = FOLDER, episodes: int = 1000) -> Path:
    """``folder/<maze>.hdf5``, recorded when it is not there; ``maze`` is medium, large, giant or teleport."""
    path = folder / f"{maze}.hdf5"
    if path.exists():
        return path
    # success is a goal of the wanderer's own, so it ends nothing
    steps = {"max_episode_steps": 1001, "steps_after_success": 1001}
    return collect(CollectConfig(f"ogbench/pointmaze-{maze}", path, episodes, action_noise=0.5, **steps))


def single_task(maze: str, folder: Path = FOLDER) -> Trajectories:
    """The same data for the default task of the single-task environment.

    An episode ends where that task's goal is reached, with a reward of 1, and what comes after is another episode, so
    nothing is lost. (OGBench gives -1 per step and masks the bootstrap there, which is the same up to a factor and a
    constant.)
    """
    spec = EnvSpec("ogbench", f"pointmaze-{maze}-singletask")
    env = make_env(spec)
    env.reset(seed=0)
    simulator = env.unwrapped.simulator
    goal, radius = np.asarray(simulator.cur_goal_xy), simulator._goal_tol
    env.close()
    data = read_hdf5(dataset(maze, folder))
    episodes = [part for episode in data.episodes for part in _ended_at(episode, goal, radius)]
    return Trajectories(tuple(episodes), {"state": data.obs_shapes["state"]}, env.unwrapped.env_spec)


def _ended_at(episode: Trajectory, goal: np.ndarray, radius: float) -> list[Trajectory]:
    """The parts of an episode that lie outside of the goal, each ending with the step into it."""
    inside = np.linalg.norm(episode.next_obs["state"] - goal, axis=1) <= radius
    from_inside = np.concatenate([[np.linalg.norm(episode.obs["state"][0] - goal) <= radius], inside[:-1]])
    parts, outside = [], np.flatnonzero(~from_inside)
    for steps in np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1):
        if not len(steps):
            continue
        reached = inside[steps]
        obs, next_obs = ({"state": of["state"][steps]} for of in (episode.obs, episode.next_obs))
        rewards = reached.astype(np.float32)
        part = {"actions": episode.actions[steps], "rewards": rewards, "terminated": reached}
        parts.append(replace(episode, obs=obs, next_obs=next_obs, success=bool(reached.any()), seed=None, **part))
    return parts
