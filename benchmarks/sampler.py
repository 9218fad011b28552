"""How much faster our sampling loop is than the plain loop over diffusers' scheduler.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py

CPU time of one thread; both variants run in turn in one process, and the table gives medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dsrl.networks import build_denoiser
from dsrl.sampler import Sampler, ddim_steps

ACTION_DIM, HORIZON, COND_DIM = 7, 4, 23
NETWORKS = {
    "MLP 512 x 3": {"type": "mlp", "hidden_dims": (512,) * 3},
    "MLP 256 x 5": {"type": "mlp", "hidden_dims": (256,) * 5},
    "U-Net 64 128": {"type": "unet", "down_dims": (64, 128)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="network evaluations per chunk")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 25, 256])
    parser.add_argument("--spacing", default="leading", choices=["leading", "trailing"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    table = Table("network", "batch", "diffusers ms", "dsrl ms", "ratio", "max difference")
    for name, config in NETWORKS.items():
        denoiser = build_denoiser({**config, "action_dim": ACTION_DIM, "horizon": HORIZON, "cond_dim": COND_DIM})
        denoiser.eval().requires_grad_(False)
        for batch in args.batches:
            row = compare(denoiser, batch, args.steps, args.rounds, args.spacing)
            table.add_row(name, str(batch), *row)
    Console(width=100).print(table)


def compare(denoiser: nn.Module, batch: int, n_steps: int, rounds: int, spacing: str) -> list[str]:
    """Milliseconds of both, their ratio, and how far the results are apart."""
    scheduler = DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    sampler = Sampler(ddim_steps(scheduler, n_steps, use_clipped_model_output=True))
    cond, noise = torch.randn(batch, COND_DIM), torch.randn(batch, HORIZON, ACTION_DIM)

    @torch.no_grad()
    def theirs() -> Tensor:
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser(x, t, cond), t, x, eta=0.0, use_clipped_model_output=True).prev_sample
        return x

    def ours() -> Tensor:
        return sampler(denoiser, cond, noise)

    difference = float((theirs() - ours()).abs().max())
    return [*in_turn(theirs, ours, rounds), f"{difference:.0e}"]


def in_turn(first: Callable[[], Tensor], second: Callable[[], Tensor], rounds: int) -> list[str]:
    """Milliseconds of both and how many times as long the first takes, medians over the rounds."""
    calls = max(1, round(0.05 / cpu_seconds(first, 2)))
    times = [(cpu_seconds(first, calls), cpu_seconds(second, calls)) for _ in range(rounds)]
    one, other = (1e3 * median(column) for column in zip(*times, strict=True))
    return [f"{one:.2f}", f"{other:.2f}", f"{median(a / b for a, b in times):.2f}"]


def cpu_seconds(call: Callable[[], Tensor], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
