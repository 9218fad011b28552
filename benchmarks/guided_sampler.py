"""What guidance costs: guided chunks against two batches of chunks without, which evaluate as many networks.

    OMP_NUM_THREADS=1 python benchmarks/guided_sampler.py

CPU time of one thread; variants run in turn in one process, and the table gives medians over the rounds. The two
batches are drawn one after another, or as one of twice the size.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from sampler import ACTION_DIM, COND_DIM, HORIZON, NETWORKS, in_turn
from torch import Tensor

from dsrl.anchored import AnchoredPolicy
from dsrl.cfgrl import LABEL_DIM, Guided, GuidedPolicy
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.guidance import Guidance
from dsrl.policy import PolicySpec

SPEC = PolicySpec({"state": (COND_DIM,)}, ACTION_DIM, HORIZON, HORIZON)
WEIGHT = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="of denoising per chunk")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 25, 256])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    table = Table("network", "policy", "batch", "guided ms", "two calls ms", "ratio", "one doubled ms", "ratio")
    for name, network in NETWORKS.items():
        base, labelled = (
            DiffusionPolicy(SPEC, DiffusionConfig(network, sampling_steps=args.steps, label_dim=dim)).freeze()
            for dim in (0, LABEL_DIM)
        )
        # two networks, and one in batches of twice the size
        guided: dict[str, Guided] = {
            "anchored": AnchoredPolicy(base, Guidance(WEIGHT)),
            "fresh": GuidedPolicy(labelled, Guidance(WEIGHT)),
        }
        for mode, policy in guided.items():
            for batch in args.batches:
                table.add_row(name, mode, str(batch), *compare(policy.freeze(), base, batch, args.rounds))
    Console(width=100).print(table)


def compare(policy: Guided, base: DiffusionPolicy, batch: int, rounds: int) -> list[str]:
    """Milliseconds, and ratios to both ways of evaluating two networks."""
    cond, noise = torch.randn(2 * batch, COND_DIM), torch.randn(2 * batch, *SPEC.noise_shape)
    halves = list(zip(cond.split(batch), noise.split(batch), strict=True))

    def guided() -> Tensor:
        return policy.decode(*halves[0])

    def two_calls() -> Tensor:
        return torch.cat([base.decode(*half) for half in halves])

    separate = in_turn(guided, two_calls, rounds)
    return [*separate, *in_turn(guided, lambda: base.decode(cond, noise), rounds)[1:]]


if __name__ == "__main__":
    main()
