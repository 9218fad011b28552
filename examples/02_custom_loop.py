"""A learner of one's own over SteeredEnv: an evolution strategy on a linear map from observation to noise.

    python examples/02_custom_loop.py

No stable-baselines3 and no command line: the steered environment is a gymnasium environment whose action is noise.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

from dsrl import SteeredEnv
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import chunked, make_env


def features(obs: np.ndarray) -> np.ndarray:
    """What the linear map sees: the observation, its signs, and a constant."""
    return np.concatenate([obs, np.sign(obs), [1.0]])


def play(env: gym.Env, weights: np.ndarray | None, seeds: range) -> np.ndarray:
    """Success of every episode; without weights the noise is the base policy's own."""
    success = np.zeros(len(seeds))
    for episode, seed in enumerate(seeds):
        env.action_space.seed(seed)
        obs, _ = env.reset(seed=seed)
        done = False
        while not done:
            # action_space.sample() is N(0, I) clipped to the box: the base policy
            noise = env.action_space.sample() if weights is None else 1.5 * np.tanh(weights @ features(obs))
            obs, _, terminated, truncated, info = env.step(noise.astype(np.float32))
            done = terminated or truncated
        success[episode] = info["is_success"]
    return success


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=8, help="mirrored pairs of candidates per generation")
    parser.add_argument("--episodes", type=int, default=12, help="per candidate")
    parser.add_argument("--test-episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/custom_loop.npy"))
    args = parser.parse_args()

    policy = ToyPolicy()
    env = SteeredEnv(chunked(make_env("dsrl/PointReach-v0"), policy.spec), policy)
    rng = np.random.default_rng(args.seed)
    weights = np.zeros((env.action_space.shape[0], len(features(env.reset(seed=0)[0]))))
    for generation in range(args.generations):
        # all candidates of a generation start from the same states, so that luck does not choose
        first = 1_000 + generation * args.episodes
        seeds = range(first, first + args.episodes)
        step = np.zeros_like(weights)
        for _ in range(args.pairs):
            direction = rng.standard_normal(weights.shape)
            up, down = (play(env, weights + sign * 0.3 * direction, seeds).mean() for sign in (1, -1))
            step += (up - down) * direction
        weights += step / (np.linalg.norm(step) + 1e-8)

    test = range(1_000_000, 1_000_000 + args.test_episodes)
    before, after = play(env, None, test).mean(), play(env, weights, test).mean()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(args.out, weights)
    print(f"Success {before:.0%} with the base policy's noise, {after:.0%} with the noise that was found.")


if __name__ == "__main__":
    main()
