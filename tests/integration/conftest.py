"""A small imperfect diffusion policy for the toy task, trained once for all end-to-end tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.pretrain import PretrainConfig, pretrain
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import make_env, resolve_env_spec

ENV = "dsrl/PointReach-v0"
Dsrl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory) -> Path:
    """What the analytic policy does with noise from the prior: it arrives in fewer than half of the episodes."""
    path = tmp_path_factory.mktemp("data") / "toy.hdf5"
    generator = torch.Generator().manual_seed(0)
    episodes = tuple(_play(seed, generator) for seed in range(5000, 5150))
    write_hdf5(path, Trajectories(episodes, {"state": (4,)}, resolve_env_spec(ENV)))
    return path


@pytest.fixture(scope="session")
def toy_checkpoint(toy_dataset) -> Path:
    """A diffusion policy cloned from it."""
    settings = {"hidden_dims": (64, 64, 64), "steps": 1500, "sampling_steps": 4, "eval_episodes": 0}
    return pretrain(PretrainConfig(toy_dataset, toy_dataset.with_name("toy.pt"), device="cpu", **settings))


@pytest.fixture(scope="session")
def dsrl() -> Dsrl:
    """Run the installed command: ``dsrl("inspect", path)``."""

    def run(*args: object, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(dsrl_command(*args), **{**quiet(), "timeout": 300, **options}, check=False)

    return run


def dsrl_command(*args: object) -> list[str]:
    """The arguments of a process that runs ``dsrl``."""
    return [str(Path(sys.executable).with_name("dsrl")), *map(str, args)]


def quiet() -> dict:
    """Captured, in a terminal wide enough that no message is wrapped."""
    return {"capture_output": True, "text": True, "env": {**os.environ, "COLUMNS": "400"}}


def _play(seed: int, generator: torch.Generator) -> Trajectory:
    env, policy = make_env(ENV), ToyPolicy()
    seen, actions, rewards, terminated, done = [env.reset(seed=seed)[0]], [], [], [], False
    while not done:
        noise = torch.randn(1, *policy.spec.noise_shape, generator=generator)
        for action in policy.sample(torch.from_numpy(seen[-1])[None, None], noise)[0].numpy():
            obs, reward, success, timeout, _ = env.step(action)
            seen.append(obs)
            actions.append(action)
            rewards.append(reward)
            terminated.append(success)
            if done := success or timeout:
                break
    states = np.stack(seen)
    return Trajectory(
        obs={"state": states[:-1]},
        next_obs={"state": states[1:]},
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(terminated),
        success=any(terminated),
    )
