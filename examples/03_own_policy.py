"""A frozen policy of one's own, steered with stock soft actor-critic: python examples/03_own_policy.py

It aims at where it believes the goal to be, which is somewhere else. The agent chooses its noise and nothing else.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from dsrl import PolicySpec, SteeredVecEnv, make_vec_env
from dsrl.policy import Obs, concat_obs


class DisplacedPolicy:
    """Flies towards the goal as it sees it, with the noise added to the velocity."""

    spec = PolicySpec(obs_shapes={"state": (4,)}, action_dim=2, horizon=4, n_action_steps=4, sha256="displaced-1")
    device = torch.device("cpu")
    cond_dim = 4
    offset = torch.tensor([0.3, -0.3])

    def encode(self, obs: Obs) -> Tensor:
        """``(B, 1, 4)`` -> ``(B, 4)``: position and goal."""
        return concat_obs(obs, self.spec).flatten(1)

    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, 4), (B, 4, 2)`` -> velocities ``(B, 4, 2)``; the same noise always gives the same chunk."""
        position, goal = cond[:, None, :2], cond[:, None, 2:]
        return (2 * (goal + self.offset - position) + noise).clamp(-1, 1)

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)


class Prior:
    """The base policy as a player: noise from ``N(0, I)``, clipped to the box."""

    def __init__(self, space):
        self.space = space

    def predict(self, obs, state=None, **_):
        """The noise for a batch of observations, as an agent of stable-baselines3 gives it."""
        return np.stack([self.space.sample() for _ in obs]), state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--decisions", type=int, default=1_500, help="one is a chunk of four env steps")
    parser.add_argument("--test-episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/own_policy.zip"))
    args = parser.parse_args()

    policy, gamma = DisplacedPolicy(), 0.99
    envs = make_vec_env("dsrl/PointReach-v0", policy.spec, n_envs=1, gamma=gamma, seed=args.seed)
    envs = SteeredVecEnv(envs, policy)
    network = {"net_arch": [64, 64]}
    common = {"ent_coef": 0.001, "learning_rate": 1e-3, "learning_starts": 200, "policy_kwargs": network}
    agent = SAC("MlpPolicy", envs, gamma=gamma**policy.spec.n_action_steps, seed=args.seed, **common)

    def success(player) -> float:
        envs.seed(1_000_000)  # the same starts for both; the reward is 1 on arrival, so the return is success
        return float(evaluate_policy(player, envs, args.test_episodes, warn=False)[0])

    before = success(Prior(envs.action_space))
    agent.learn(args.decisions)
    after = success(agent)
    agent.save(args.out)
    print(f"Success {before:.0%} with the base policy's noise, {after:.0%} with the noise of the agent in {args.out}.")


if __name__ == "__main__":
    main()
