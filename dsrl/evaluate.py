"""Score frozen policies on given initial states: every one exactly once, the same ones for each policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.blocks import in_blocks
from dsrl.env_spec import EnvSpec
from dsrl.episodes import Recorder, low_dimensional
from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.noise import episode_generators
from dsrl.policy import FrozenPolicy
from dsrl.safety import SafetyConfig
from dsrl.statistics import wilson

Watcher = Callable[[Tensor, Tensor, Tensor], None]
"""Called with ``(cond, noise, chunk)`` of every decision."""


@dataclass(frozen=True)
class Evaluation:
    """What happened in ``N`` episodes, in the order of their seeds."""

    policy: str
    """``base`` or ``steered``, or the name of a control"""
    deterministic: bool
    success: np.ndarray
    """``(N,)`` bool: success at any env step"""
    held: np.ndarray
    """``(N,)`` bool: success at the last env step"""
    returns: np.ndarray
    """``(N,)`` undiscounted"""
    lengths: np.ndarray
    """``(N,)`` in env steps"""
    seed: int
    """of the first initial state"""
    jerk: np.ndarray = field(default_factory=lambda: np.empty(0))
    """``(N,)``: mean square of the second differences of the executed actions, in action units"""
    starts: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    """``(N, D)``: first observations, without images"""
    columns: tuple[str, ...] = ()
    """what the D numbers are"""
    decision_seconds: float = float("nan")
    """median wall time from an observation to a chunk, for all environments side by side at once"""

    @property
    def success_rate(self) -> float:
        """Share of episodes that succeeded."""
        return float(self.success.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate."""
        return wilson(int(self.success.sum()), self.success.size)

    def row(self, env_steps: int, wall_seconds: float) -> dict[str, Any]:
        """A line of ``evaluations.csv``; ``wall_seconds`` is the training time so far, evaluations left out."""
        low, high = self.interval
        return {
            "env_steps": env_steps,
            "policy": self.policy,
            "deterministic": self.deterministic,
            "episodes": self.success.size,
            "success_rate": round(self.success_rate, 4),
            "success_low": round(low, 4),
            "success_high": round(high, 4),
            "mean_return": round(float(self.returns.mean()), 4),
            "mean_length": round(float(self.lengths.mean()), 2),
            "held_rate": round(float(self.held.mean()), 4),
            "mean_jerk": rounded(mean_of(self.jerk)),
            "wall_seconds": round(wall_seconds, 2),
        }

    @property
    def env_steps(self) -> int:
        """That were played."""
        return int(self.lengths.sum())

    def describe(self) -> str:
        """``87 % [79, 92] of 100 episodes``."""
        low, high = self.interval
        return f"{self.success_rate:.0%} [{100 * low:.0f}, {100 * high:.0f}] of {self.success.size} episodes"


def evaluate(
    policy: FrozenPolicy,
    envs: VecEnv,
    *,
    episodes: int,
    seed: int,
    name: str = "base",
    noise_scale: float = 1.0,
    shape_noise: Callable[[Tensor], Tensor] | None = None,
    repeats: int = 1,
    watch: Watcher | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Play ``episodes`` initial states, the seeds ``seed, seed + 1, ...``, each ``repeats`` times with other noise.

    Args:
        policy: anything that acts. Its noise is ``noise_scale * N(0, I)``, drawn per episode, so that an episode does
            not depend on the others; zeros make a steered policy deterministic.
        envs: from ``make_vec_env`` with ``gamma=1``; what was played in them before does not matter.
        episodes: number of initial states.
        seed: of the first initial state and of the noise.
        name: goes into the result.
        noise_scale: 1 is the policy itself.
        shape_noise: what becomes of the noise, ``(B, *noise_shape)`` -> the same; for example ``NoiseSpace.project``.
        repeats: noise seeds per initial state; results are ordered ``(state, repeat)``.
        watch: sees every decision.
        console: shows a progress bar.

    Raises:
        SimulatorFailed: when the environment returns observations that are not finite.
        ValueError: when there is nothing to play.
    """
    if episodes < 1 or repeats < 1:
        raise ValueError(f"{episodes} episodes, {repeats} times each: there must be at least one of both")
    total = episodes * repeats
    noises = episode_generators(seed, range(total))
    slots = [list(range(index, total, envs.num_envs)) for index in range(envs.num_envs)]
    assert isinstance(envs.action_space, Box)
    shown, columns = low_dimensional(policy.spec.obs_shapes)
    record = Recorder(total, envs.action_space.low, envs.action_space.high, shown)
    seeds = [[seed + episode // repeats for episode in slot] for slot in slots]
    with _seeded(envs, seeds), _progress(console, name, total) as advance:
        obs = np.asarray(envs.reset())
        for index, slot in enumerate(slots):
            if slot:
                record.begin(slot[0], obs[index])
        while any(slots):
            if not np.isfinite(obs).all():
                raise SimulatorFailed(
                    "the environment returned an observation that is not finite; the episode cannot go on"
                )
            since = perf_counter()
            cond = in_blocks(policy.encode, torch.as_tensor(obs, dtype=torch.float32, device=policy.device))
            noise = _draw(policy, slots, noises, noise_scale, shape_noise)
            chunk = in_blocks(policy.decode, cond, noise)
            played = chunk.cpu().numpy()
            record.decisions.append(perf_counter() - since)
            if watch is not None:
                watch(cond, noise, chunk)
            obs, rewards, dones, infos = envs.step(played)  # type: ignore[assignment]
            for index, slot in enumerate(slots):
                if not slot:
                    continue
                executed = infos[index].get("executed", played[index])
                record.step(slot[0], executed, rewards[index], bool(dones[index]), infos[index])
                if dones[index]:
                    advance(bool(record.success[slot.pop(0)]))
                    if slot:
                        record.begin(slot[0], obs[index])
    return Evaluation(
        policy=name,
        deterministic=noise_scale == 0,
        success=record.success,
        held=record.held,
        returns=record.returns,
        lengths=record.lengths,
        seed=seed,
        jerk=record.jerk,
        starts=record.starts,
        columns=columns,
        decision_seconds=float(np.median(record.decisions)),
    )


def evaluate_in_env(
    policy: FrozenPolicy,
    *,
    episodes: int,
    seed: int,
    n_envs: int = 4,
    env: EnvSpec | str | None = None,
    reward: str = "auto",
    **kwargs: Any,
) -> Evaluation:
    """:func:`evaluate` in environments made for the occasion: ``env``, or the one that the policy was made for."""
    with evaluation_envs(policy, env=env, n_envs=min(n_envs, episodes), reward=reward) as envs:
        return evaluate(policy, envs, episodes=episodes, seed=seed, **kwargs)


def environment_of(
    policy: FrozenPolicy, env: EnvSpec | str | None = None, max_episode_steps: int | None = None
) -> EnvSpec | str:
    """The environment to act in: ``env``, or the one that the policy was made for.

    An id that names the policy's own environment keeps the arguments that the policy remembers. ``max_episode_steps``
    replaces the time limit.

    Raises:
        DsrlError: when neither is known, or a file asks to import a module for it.
    """
    if max_episode_steps is not None:
        chosen = environment_of(policy, env)
        return replace(
            EnvSpec.parse(chosen) if isinstance(chosen, str) else chosen, max_episode_steps=max_episode_steps
        )
    known = policy.spec.env
    if known is not None and env in (None, known.id):
        module, colon, _ = known.name.rpartition(":")
        if colon and env is None:
            raise DsrlError(
                f"the file of this policy asks to import the module '{module}' for its environment; "
                f"if you trust both, say so: --env {known.id}"
            )
        return known
    if env is None:
        raise DsrlError("this policy does not say which environment it was made for; name one with --env")
    return env


@contextmanager
def evaluation_envs(
    policy: FrozenPolicy,
    *,
    env: EnvSpec | str | None = None,
    n_envs: int = 4,
    reward: str = "auto",
    safety: SafetyConfig | None = None,
    timeout: float = 300.0,
) -> Iterator[VecEnv]:
    """Chunked environments that are closed afterwards.

    Raises:
        DsrlError: when no environment is known, or the policy cannot act in it.
    """
    from dsrl.wrappers import make_vec_env
    from dsrl.wrappers.steered import check_fit

    alike: dict[str, Any] = {"reward": reward, "safety": safety, "timeout": timeout}
    envs = make_vec_env(environment_of(policy, env), policy.spec, n_envs, **alike)
    try:
        try:
            check_fit(policy, envs.observation_space, envs.action_space)
        except ValueError as misfit:
            raise DsrlError(f"this policy does not fit this environment: {misfit}") from misfit
        yield envs
    finally:
        envs.close()


def mean_of(values: np.ndarray) -> float:
    """Of the numbers that are there; NaN when there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def rounded(value: float) -> float | None:
    """To four digits; None where there is no number."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


@contextmanager
def _seeded(envs: VecEnv, seeds: Sequence[Sequence[int]]) -> Iterator[None]:
    """Queue seeds in every environment, and take what is left of them out again."""
    for index, queue in enumerate(seeds):
        envs.env_method("set_seeds", queue, indices=[index])
    try:
        yield
    finally:
        envs.env_method("set_seeds", None)


@contextmanager
def _progress(console: Console | None, name: str, total: int) -> Iterator[Callable[[bool], None]]:
    """A bar of episodes with the success rate so far, gone when it is full; yields what counts an episode."""
    if console is None:
        yield lambda success: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("episodes, success {task.fields[rate]}"))
    with Progress(TextColumn(name), *columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=total, rate="-")
        results: list[bool] = []

        def advance(success: bool) -> None:
            results.append(success)
            bar.update(task, advance=1, rate=f"{np.mean(results):.0%}")

        yield advance


def _draw(
    policy: FrozenPolicy,
    slots: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
    scale: float,
    shape_noise: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Noise for every environment, each from the generator of its own episode."""
    noise = torch.zeros(len(slots), *policy.spec.noise_shape)
    if scale:
        for index, slot in enumerate(slots):
            if slot:
                noise[index] = torch.randn(policy.spec.noise_shape, generator=generators[slot[0]]) * scale
    if shape_noise is not None:
        noise = shape_noise(noise)
    return noise.to(policy.device)
