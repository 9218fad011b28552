"""How much faster the update of noise-aliased SAC is here than one written straight from the paper.

    OMP_NUM_THREADS=1 python benchmarks/update.py

One thread, CPU time; all variants run in turn in one process. A gradient step counts with its share of distillation,
which is published as 10 distillation steps after 20 gradient steps. The table, ``benchmarks/results/update.csv``, gives
medians over the rounds and, in brackets, the smallest and the largest. Of the wide networks and the U-Net only 2 + 1
steps at a time are timed, so the time of a whole ``train()`` is left out there, and the U-Net's batch is 32.

- reference: ``benchmarks/reference_update.py``.
- exact: the preset ``reference`` of dsrl, on the same weights, batches and random numbers; ``loss_difference`` is the
  largest of the losses of critic, actor and distillation and of the temperature over five steps, relative to the loss
  (or to 1, where that is larger).
- pooled: the default update of dsrl with networks and batch of the same size. It decodes nothing but the pools of new
  observations, whose time is included: one decision of each of four environments per 20 gradient steps.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from diffusers import DDIMScheduler
from gymnasium import spaces
from reference_update import Critics, Draws, ReferenceUpdate, Sizes
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from dsrl.algorithms import build_na
from dsrl.config import FinetuneConfig
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.noise import NoiseSpace
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.policy import PolicySpec
from dsrl.pools import Pool
from dsrl.presets import preset
from dsrl.wrappers.steered import SteeredVecEnv

OBS_DIM, ACTION_DIM, HORIZON = 19, 7, 4
N_ENVS, ROWS, COMPARED_STEPS, POOL_SIZE = 4, 4_000, 5, 8
GRADIENT_STEPS, DISTILL_STEPS = 20, 10
MLP = {"type": "mlp", "hidden_dims": (512,) * 3}
UNET = {"type": "unet", "down_dims": (256, 512, 1024)}


class Case(NamedTuple):
    """What is timed, and the speed-up that the project aims at."""

    name: str
    network: Mapping[str, Any]
    ddim_steps: int
    hidden: tuple[int, ...]
    batch: int
    gradient_steps: int
    """of one timed call; half as many distillation steps follow"""
    rounds: int
    targets: Mapping[str, float]


CASES = (
    Case("mlp-128", MLP, 5, (128,) * 3, 256, 20, 7, {"exact": 1.25, "pooled": 2.5}),
    Case("mlp-128-8-steps", MLP, 8, (128,) * 3, 256, 20, 7, {"exact": 1.25, "pooled": 2.5}),
    Case("mlp-2048", MLP, 5, (2048,) * 3, 256, 2, 5, {"exact": 1.1}),
    Case("unet-128", UNET, 8, (128,) * 3, 32, 2, 2, {"pooled": 20.0}),
)


class Idle(gymnasium.Env):
    """An environment that is never stepped, with Lift's shapes."""

    observation_space = spaces.Box(-np.inf, np.inf, (1, OBS_DIM), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (HORIZON, ACTION_DIM), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "update.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if case.name in args.cases:
            rows += measure(case if args.rounds is None else case._replace(rounds=args.rounds))
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=170).print(table)


# -- the three variants -----------------------------------------------------------------------------------------------


def measure(case: Case) -> list[dict[str, Any]]:
    """One row per variant."""
    torch.manual_seed(0)
    np.random.seed(0)
    policy = frozen_policy(case)
    data = replay_data()
    reference = reference_update(case, policy, data)
    exact, pooled = agent(case, policy, data, pooled=False), agent(case, policy, data, pooled=True)
    copy_weights(reference, exact)
    difference = largest_difference(reference, exact, case.batch) if case.network is MLP else None

    steps, cond = case.gradient_steps, torch.as_tensor(data["obs"][:N_ENVS])
    exact.distill_after = steps * DISTILL_STEPS // GRADIENT_STEPS
    calls: dict[str, Callable[[], float]] = {
        "reference": lambda: cpu_ms(lambda: reference.train(steps, case.batch, exact.distill_after)) / steps,
        "exact": lambda: cpu_ms(lambda: exact.train(steps, case.batch)) / steps,
        "pooled": lambda: (
            cpu_ms(lambda: pooled.train(steps, case.batch)) / steps
            + cpu_ms(lambda: pooled.decoder(cond)) / GRADIENT_STEPS
        ),
    }
    for call in calls.values():
        call()
    times = [{name: call() for name, call in calls.items()} for _ in range(case.rounds)]
    return [row(case, name, times, difference if name == "exact" else None) for name in calls]


def row(case: Case, variant: str, times: Sequence[Mapping[str, float]], difference: float | None) -> dict[str, Any]:
    own = [time[variant] for time in times]
    ratios = [time["reference"] / time[variant] for time in times]
    return {
        "case": case.name,
        "ddim_steps": case.ddim_steps,
        "width": f"{case.hidden[0]}x{len(case.hidden)}",
        "batch": case.batch,
        "variant": variant,
        "rounds": case.rounds,
        "ms_per_gradient_step": spread(own, 2),
        "ms_per_train": spread([GRADIENT_STEPS * ms for ms in own], 0) if case.gradient_steps == GRADIENT_STEPS else "",
        "speed_up": spread(ratios, 2),
        "target": case.targets.get(variant, ""),
        "loss_difference": "" if difference is None else f"{difference:.1e}",
    }


def frozen_policy(case: Case) -> DiffusionPolicy:
    spec = PolicySpec(obs_shapes={"state": (OBS_DIM,)}, action_dim=ACTION_DIM, horizon=HORIZON, n_action_steps=HORIZON)
    config = DiffusionConfig(network=case.network, sampling_steps=case.ddim_steps, timestep_spacing="leading")
    return DiffusionPolicy(spec, config).freeze()


def replay_data() -> dict[str, np.ndarray]:
    """Transitions as they might be: rewards of -4 .. 0, one in twenty terminated."""
    random = np.random.default_rng(0)
    columns = {
        "obs": random.standard_normal((ROWS, OBS_DIM)),
        "next_obs": random.standard_normal((ROWS, OBS_DIM)),
        "chunk": random.uniform(-1, 1, (ROWS, HORIZON * ACTION_DIM)),
        "reward": random.integers(-4, 1, (ROWS, 1)),
        "terminated": random.random((ROWS, 1)) < 0.05,
    }
    return {name: values.astype(np.float32) for name, values in columns.items()}


def reference_update(case: Case, policy: DiffusionPolicy, data: Mapping[str, np.ndarray]) -> ReferenceUpdate:
    scheduler = DDIMScheduler(policy.config.train_steps, beta_schedule=policy.config.beta_schedule)
    scheduler.set_timesteps(case.ddim_steps)
    sizes = Sizes(OBS_DIM, HORIZON, ACTION_DIM, case.hidden, critics=2)
    return ReferenceUpdate(sizes, policy.denoiser, scheduler, data)


def agent(case: Case, policy: DiffusionPolicy, data: Mapping[str, np.ndarray], *, pooled: bool) -> NoiseAliasedSAC:
    """Of the preset ``reference``, or of the defaults, with networks and batch of the same size."""
    published = replace(preset("reference"), hidden_dims=case.hidden, n_envs=N_ENVS)
    na = replace(FinetuneConfig().na, n_critics=2, batch_size=case.batch, pool_size=POOL_SIZE)
    na = replace(na, fit_updates=0, fit_actor_updates=0)  # they are done once, not in every call
    config = replace(published, na=na, bound=10.0) if pooled else published
    space = NoiseSpace(policy.spec.noise_shape, config.bound or 1.0)
    env = SteeredVecEnv(DummyVecEnv([Idle] * N_ENVS), policy, space)
    model = build_na(config, env, HORIZON, device="cpu", seed=0)
    model.set_logger(Logger(None, []))
    assert model.replay_buffer is not None
    columns = {**data, "reward": data["reward"][:, 0], "terminated": data["terminated"][:, 0]}
    columns |= {"action": np.zeros((ROWS, space.size)), "length": np.ones(ROWS), "noise_known": np.zeros(ROWS)}
    # what the pools hold makes no difference to the time
    pools = (random_pool(space.size), random_pool(space.size)) if pooled else None
    model.replay_buffer.extend(range(ROWS), pools, ended=np.ones(ROWS, bool), **columns)
    return model


def random_pool(size: int) -> Pool:
    return Pool(torch.randn(ROWS, POOL_SIZE, size), torch.rand(ROWS, POOL_SIZE, size) * 2 - 1)


# -- the same losses --------------------------------------------------------------------------------------------------


def copy_weights(reference: ReferenceUpdate, exact: NoiseAliasedSAC) -> None:
    policy: Any = exact.policy
    policy.actor.load_state_dict(reference.actor.state_dict())
    for theirs, ours in (
        (reference.critic, policy.critic),
        (reference.critic_target, policy.critic_target),
        (reference.noise_critic, policy.noise_critic),
    ):
        stack(theirs, ours)


@torch.no_grad()
def stack(separate: Critics, stacked: CriticEnsemble) -> None:
    networks: Any = separate.networks
    for index in range(stacked.n_critics):
        linears = [module for module in networks[index] if isinstance(module, nn.Linear)]
        norms = [module for module in networks[index] if isinstance(module, nn.LayerNorm)]
        for layer, linear in enumerate(linears):
            stacked.weights[layer][index] = linear.weight.t()
            stacked.biases[layer][index, 0] = linear.bias
        for layer, norm in enumerate(norms):
            stacked.scales[layer][index, 0] = norm.weight
            stacked.shifts[layer][index, 0] = norm.bias


class Recorded(Draws):
    """The random numbers that dsrl draws after ``torch.manual_seed(seed)``, by what they are used for."""

    def __init__(self, seed: int, batch: int, size: int):
        torch.manual_seed(seed)
        self._rows = [torch.randint(ROWS, (batch,)).numpy()]
        self._noise = {"next": torch.randn(batch, size), "now": torch.randn(batch, size)}
        self._rows.append(torch.randint(ROWS, (batch,)).numpy())
        self._noise["prior"] = torch.randn(batch, size)

    def rows(self, count: int, batch: int) -> np.ndarray:
        """Of this step, then of its distillation."""
        return self._rows.pop(0)

    def noise(self, _what: str, batch: int, size: int) -> Tensor:
        """By its purpose."""
        return self._noise[_what]


def largest_difference(reference: ReferenceUpdate, exact: NoiseAliasedSAC, batch: int) -> float:
    """Over some gradient steps, each with one distillation step, relative to the larger of 1 and the loss."""
    largest, draws, exact.distill_after = 0.0, reference.draws, 1
    for step in range(COMPARED_STEPS):
        reference.draws = Recorded(step, batch, reference.sizes.chunk)
        reference.train(1, batch, 1)
        torch.manual_seed(step)
        exact.train(1, batch)
        for name in ("critic_loss", "actor_loss", "distill_loss", "ent_coef"):
            theirs, ours = reference.logged[name][-1], exact.logger.name_to_value[f"train/{name}"]
            largest = max(largest, abs(theirs - ours) / max(1.0, abs(theirs)))
    reference.draws = draws
    return largest


# -- time -------------------------------------------------------------------------------------------------------------


def cpu_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
