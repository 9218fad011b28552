"""How long a robomimic checkpoint of the usual size takes to load, and how much memory it holds.

    OMP_NUM_THREADS=1 python benchmarks/loading.py

The file is written here: robomimic's own sizes, which its configs cannot change (channels 256, 512 and 1024, kernel 5),
with random weights. It is loaded in a process of its own, which prints CPU and wall time of ``load_policy``, without
the imports, and by how much its memory grew: what it keeps, and the peak on the way. The peak counts pages that are
mapped from the file; they are the system's cache and can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from dsrl.networks import build_denoiser
from dsrl.pretrained import load_policy

SHAPES = {"object": [10], "robot0_eef_pos": [3], "robot0_eef_quat": [4], "robot0_gripper_qpos": [2]}
ACTION_DIM, HORIZON, N_OBS_STEPS = 7, 16, 2
NETWORK = {"type": "unet", "down_dims": (256, 512, 1024), "time_dim": 256, "kernel_size": 5, "n_groups": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="DDIM steps of the file")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(measure(args.load)))
        return
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "model.pth", args.steps)
        size = path.stat().st_size / 1e6
        for _ in range(args.rounds):
            command = [sys.executable, __file__, "--load", str(path)]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            kept, peak = facts["kept"] / size, facts["peak"] / size
            console.print(
                f"{size:.0f} MB: {facts['cpu']:.2f} s of CPU, {facts['wall']:.2f} s; keeps {kept:.2f} times "
                f"the file in memory, {peak:.2f} at the peak, with the mapped file"
            )


def write(path: Path, steps: int) -> Path:
    """A file as robomimic 0.5 writes it, with one set of weights."""
    torch.manual_seed(0)
    sizes = {"action_dim": ACTION_DIM, "horizon": HORIZON, "cond_dim": N_OBS_STEPS * 19}
    network = build_denoiser({**NETWORK, **sizes})
    sampler = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
    sampler |= {"prediction_type": "epsilon", "set_alpha_to_one": True, "steps_offset": 0}
    config = {
        "algo": {
            "horizon": {"observation_horizon": N_OBS_STEPS, "action_horizon": 8, "prediction_horizon": HORIZON},
            "ddpm": {**sampler, "enabled": False, "num_inference_timesteps": 100},
            "ddim": {**sampler, "enabled": True, "num_inference_timesteps": steps},
        },
        "observation": {"modalities": {"obs": {"low_dim": list(SHAPES), "rgb": []}}},
        "train": {"hdf5_normalize_obs": False},
    }
    weights = {f"policy.noise_pred_net.{name}": tensor for name, tensor in network.state_dict().items()}
    content = {
        "model": {"nets": weights, "ema": None},
        "config": json.dumps(config),
        "algo_name": "diffusion_policy",
        "shape_metadata": {"ac_dim": ACTION_DIM, "all_shapes": SHAPES},
        "variable_state": {"epoch": 1},
    }
    torch.save(content, path)
    return path


def measure(path: Path) -> dict[str, float]:
    """Seconds, and megabytes above what the process had before."""
    torch.set_num_threads(1)
    before, cpu, wall = memory(), time.process_time(), time.perf_counter()
    policy = load_policy(path, device="cpu")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = memory()
    assert policy.spec.action_dim == ACTION_DIM
    return {
        "cpu": cpu,
        "wall": wall,
        "kept": after["VmRSS"] - before["VmRSS"],
        "peak": after["VmHWM"] - before["VmRSS"],
    }


def memory() -> dict[str, float]:
    """Megabytes by name, as Linux counts them."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return {
        name: int(rest.split()[0]) / 1e3 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }


if __name__ == "__main__":
    main()
