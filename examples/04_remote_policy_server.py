"""A policy in a process of its own: serve it, connect to it, compare it with the local one, steer it over the wire.

    python examples/04_remote_policy_server.py                             # starts a server itself, and stops it
    python examples/04_remote_policy_server.py --serve --port 8765         # only serves, until Ctrl-C
    dsrl finetune --base-policy ws://localhost:8765                        # ... which is steered from anywhere

Needs pip install 'dsrl-steering[remote]' on both sides, and [robosuite] for the policy that ships with dsrl.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from stable_baselines3 import SAC

from dsrl import SteeredVecEnv, load_policy, make_vec_env
from dsrl.pretrained import DEFAULT_CHECKPOINT
from dsrl.pretrained.serve import serve


@contextmanager
def second_process(checkpoint: Path) -> Iterator[str]:
    """The address that a server in another process prints; it is stopped afterwards."""
    command = [sys.executable, __file__, "--serve", "--port", "0", "--base-policy", str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0, "the server did not end cleanly"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="only serve")
    parser.add_argument("--base-policy", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument(
        "--host", default="localhost", help="0.0.0.0 is reached from other machines, without a password"
    )
    parser.add_argument("--task", help="the instruction, where the policy reads one")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    parser.add_argument("--decisions", type=int, default=100, help="chunks to steer")
    parser.add_argument("--out", type=Path, default=Path("runs/remote_policy.zip"))
    args = parser.parse_args()
    if args.serve:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
        policy = load_policy(args.base_policy, task=args.task)
        return serve(policy, args.host, args.port, ready=partial(print, flush=True))

    with second_process(args.base_policy) as address:
        local, remote = load_policy(args.base_policy, device="cpu"), load_policy(address, device="cpu")
        obs = torch.randn(8, remote.spec.n_obs_steps, remote.spec.obs_dim)
        noise = torch.randn(8, *remote.spec.noise_shape)
        difference = (remote.sample(obs, noise) - local.sample(obs, noise)).abs().max()
        envs = SteeredVecEnv(make_vec_env(remote.spec.env, remote.spec, n_envs=2), remote)
        agent = SAC("MlpPolicy", envs, learning_starts=20, policy_kwargs={"net_arch": [64, 64]})
        agent.learn(args.decisions)
        agent.save(args.out)
        envs.close()
    print(f"Over the wire chunks differ by {difference:.1e}; steered {args.decisions} of them, agent in {args.out}.")


if __name__ == "__main__":
    main()
