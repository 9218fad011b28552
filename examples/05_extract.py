"""Improve a policy from what was recorded, without a further env step: classifier-free guidance (CFGRL).

    python examples/05_extract.py

An imperfect policy plays, is cloned, and learns beside the clone what its good decisions have in common.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dsrl import load_policy, make_env
from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.evaluate import evaluation_envs
from dsrl.extract import ExtractConfig, extract
from dsrl.guidance_curve import guidance_curve
from dsrl.pretrain import PretrainConfig, pretrain
from dsrl.pretrained.toy import ToyPolicy
from dsrl.values import ValuesConfig
from dsrl.wrappers import resolve_env_spec

ENV = "dsrl/PointReach-v0"


def play(policy: ToyPolicy, seed: int, generator: torch.Generator) -> Trajectory:
    """One episode; it terminates on arrival, and is cut off by the time limit otherwise."""
    env = make_env(ENV)
    seen, actions, rewards, terminated, done = [env.reset(seed=seed)[0]], [], [], [], False
    while not done:
        noise = torch.randn(1, *policy.spec.noise_shape, generator=generator)
        for action in policy.sample(torch.from_numpy(seen[-1])[None, None], noise)[0].numpy():
            obs, reward, arrived, timeout, _ = env.step(action)
            seen.append(obs)
            actions.append(action)
            rewards.append(float(reward))
            terminated.append(arrived)
            if done := arrived or timeout:
                break
    states = np.stack(seen)
    before, after = {"state": states[:-1]}, {"state": states[1:]}
    return Trajectory(before, after, np.stack(actions), np.array(rewards), np.array(terminated), any(terminated))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=150, help="recorded")
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps of each network")
    parser.add_argument("--test-episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/extract"))
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(args.seed)
    episodes = tuple(play(ToyPolicy(), 1_000 * (1 + args.seed) + i, generator) for i in range(args.episodes))
    data = args.out / "data.hdf5"
    write_hdf5(data, Trajectories(episodes, {"state": (4,)}, resolve_env_spec(ENV)))

    training = {"steps": args.steps, "seed": args.seed, "overwrite": True}
    small = {"hidden_dims": (64, 64, 64), "sampling_steps": 4, "eval_episodes": 0}
    base = pretrain(PretrainConfig(data, args.out / "base.pt", **small, **training))
    values = ValuesConfig(steps=args.steps, hidden_dims=(64, 64), lr=1e-3, tau=0.03)
    guided = extract(
        ExtractConfig(base, data, args.out / "guided.pt", values=values, run_dir=args.out / "run", **training)
    )

    policy = load_policy(guided)
    with evaluation_envs(policy) as envs:
        seeds = {"seed": 1_000_000, "choice_seed": 2_000_000}
        curve = guidance_curve(policy, envs, (0.0, 0.5, 1.0, 2.0), episodes=args.test_episodes, **seeds)
    before, best = curve.points[0].reported, curve.recommended
    print(
        f"Weight {best.weight:g} brought the success rate from {before.success_rate:.0%} to {best.reported.describe()}."
    )


if __name__ == "__main__":
    main()
