"""Can this policy be steered? What the choice of noise changes, measured before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.evaluate import Evaluation, evaluate
from dsrl.policy import FrozenPolicy


@dataclass(frozen=True)
class Probe:
    """The steerability of a policy on ``states`` initial states."""

    base: Evaluation
    """``N(0, I)``, several noise seeds per state"""
    clipped: Evaluation
    """``N(0, I)`` clipped to the box of the agent: what warm-up plays"""
    scaled: Evaluation
    """half the noise"""
    zero: Evaluation
    """no noise at all"""
    repeats: int
    spread: np.ndarray
    """``(Da,)`` standard deviation of the denoised action over noise, mean over visited states, in action units"""

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


def probe(
    policy: FrozenPolicy,
    envs: VecEnv,
    *,
    states: int = 16,
    repeats: int = 8,
    bound: float = 1.5,
    seed: int = 0,
    console: Console | None = None,
) -> Probe:
    """Play ``states`` initial states with ``repeats`` noise seeds each, and with the noises that need no learning.

    Args:
        policy: the base policy.
        envs: from ``make_vec_env`` with ``gamma=1``.
        states: initial states, the seeds ``seed, seed + 1, ...``.
        repeats: noise seeds per state for ``N(0, I)``.
        bound: half-width of the agent's box.
        seed: of the first initial state.
        console: shows progress.
    """
    visited: list[Tensor] = []

    def score(name: str, **kwargs: Any) -> Evaluation:
        return evaluate(policy, envs, episodes=states, seed=seed, name=name, console=console, **kwargs)

    base = score("base", repeats=repeats, watch=lambda cond, *_: visited.append(cond.cpu()))
    return Probe(
        base=base,
        clipped=score("clipped", clip=bound),
        scaled=score("scaled", noise_scale=0.5),
        zero=score("zero", noise_scale=0.0),
        repeats=repeats,
        spread=_spread(policy, torch.cat(visited), seed),
    )


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
