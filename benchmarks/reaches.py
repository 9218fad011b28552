"""How far along its mean the averaged actor should go, along a run: ``python benchmarks/reaches.py TASK [--seed 0]``.

Trains noise-aliased SAC as ``dsrl finetune`` does, keeps the averaged actor every so many env steps, and plays its mean
times 1, 1.25, 1.5 and 2. A row of ``benchmarks/results/reaches.csv`` per actor.
"""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from tasks import FOLDER, TASKS, base_policy

from dsrl.algorithms import ALGORITHMS, discount_inside
from dsrl.callbacks import EnvSteps, StopWatch, WarmUp
from dsrl.config import FinetuneConfig
from dsrl.evaluate import evaluate, evaluation_envs
from dsrl.files import append_row
from dsrl.noise import NoiseSpace
from dsrl.pretrained import load_policy
from dsrl.steered import SteeredPolicy
from dsrl.wrappers import SteeredVecEnv, make_vec_env
from dsrl.wrappers.make import resolve_reward

REACHES = (1.0, 1.25, 1.5, 2.0)
FIRST_SEED = 777_000_000
"""of the episodes that the actors are played in, away from those of training and of every benchmark"""


class Keeper(BaseCallback):
    """Copies of the averaged actor."""

    def __init__(self, steps: EnvSteps, every: int):
        super().__init__()
        self.steps, self.every = steps, every
        self.kept: dict[int, Any] = {}

    def _on_step(self) -> bool:
        learned = self.model._n_updates > 0
        if learned and self.steps.env_steps >= (max(self.kept, default=0) // self.every + 1) * self.every:
            self.kept[self.steps.env_steps] = deepcopy(self.model.policy.average_actor)
        return True


def _trained(config: FinetuneConfig, envs: SteeredVecEnv, every: int) -> dict[int, Any]:
    """Env steps -> the averaged actor at that time."""
    policy, console = envs.steering.policy, Console(stderr=True)
    model = ALGORITHMS[config.algo].build(config, envs, policy.spec.n_action_steps, seed=config.seed, device="cpu")
    steps = EnvSteps(config.total_env_steps, StopWatch(), console)
    keeper = Keeper(steps, every)
    warm_up = WarmUp(config.warmup_episodes, steps, successes=config.warmup_successes)
    try:
        model.learn(config.total_env_steps, callback=[steps, warm_up, keeper])
    finally:
        steps.stop()
    return keeper.kept


def _success(policy: Any, actor: Any, reach: float, envs: Any, episodes: int) -> float:
    scaled = deepcopy(actor)
    with torch.no_grad():
        for parameter in scaled.mean.parameters():
            parameter.mul_(reach)
    return evaluate(
        SteeredPolicy(policy, scaled), envs, episodes=episodes, seed=FIRST_SEED, noise_scale=0.0
    ).success_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env-steps", type=int, default=12_000)
    parser.add_argument("--every", type=int, default=1_000, help="env steps between two actors")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--bases", type=Path, default=FOLDER, help="base policies, see tasks.py")
    args = parser.parse_args()
    policy = load_policy(base_policy(TASKS[args.task], args.bases), device="cpu")
    env = policy.spec.env
    config = FinetuneConfig(seed=args.seed, total_env_steps=args.env_steps, reward=resolve_reward(env, "auto"))
    bound = config.bound or ALGORITHMS[config.algo].bound(config)
    space = NoiseSpace.from_config(policy.spec.noise_shape, bound, config.noise)
    alike: dict[str, Any] = {"gamma": discount_inside(config), "reward": config.reward}
    train_envs = make_vec_env(env, policy.spec, config.n_envs, **alike)
    with evaluation_envs(policy, n_envs=1) as eval_envs:
        try:
            kept = _trained(config, SteeredVecEnv(train_envs, policy, space), args.every)
        finally:
            train_envs.close()
        for env_steps, actor in kept.items():
            rates = [_success(policy, actor, reach, eval_envs, args.episodes) for reach in REACHES]
            print(f"{args.task} {args.seed} {env_steps}", *(f"{rate:.2f}" for rate in rates), flush=True)
            row = {"task": args.task, "seed": args.seed, "env_steps": env_steps, "episodes": args.episodes}
            named = {f"x{reach:g}": rate for reach, rate in zip(REACHES, rates, strict=True)}
            append_row(Path(__file__).with_name("results") / "reaches.csv", row | named)


if __name__ == "__main__":
    main()
