"""Demonstrations from a scripted operator who is sometimes mis-calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.files import check_out
from dsrl.limits import within

if TYPE_CHECKING:
    import gymnasium

    from dsrl.wrappers.experts import Expert


@dataclass(frozen=True)
class CollectConfig:
    """Two operators share the work: one calibrated, one who sees the object displaced by ``offset``.

    A policy cloned from both is imperfect in a way that its noise can choose: that is what steering needs.
    """

    env: str
    """``robosuite/Lift``, ``metaworld/pick-place-v3``"""
    out: Path
    """the robomimic HDF5 file to write"""
    episodes: int = 100
    """how many episodes are played"""
    seed: int = 0
    """of the starts, the operators and their unsteadiness"""
    action_noise: float = 0.1
    """standard deviation of the Gaussian that is added to every action, in units of the action box"""
    p_calibrated: float = 1.0
    """share of the episodes that the calibrated operator plays; the rest sees the object displaced"""
    offset: tuple[float, float, float] = (0.04, 0.0, 0.0)
    """how far the mis-calibrated operator sees the object displaced, in metres; 4 cm makes him miss a 4 cm cube"""
    physics_timestep: float | None = None
    """seconds, robosuite only; 0.005 is twice as fast as robosuite's own 0.002"""
    max_episode_steps: int | None = None
    """time limit in env steps; left to the environment's default"""
    keep_failures: bool = True
    """failed episodes are data too; without them fewer than ``episodes`` are written"""
    steps_after_success: int = 4
    """env steps kept after the first success, so that a chunk that ends in success has all its actions"""
    overwrite: bool = False
    """replace an existing file"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "episodes", "max_episode_steps")
        within(self, "[0, inf)", "action_noise", "steps_after_success")
        within(self, "[0, 1]", "p_calibrated")
        within(self, "(0, inf)", "physics_timestep")


def collect(config: CollectConfig) -> Path:
    """Play the episodes and write them; the same config writes the same data.

    Rewards are 1 where success holds and 0 elsewhere; the same steps are marked as terminated, as in the ``success``
    convention of :class:`dsrl.wrappers.reward.RewardConvention`.

    Raises:
        DsrlError: when the file exists, the environment is unknown or nobody wrote an expert for it.
    """
    from dsrl.wrappers.experts import make_expert
    from dsrl.wrappers.make import make_env

    out = Path(config.out)
    check_out(out, config.overwrite)
    env = make_env(_env_spec(config), reward="step-cost")
    spec: EnvSpec = env.unwrapped.env_spec  # type: ignore[attr-defined]
    obs_shapes: Mapping[str, tuple[int, ...]] = env.unwrapped.obs_shapes  # type: ignore[attr-defined]
    try:
        expert = make_expert(spec, env)
        episodes = _play_all(config, env, expert, obs_shapes)
    finally:
        env.close()
    if not config.keep_failures:
        episodes = [episode for episode in episodes if episode.success]
    if not episodes:
        raise DsrlError(f"none of {config.episodes} episodes of {config.env} succeeded; nothing was written to {out}")
    write_hdf5(out, Trajectories(tuple(episodes), dict(obs_shapes), spec))
    return out


def _env_spec(config: CollectConfig) -> EnvSpec:
    spec = EnvSpec.parse(config.env)
    if config.physics_timestep is not None:
        if spec.family != "robosuite":
            raise DsrlError(f"physics_timestep is for robosuite environments; {config.env} is not one")
        spec = replace(spec, options={**spec.options, "physics_timestep": config.physics_timestep})
    return replace(spec, max_episode_steps=config.max_episode_steps)


def _play_all(
    config: CollectConfig, env: gymnasium.Env, expert: Expert, obs_shapes: Mapping[str, tuple[int, ...]]
) -> list[Trajectory]:
    rng = np.random.default_rng(config.seed)
    # an exact share in random order: a coin per episode would make small data sets differ by luck
    calibrated = rng.permutation(config.episodes) < round(config.p_calibrated * config.episodes)
    starts = rng.choice(2**31 - 1, size=config.episodes, replace=False)
    episodes: list[Trajectory] = []
    with _progress(config.episodes) as advance:
        for i in range(config.episodes):
            noise = np.random.default_rng([config.seed, i])
            expert.reset(noise, np.zeros(3) if calibrated[i] else np.asarray(config.offset, dtype=np.float64))
            episodes.append(_play(config, env, expert, int(starts[i]), noise, obs_shapes))
            advance(episodes[-1].success)
    return episodes


def _play(
    config: CollectConfig,
    env: gymnasium.Env,
    expert: Expert,
    start: int,
    noise: np.random.Generator,
    obs_shapes: Mapping[str, tuple[int, ...]],
) -> Trajectory:
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    obs, _ = env.reset(seed=start, options=expert.start())
    seen, actions, success = [obs], [], []
    left = config.steps_after_success
    done = False
    while not done:
        action = expert.act(env)
        action = action + config.action_noise * noise.standard_normal(action.shape)
        actions.append(np.clip(action, low, high).astype(np.float32))  # what is recorded is what is executed
        obs, _, terminated, truncated, info = env.step(actions[-1])
        seen.append(obs)
        success.append(bool(info["success"]))
        left -= any(success[:-1])
        done = terminated or truncated or (any(success) and left <= 0)
    stacked, flags = np.stack(seen), np.array(success)
    return Trajectory(
        obs=_by_key(stacked[:-1], obs_shapes),
        next_obs=_by_key(stacked[1:], obs_shapes),
        actions=np.stack(actions),
        rewards=flags.astype(np.float32),
        terminated=flags,
        success=bool(flags.any()),
        seed=start,
    )


def _by_key(flat: np.ndarray, obs_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """``(T, Do)`` -> ``key -> (T, *shape)``."""
    parts, begin = {}, 0
    for key, shape in obs_shapes.items():
        size = int(np.prod(shape))
        parts[key] = flat[:, begin : begin + size].reshape(len(flat), *shape)
        begin += size
    return parts


@contextmanager
def _progress(total: int) -> Iterator[Callable[[bool], None]]:
    """A progress bar with the success rate so far; yields what counts an episode."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("success {task.fields[rate]}"), TimeRemainingColumn())
    with Progress(TextColumn("collect"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("collect", total=total, rate="-")
        results: list[bool] = []

        def advance(success: bool) -> None:
            results.append(success)
            progress.update(task, advance=1, rate=f"{sum(results) / len(results):.0%}")

        yield advance
