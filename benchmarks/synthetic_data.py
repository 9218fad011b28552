"""Small data sets of mixed quality for the benchmark of synthetic data: what SAC does while it learns.

``python benchmarks/synthetic_data.py Hopper-v5 InvertedDoublePendulum-v5`` makes them, minutes each on one core.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC

from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.files import replacing
from dsrl.wrappers import make_env

FOLDER = Path("runs/benchmark/synthetic/data")
TRAIN_STEPS = {"Hopper-v5": 40_000, "InvertedDoublePendulum-v5": 10_000, "HalfCheetah-v5": 40_000}
SHARES = (0.25, 0.5, 1.0)
"""of the training, after which SAC plays for the data set; as much is played at random"""
STEPS = 10_000
"""env steps of a data set"""

Act = Callable[[np.ndarray], np.ndarray]


def mixed_data(task: str, folder: Path = FOLDER) -> Path:
    """The data set of a task; it is made when it is not there."""
    path = folder / f"{task}.hdf5"
    if path.exists():
        return path
    env = make_env(task, reward="dense")
    players = [lambda _: env.action_space.sample(), *(_player(file) for file in _checkpoints(task, folder))]
    env.action_space.seed(0)
    episodes: list[Trajectory] = []
    for index, act in enumerate(players):
        steps = 0
        while steps < STEPS // len(players):
            episodes.append(play(env, act, seed=1_000 * index + len(episodes)))
            steps += len(episodes[-1])
        returns = [float(episode.rewards.sum()) for episode in episodes[-5:]]
        print(f"{task}: player {index}, last returns {np.round(returns).astype(int).tolist()}", flush=True)
    write_hdf5(path, Trajectories(tuple(episodes), dict(env.unwrapped.obs_shapes), env.unwrapped.env_spec))
    return path


def play(env: gymnasium.Env, act: Act, seed: int) -> Trajectory:
    """One episode in the recorded layout."""
    (key,) = env.unwrapped.obs_shapes
    obs, _ = env.reset(seed=seed)
    seen, actions, rewards, terminated, done = [obs], [], [], [], False
    while not done:
        actions.append(np.asarray(act(obs), np.float32))
        obs, reward, end, cut, _ = env.step(actions[-1])
        seen.append(obs)
        rewards.append(reward)
        terminated.append(end)
        done = end or cut
    stacked = np.stack(seen)
    return Trajectory(
        {key: stacked[:-1]}, {key: stacked[1:]}, np.stack(actions), np.array(rewards, np.float32), np.array(terminated)
    )


def _checkpoints(task: str, folder: Path) -> list[Path]:
    """SAC at the ends of the shares of its training."""
    files = [folder / f"{task}-{share:g}.zip" for share in SHARES]
    if all(file.exists() for file in files):
        return files
    model = SAC("MlpPolicy", make_env(task, reward="dense"), seed=0, device="cpu")
    for share, file in zip(SHARES, files, strict=True):
        model.learn(int(share * TRAIN_STEPS[task]) - model.num_timesteps, reset_num_timesteps=False)
        with replacing(file) as aside:
            model.save(aside)
        print(f"{task}: SAC after {model.num_timesteps} steps", flush=True)
    return files


def _player(file: Path) -> Act:
    model = SAC.load(file, device="cpu")
    return lambda obs: model.predict(obs, deterministic=False)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=TRAIN_STEPS)
    torch.set_num_threads(1)
    for name in parser.parse_args().tasks:
        print(mixed_data(name))
