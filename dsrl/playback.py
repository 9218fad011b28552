"""Playing demonstrations back: the actions must still succeed in the environment that is trained in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from dsrl.data import Trajectories, Trajectory, concat_keys
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, SimulatorFailed

if TYPE_CHECKING:
    import gymnasium

NEVER_END = ("robosuite", "metaworld", "ogbench")
"""families whose simulators do not end an episode; whatever their files mark as done is success or the last step"""


class _Replayed(NamedTuple):
    success: bool
    start_error: float
    """largest difference of the first observation from the recorded one; NaN where they cannot be compared"""


def replay_check(data: Trajectories, env: EnvSpec, episodes: int = 3, console: Console | None = None) -> None:
    """Play the actions of some successful demonstrations from their own starts; at least half must succeed again.

    A start is the seed of our own files, or the simulator state of robomimic's. Files with neither cannot be checked,
    which is printed.

    Args:
        data: the demonstrations.
        env: in which the training will run.
        episodes: how many are played, spread over the file.
        console: where the outcome is printed.

    Raises:
        DsrlError: when too few of them succeed, or none is marked as a success.
    """
    console = console or Console()
    successes = [episode for episode in data.episodes if episode.success]
    if not successes and env.family in NEVER_END:
        raise DsrlError(
            f"none of the {len(data)} demonstrations succeeded (a reward of 1 marks success), so they cannot show what "
            f"is worth something in {env.id}; add successful ones"
        )
    states = env.family == "robosuite"
    known = [e for e in successes if e.seed is not None or (states and e.initial_state is not None)]
    if not known:
        reason = "no start recorded" if successes else "no demonstration is marked as a success"
        console.print(f"warning: {reason}: the replay check is skipped. Make sure that the demonstrations fit {env.id}")
        return
    count = min(episodes, len(known))
    played = _replay_all([known[i] for i in np.linspace(0, len(known) - 1, count).round().astype(int)], env)
    if played is None:
        console.print(f"warning: {env.id} reports no success: the replay check is skipped")
        return
    succeeded, needed = sum(replay.success for replay in played), max(1, math.ceil(count / 2))
    if succeeded < needed:
        raise DsrlError(_misfit(played, needed, data.env, env))
    console.print(f"replay check: {succeeded} of {count} demonstrations succeed when played back in {env.id}")


def _replay_all(chosen: Sequence[Trajectory], env: EnvSpec) -> list[_Replayed] | None:
    """None where the environment knows no success."""
    from dsrl.wrappers.make import make_env

    longest = max(len(episode) for episode in chosen)  # a slow demonstration is not a wrong one
    sparse = env.family in NEVER_END
    env = replace(env, max_episode_steps=max(env.max_episode_steps or 0, longest))
    simulator = make_env(env, reward="step-cost" if sparse else "dense")
    try:
        played = [_replay(simulator, episode) for episode in chosen]
    finally:
        simulator.close()
    return None if None in played else [replay for replay in played if replay is not None]


def _replay(simulator: gymnasium.Env, episode: Trajectory) -> _Replayed | None:
    obs, _ = simulator.reset(seed=0 if episode.seed is None else episode.seed)
    adapter: Any = simulator.unwrapped
    if episode.seed is None:
        obs = adapter.restore(episode.initial_state)
    comparable = all(key in episode.obs for key in adapter.obs_shapes)
    error = math.nan
    if comparable:
        first = {key: episode.obs[key][:1] for key in adapter.obs_shapes}
        error = float(np.abs(concat_keys(first, adapter.obs_shapes)[0] - obs).max())
    low, high = simulator.action_space.low, simulator.action_space.high  # type: ignore[attr-defined]
    try:
        for action in episode.actions:
            _, _, terminated, truncated, info = simulator.step(np.clip(action, low, high))
            if "success" not in info:
                return None
            if info["success"]:
                return _Replayed(True, error)
            if terminated or truncated:
                break
    except SimulatorFailed:
        pass  # a demonstration that breaks the simulator does not fit it either
    return _Replayed(False, error)


def _misfit(played: Sequence[_Replayed], needed: int, recorded: EnvSpec | None, env: EnvSpec) -> str:
    """What was found, what was expected, why that may be, and what to do."""
    errors = [replay.start_error for replay in played if not math.isnan(replay.start_error)]
    where = ""
    if errors:
        same = "they start where they should" if max(errors) < 1e-3 else "they do not even start where they should"
        where = f"; {same} (first observations differ by up to {max(errors):.2g})"
    differences = _differences(recorded, env) if recorded is not None else []
    stated = f"The file and this run differ in {', '.join(differences)}. " if differences else ""
    return (
        f"{sum(replay.success for replay in played)} of {len(played)} demonstrations succeed when their actions are "
        f"played back in {env.id}, at least {needed} must{where}. {stated}Usual reasons: another controller "
        f"configuration, another physics_timestep, another version of the simulator. Record demonstrations in this "
        f"environment (`dsrl collect`), set the run up like theirs, or do without them"
    )


def _differences(recorded: EnvSpec, env: EnvSpec) -> list[str]:
    """``physics_timestep (0.002 there, 0.005 here)``, for whatever both of them say."""
    one, other = ({**spec.kwargs, **spec.options, "version": spec.version} for spec in (recorded, env))
    differing = [key for key in one if one[key] and other.get(key) and one[key] != other[key]]
    return [f"{key} ({_short(one[key])} there, {_short(other[key])} here)" for key in differing]


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 40 else f"{text[:37]}..."
