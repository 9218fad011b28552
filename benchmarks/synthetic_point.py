"""A point mass whose dynamics are known, for the mechanism of policy guidance and for fitted Q evaluation.

Everything is a batch of tensors. State ``(x, y, vx, vy)``, action: force in ``[-1, 1]^2``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsrl.critics import CriticEnsemble
from dsrl.data import Trajectories, Trajectory
from dsrl.policy import PolicySpec
from dsrl.policy_targets import GaussianTarget
from dsrl.trajectory_windows import Windows

GAMMA = 0.95
STEPS = 40
"""of an episode, which then is cut off"""
SPEC = PolicySpec({"state": (4,)}, action_dim=2, horizon=1, n_action_steps=1)
STD = 0.1
"""of the target policy"""


def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(N, 4), (N, 2)`` -> the next state, the reward ``(N,)``, and that nothing ends."""
    place, speed = state.split(2, dim=-1)
    speed = 0.95 * speed + 0.2 * action.clamp(-1, 1)
    place = place + 0.2 * speed
    reward = -place.square().sum(-1) - 0.1 * action.clamp(-1, 1).square().sum(-1)
    return torch.cat([place, speed], dim=-1), reward, torch.zeros(len(state), dtype=torch.bool)


def target_mean(state: Tensor) -> Tensor:
    """What the target policy does on average, ``(..., 4)`` -> ``(..., 2)``."""
    return (-1.5 * state[..., :2] - 1.2 * state[..., 2:]).clamp(-1, 1)


def target() -> GaussianTarget:
    """The target policy: a stiff spring and a damper, far from what the data do."""
    return GaussianTarget(SPEC, lambda obs: (target_mean(obs), torch.tensor(STD)))


def record(episodes: int, seed: int) -> Trajectories:
    """Springs and dampers of random, mostly too small strength, with a lot of noise."""
    generator = torch.Generator().manual_seed(seed)
    gains = torch.rand(episodes, 2, generator=generator) * torch.tensor([1.0, 0.5]) - torch.tensor([0.2, 0.0])
    state = _starts(episodes, generator)
    states, actions, rewards = [state], [], []
    for _ in range(STEPS):
        action = -gains[:, :1] * state[:, :2] - gains[:, 1:] * state[:, 2:]
        action = (action + 0.4 * torch.randn(episodes, 2, generator=generator)).clamp(-1, 1)
        state, reward, _ = step(state, action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    seen, done, earned = (torch.stack(part, dim=1).numpy() for part in (states, actions, rewards))
    flags = np.zeros(STEPS, bool)
    columns = zip(seen, done, earned, strict=True)
    played = [Trajectory({"state": s[:-1]}, {"state": s[1:]}, a, r, flags) for s, a, r in columns]
    return Trajectories(tuple(played), {"state": (4,)})


def _starts(count: int, generator: torch.Generator) -> Tensor:
    state = torch.zeros(count, 4)
    state[:, :2] = 2 * torch.rand(count, 2, generator=generator) - 1
    return state


@dataclass(frozen=True)
class Truth:
    """Where the target policy goes, and what it is worth there."""

    state: Tensor
    action: Tensor
    value: Tensor
    """``Q(state, action)``, discounted, by roll-outs"""

    @classmethod
    def measure(cls, seed: int, starts: int = 64, repeats: int = 8, horizon: int = 150) -> "Truth":
        """Along roll-outs of the target policy, at every fourth env step."""
        generator = torch.Generator().manual_seed(10_000 + seed)
        state, states, actions = _starts(starts, generator), [], []
        for _ in range(STEPS):
            action = _act(state, generator)
            states.append(state)
            actions.append(action)
            state = step(state, action)[0]
        at, done = torch.cat(states[::4]), torch.cat(actions[::4])
        state, action = at.repeat(repeats, 1), done.repeat(repeats, 1)
        value = torch.zeros(len(state))
        for t in range(horizon):
            state, reward, _ = step(state, action)
            value += GAMMA**t * reward
            action = _act(state, generator)
        return cls(at, done, value.reshape(repeats, -1).mean(dim=0))


def _act(state: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(state), 2, generator=generator)
    return (target_mean(state) + STD * noise).clamp(-1, 1)


def fitted_q(parts: list[Windows], steps: int, seed: int) -> CriticEnsemble:
    """Fitted Q evaluation of the target policy on one-step transitions, an equal share of a batch from each part."""
    generator = torch.Generator().manual_seed(seed)
    columns = [_transitions(part) for part in parts]
    torch.manual_seed(seed)
    critic, slow = (CriticEnsemble(4, 2, (128, 128), 1) for _ in range(2))
    slow.load_state_dict(critic.state_dict())
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(steps):
        picked = []
        for part in columns:
            rows = torch.randint(len(part[0]), (256 // len(columns),), generator=generator)
            picked.append([column[rows] for column in part])
        state, action, reward, after = (torch.cat(column) for column in zip(*picked, strict=True))
        with torch.no_grad():
            goal = reward + GAMMA * slow(after, _act(after, generator))[0]
        loss = (critic(state, action)[0] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.parameters()), list(critic.parameters()), 0.01)
    return critic


def _transitions(windows: Windows) -> tuple[Tensor, ...]:
    obs = windows.obs
    return obs[:, :-1].flatten(0, 1), windows.action.flatten(0, 1), windows.reward.flatten(), obs[:, 1:].flatten(0, 1)
