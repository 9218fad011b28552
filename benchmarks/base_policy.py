"""Make the policy that ships in ``pretrained/checkpoints/lift.pt``: ``python benchmarks/base_policy.py OUT.pt``.

Two operators demonstrate robosuite's Lift. One is calibrated, the other sees the cube 5 cm away from where it is and
never lifts it; which one acts is drawn per episode. Their failures are kept, so the policy that clones them hesitates
between two ways of reaching, and the noise decides. About four minutes on one core.
"""

import argparse
import tempfile
from pathlib import Path

from dsrl.collect import CollectConfig, collect
from dsrl.pretrain import PretrainConfig, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=6000, help="gradient steps of behaviour cloning")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demos = collect(
            CollectConfig(
                env="robosuite/Lift",
                out=Path(folder) / "lift.hdf5",
                episodes=args.episodes,
                seed=3,
                action_noise=0.1,
                p_calibrated=0.48,
                offset=(0.05, 0.0, 0.0),
                physics_timestep=0.005,
                max_episode_steps=80,
            )
        )
        pretrain(PretrainConfig(dataset=demos, out=args.out, steps=args.steps, eval_episodes=0, overwrite=True))


if __name__ == "__main__":
    main()
