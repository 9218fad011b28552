"""Can this policy be steered? What the choice of noise changes, measured before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.evaluate import Evaluation, evaluate
from dsrl.noise import NoiseSpace
from dsrl.policy import FrozenPolicy


@dataclass(frozen=True)
class Probe:
    """The steerability of a policy on ``states`` initial states."""

    base: Evaluation
    """``N(0, I)``, several noise seeds per state"""
    clipped: Evaluation
    """``N(0, I)`` clipped to the box of the agent, in its noise space: what warm-up plays"""
    scaled: Evaluation
    """half the noise"""
    zero: Evaluation
    """no noise at all"""
    repeats: int
    spread: np.ndarray
    """``(Da,)`` standard deviation of the denoised action over noise, mean over visited states, in action units"""
    chosen: Evaluation | None = None
    """``N(0, I)`` in the agent's noise space, where that is not the full one; the noise seeds are those of ``base``"""
    spaces: tuple[Evaluation, ...] = ()
    """the same in other noise spaces, one noise seed per state"""

    def pass_at(self, n: int) -> float:
        """Probability that at least one of ``n`` noise seeds succeeds (unbiased, Chen et al. 2021, eq. 1)."""
        wins = self.base.success.reshape(-1, self.repeats).sum(axis=1)
        misses = [_all_miss(self.repeats, int(won), n) for won in wins]
        return 1.0 - float(np.mean(misses))

    @property
    def steerable(self) -> bool:
        """Whether there is anything to choose from: more states are solved by some noise than by the average one."""
        return self.pass_at(self.repeats) - self.pass_at(1) > 0.1

    def rows(self) -> list[tuple[str, str]]:
        """The table that is printed."""
        spread = ", ".join(f"{value:.2g}" for value in self.spread)
        return [
            ("base, N(0, I)", self.base.describe()),
            ("clipped to the box", self.clipped.describe()),
            ("half the noise", self.scaled.describe()),
            ("zero noise", self.zero.describe()),
            *((f"the agent's noise space: {e.policy}", e.describe()) for e in (self.chosen,) if e is not None),
            *((f"noise space: {e.policy}", e.describe()) for e in self.spaces),
            *((f"pass@{n}", f"{self.pass_at(n):.0%}") for n in (1, 2, 4, 8) if n <= self.repeats),
            ("spread of the action over noise", spread),
        ]

    def verdict(self) -> str:
        """One sentence."""
        one, many = self.pass_at(1), self.pass_at(self.repeats)
        if one > 0.97:
            return f"the base policy succeeds in {one:.0%} of the episodes already: little is left to gain"
        if not self.steerable:
            return (
                f"steering has little to choose from: pass@{self.repeats} is {many:.0%}, pass@1 is {one:.0%}; "
                "a base policy with more spread, or one trained on better data, is needed"
            )
        note = "; zero noise alone gains part of it, so compare with it" if self.zero.success_rate > one + 0.1 else ""
        return f"steerable: pass@1 is {one:.0%}, pass@{self.repeats} is {many:.0%}{note}"

    def objection(self) -> str | None:
        """Why no agent should start from here: its noise space, or its box, costs the base policy too much."""
        found = f"under N(0, I) the base policy succeeds in {self.base.describe()}"
        if self.chosen is not None and _breaks(self.base, self.chosen):
            return (
                f"{found}, in the noise space '{self.chosen.policy}' in {self.chosen.describe()}: the agent would "
                "start from a broken policy. Leave out --noise.rows and --noise.basis, or choose another space "
                "(dsrl probe --noise-spaces compares them); --accept-noise-space trains nevertheless"
            )
        if _breaks(self.base, self.clipped):
            return (
                f"{found}, with noise clipped to the box of the agent in {self.clipped.describe()}: the agent would "
                "start from a broken policy. Take a larger --bound (3 covers N(0, I)); --accept-noise-space trains "
                "nevertheless"
            )
        return None


def probe(
    policy: FrozenPolicy,
    envs: VecEnv,
    *,
    states: int = 16,
    repeats: int = 8,
    noise_space: NoiseSpace | None = None,
    compare: Sequence[NoiseSpace] = (),
    seed: int = 0,
    console: Console | None = None,
) -> Probe:
    """Play ``states`` initial states with ``repeats`` noise seeds each, and with the noises that need no learning.

    Args:
        policy: the base policy.
        envs: from ``make_vec_env`` with ``gamma=1``.
        states: initial states, the seeds ``seed, seed + 1, ...``.
        repeats: noise seeds per state for ``N(0, I)``.
        noise_space: the agent's; left out: the full noise in a box of half-width 1.5.
        compare: other noise spaces to play the base policy in.
        seed: of the first initial state.
        console: shows progress.
    """
    visited: list[Tensor] = []
    agent = noise_space or NoiseSpace(policy.spec.noise_shape)

    def score(name: str, **kwargs: Any) -> Evaluation:
        return evaluate(policy, envs, episodes=states, seed=seed, name=name, console=console, **kwargs)

    def within(space: NoiseSpace, repeats: int = 1) -> Evaluation:
        if space.keeps_prior:  # nothing to play: it is the base policy
            return replace(base, policy=space.describe())
        return score(space.describe(), repeats=repeats, shape_noise=space.project)

    base = score("base", repeats=repeats, watch=lambda cond, *_: visited.append(cond.cpu()))
    return Probe(
        base=base,
        clipped=score("clipped", shape_noise=lambda noise: agent.project(noise, clip=True)),
        scaled=score("scaled", noise_scale=0.5),
        zero=score("zero", noise_scale=0.0),
        repeats=repeats,
        spread=_spread(policy, torch.cat(visited), seed),
        chosen=within(agent, repeats) if agent.layout() else None,
        spaces=tuple(within(space) for space in compare if space.layout() != agent.layout()),
    )


def _breaks(base: Evaluation, other: Evaluation) -> bool:
    """More than 20 points below the base policy, and not by chance: the 95 % intervals do not meet."""
    return base.success_rate - other.success_rate > 0.2 and other.interval[1] < base.interval[0]


def _spread(policy: FrozenPolicy, cond: Tensor, seed: int, states: int = 64, noises: int = 32) -> np.ndarray:
    """Standard deviation of the first action over noise, mean over some of the visited states."""
    generator = torch.Generator().manual_seed(seed)
    chosen = cond[torch.randperm(len(cond), generator=generator)[:states]].to(policy.device)
    noise = torch.randn(noises, *policy.spec.noise_shape, generator=generator).to(policy.device)
    chunks = [policy.decode(one.expand(noises, -1), noise)[:, 0] for one in chosen]
    return torch.stack(chunks).std(dim=1).mean(dim=0).cpu().numpy()


def _all_miss(trials: int, wins: int, n: int) -> float:
    """Chance that ``n`` of ``trials`` draws without replacement hold none of the ``wins``."""
    if trials - wins < n:
        return 0.0
    return float(np.prod(1.0 - n / np.arange(trials - wins + 1, trials + 1)))
