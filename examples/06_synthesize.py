"""Data near a policy that never played: a diffusion model of what others did, guided by that policy.

    python examples/06_synthesize.py

A clumsy operator plays. The windows that are drawn have actions that the target policy finds likelier, and the
simulator says how wrong their dynamics are.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dsrl import make_env
from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.policy_guidance import PolicyGuidance
from dsrl.pretrained import save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.synthesize import SynthesizeConfig, synthesize
from dsrl.wrappers import resolve_env_spec

ENV = "dsrl/PointReach-v0"


def play(seed: int, rng: np.random.Generator) -> Trajectory:
    """One episode of an operator who heads for the goal, drifts one way, and trembles."""
    env = make_env(ENV)
    drift = rng.uniform(-0.5, 0.5, 2)
    seen, actions, rewards, terminated, done = [env.reset(seed=seed)[0]], [], [], [], False
    while not done:
        towards = seen[-1][2:] - seen[-1][:2]
        actions.append(np.clip(0.6 * towards + drift + 0.4 * rng.standard_normal(2), -1, 1).astype(np.float32))
        obs, reward, arrived, timeout, _ = env.step(actions[-1])
        seen.append(obs)
        rewards.append(float(reward))
        terminated.append(arrived)
        done = arrived or timeout
    states = np.stack(seen)
    before, after = {"state": states[:-1]}, {"state": states[1:]}
    return Trajectory(before, after, np.stack(actions), np.array(rewards), np.array(terminated))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="recorded")
    parser.add_argument("--steps", type=int, default=1500, help="gradient steps of the trajectory model")
    parser.add_argument("--windows", type=int, default=512, help="drawn with every weight")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 3.0, 10.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/synthesize"))
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    episodes = tuple(play(1_000 * (1 + args.seed) + i, rng) for i in range(args.episodes))
    args.out.mkdir(parents=True, exist_ok=True)
    data, target = args.out / "data.hdf5", save_policy(ToyPolicy(), args.out / "target.pt")
    write_hdf5(data, Trajectories(episodes, {"state": (4,)}, resolve_env_spec(ENV)))

    model, found = None, {}
    for weight in args.weights:
        out = args.out / f"weight_{weight:g}.hdf5"
        guidance = PolicyGuidance(weight)
        synthesize(
            SynthesizeConfig(
                data, target, out, model=model, guidance=guidance, windows=args.windows, preset="tiny",
                steps=args.steps, seed=args.seed, overwrite=True,
            )
        )  # fmt: skip
        model = out.with_suffix(".model")  # one model for all weights
        found[weight] = json.loads(out.with_suffix(".json").read_text())["synthetic"]
    words = "weight {:g}: log-probability {:.2f}, dynamics error {:.5f}"
    print("; ".join(words.format(weight, worth["log_prob"], worth["dynamics_mse"]) for weight, worth in found.items()))


if __name__ == "__main__":
    main()
