"""Steer a frozen diffusion policy with soft actor-critic, from Python.

    python examples/01_finetune.py --total-env-steps 14000

Without --base-policy it takes the policy that ships with dsrl, which lifts a cube in robosuite (pip install
'dsrl-steering[robosuite]').
"""

import argparse
from pathlib import Path

from dsrl.config import FinetuneConfig
from dsrl.finetune import finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-policy", type=Path, help="checkpoint of the policy to steer")
    parser.add_argument("--env", help="left out: the environment that the checkpoint was made for")
    parser.add_argument("--total-env-steps", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-episodes", type=int, default=50)
    parser.add_argument("--run-dir", type=Path, help="left out: a new folder in runs/")
    args = parser.parse_args()

    config = FinetuneConfig(
        base_policy=args.base_policy,
        env=args.env,
        run_dir=args.run_dir,
        seed=args.seed,
        total_env_steps=args.total_env_steps,
        # the base policy plays these first: the agent learns from them before it acts
        warmup_episodes=20,
        eval_interval=max(1, args.total_env_steps // 8),
        eval_episodes=args.eval_episodes,
        final_episodes=2 * args.eval_episodes,
        probe_episodes=min(16, args.eval_episodes),
    )
    result = finetune(config)
    if result.comparison is not None:
        difference, low, high, _ = result.comparison.gain()
        interval = f"95 % interval {100 * low:+.0f} to {100 * high:+.0f}"
        print(
            f"Steering changed the success rate by {100 * difference:+.0f} points ({interval}); see {result.run_dir}."
        )


# simulators run in processes of their own, which import this file: keep the guard
if __name__ == "__main__":
    main()
