"""What synthetic windows are worth: likely under their target, possible in their environment, right about success."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsrl.env_spec import EnvSpec
from dsrl.mlp import PlainMLP
from dsrl.policy_guidance import Target
from dsrl.trajectory_windows import Windows

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``(N, Do), (N, Da)`` -> next observations ``(N, Do)``, rewards ``(N,)``, terminations ``(N,)`` bool"""
LIMIT = 0.99
"""of the way from the centre to the limit of an action: from here on it counts as being at the limit"""


@dataclass(frozen=True)
class Diagnostics:
    """Of some windows; NaN where there is nothing to say."""

    log_prob: float
    """mean log-probability per env step under the target"""
    dynamics_mse: float
    """of the next observation against what the environment, or a model of it, makes of the same action; squared
    standard deviations of the observations, mean over their numbers"""
    reward_mse: float
    """of the reward, in squared standard deviations of the recorded rewards"""
    success_precision: float
    """share of the env steps with the larger of two rewards that really earn it; sparse rewards only"""
    success_recall: float
    """share of the env steps that really earn it that say so"""
    termination_agreement: float
    """share of the env steps that end, or go on, as they should"""
    at_limit: float
    """share of the numbers of all actions that lie at a limit"""
    terminated: float
    """share of the windows that end in a termination"""

    def metrics(self, prefix: str) -> dict[str, float]:
        """Those that say something, by name."""
        found = {f"{prefix}/{entry.name}": float(getattr(self, entry.name)) for entry in fields(self)}
        return {name: value for name, value in found.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Scales:
    """Of the recorded data."""

    obs: Tensor
    """standard deviations, ``(Do,)``"""
    reward: float
    reward_values: tuple[float, float] | None
    low: Tensor
    high: Tensor


def scales_of(windows: Windows, reward_values: tuple[float, float] | None, low: Tensor, high: Tensor) -> Scales:
    """Measured on recorded windows."""
    std = windows.obs.flatten(0, 1).std(dim=0)
    # a number that never changes in the data must not divide by nothing
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return Scales(std, max(float(windows.reward.std()), 1e-6), reward_values, low, high)


@torch.no_grad()
def diagnose(
    windows: Windows, target: Target | None, step: Step | None, scales: Scales, most: int = 2_000, seed: int = 0
) -> Diagnostics:
    """Look at windows; the dynamics at ``most`` of their env steps, drawn at random.

    Args:
        windows: synthetic ones, or recorded ones to compare with.
        target: whose log-probability counts.
        step: the environment, or a model of it.
        scales: of the recorded data.
        most: env steps that are played.
        seed: of the draw.
    """
    alive = windows.alive()
    unit = (windows.action - (scales.low + scales.high) / 2) / ((scales.high - scales.low) / 2)
    logs = float("nan") if target is None else float(target.log_prob(windows.obs, windows.action)[alive].mean())
    rows = alive.flatten().nonzero().squeeze(1)
    generator = torch.Generator(device=rows.device).manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:most]]
    return Diagnostics(
        logs,
        **_dynamics(windows, rows, step, scales),
        at_limit=float((unit.abs() > LIMIT)[alive].float().mean()),
        terminated=float(windows.terminated.any(dim=1).float().mean()),
    )


def _dynamics(windows: Windows, rows: Tensor, step: Step | None, scales: Scales) -> dict[str, float]:
    names = ("dynamics_mse", "reward_mse", "success_precision", "success_recall", "termination_agreement")
    if step is None:
        return dict.fromkeys(names, float("nan"))
    obs, after = (part.flatten(0, 1)[rows] for part in (windows.obs[:, :-1], windows.obs[:, 1:]))
    action, reward = windows.action.flatten(0, 1)[rows], windows.reward.flatten()[rows]
    real_after, real_reward, real_end = step(obs, action)
    precision = recall = float("nan")
    if scales.reward_values is not None:
        middle = sum(scales.reward_values) / 2
        claimed, earned = reward > middle, real_reward > middle
        both = float((claimed & earned).sum())
        precision = both / float(claimed.sum()) if claimed.any() else float("nan")
        recall = both / float(earned.sum()) if earned.any() else float("nan")
    values = (
        float(((after - real_after) / scales.obs).square().mean()),
        float(((reward - real_reward) / scales.reward).square().mean()),
        precision,
        recall,
        float((windows.terminated.flatten()[rows] == real_end).float().mean()),
    )
    return dict(zip(names, values, strict=True))


def simulator_step(env: EnvSpec | None, reward: str, recorded: Windows, scales: Scales) -> Step | None:
    """The environment itself, where a state can be restored from an observation.

    It must repeat what was recorded: a simulator whose state the observation does not fix is not used.
    """
    from dsrl.wrappers.one_step import one_step

    simulator = one_step(env, reward)
    if simulator is None or simulator.obs_dim != recorded.obs.shape[-1]:
        return None

    def step(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after, rewards, ends = simulator(obs.cpu().numpy(), action.cpu().numpy())
        arrays: tuple[Any, ...] = (after, rewards.astype(np.float32), ends)
        return tuple(torch.from_numpy(values).to(obs.device) for values in arrays)  # type: ignore[return-value]

    check = diagnose(recorded, None, step, scales, most=100)
    return step if check.dynamics_mse < 1e-3 else None


def fitted_step(recorded: Windows, scales: Scales, steps: int = 1_500, seed: int = 0) -> Step:
    """A model of one env step, fitted to recorded windows, for environments that cannot be restored."""
    obs, after = recorded.obs[:, :-1].flatten(0, 1), recorded.obs[:, 1:].flatten(0, 1)
    action, reward = recorded.action.flatten(0, 1), recorded.reward.flatten()
    end = recorded.terminated.flatten().float()
    center, change = obs.mean(dim=0), (after - obs).std(dim=0).clamp_min(1e-6)
    mean_reward, device = reward.mean(), obs.device

    def inputs(obs: Tensor, action: Tensor) -> Tensor:
        return torch.cat([(obs - center) / scales.obs, action], dim=-1)

    goal = torch.cat([(after - obs) / change, ((reward - mean_reward) / scales.reward)[:, None]], dim=-1)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = PlainMLP([obs.shape[-1] + action.shape[-1], 256, 256, goal.shape[-1] + 1]).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(obs), (256,), generator=generator, device=device)
            out = network(inputs(obs[rows], action[rows]))
            loss = F.mse_loss(out[:, :-1], goal[rows]) + F.binary_cross_entropy_with_logits(out[:, -1], end[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def step(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = network(inputs(obs, action))
        return obs + out[:, :-2] * change, out[:, -2] * scales.reward + mean_reward, out[:, -1] > 0

    return step
