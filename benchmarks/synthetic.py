"""The benchmark of synthetic data, resumable: ``python benchmarks/synthetic.py [--parts mechanism fqe offline]``.

Every finished row is added to ``benchmarks/results/synthetic_<part>.csv`` and not made again; models and data sets are
kept under ``runs/benchmark/synthetic``. ``--parts na`` fine-tunes the policy that ships with dsrl, which takes hours.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic_data import mixed_data
from synthetic_point import SPEC, Truth, fitted_q, record, step, target
from synthetic_table import write_results

from dsrl.data import Trajectories, read_hdf5
from dsrl.files import append_row, read_rows
from dsrl.mixed_batches import MixedBatches, train_offline
from dsrl.policy import PolicySpec
from dsrl.policy_guidance import PolicyGuidance
from dsrl.policy_targets import make_target
from dsrl.pretrained import DEFAULT_CHECKPOINT
from dsrl.synthesize import action_limits
from dsrl.synthetic_diagnostics import diagnose, scales_of, simulator_step
from dsrl.td3bc import IQL, TD3BC, squashed_policy
from dsrl.training import Trainer
from dsrl.trajectory_diffusion import PRESETS, TrajectoryConfig, TrajectoryDiffusion, load_model, save_model
from dsrl.trajectory_windows import Layout, Windows, cut_windows, to_trajectories
from dsrl.transitions import Transitions, cut_transitions
from dsrl.wrappers import make_env

RUNS = Path("runs/benchmark/synthetic")
RESULTS = Path(__file__).with_name("results")
LENGTH = 16
TASKS = ("InvertedDoublePendulum-v5", "Hopper-v5")


@dataclass(frozen=True)
class Training:
    """Of a trajectory model."""

    steps: int
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-5
    ema_decay: float = 0.995
    seed: int = 0


class Table:
    """Rows of one part, each made once."""

    def __init__(self, part: str, keys: tuple[str, ...]):
        self.path, self.keys = RESULTS / f"synthetic_{part}.csv", keys
        self.held = {tuple(row[key] for key in keys) for row in read_rows(self.path)}

    def has(self, *key: Any) -> bool:
        """Whether it was made before."""
        return tuple(map(str, key)) in self.held

    def add(self, *key: Any, **values: Any) -> None:
        """Append a row."""
        row = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in values.items()}
        append_row(self.path, dict(zip(self.keys, key, strict=True)) | row)
        self.held.add(tuple(map(str, key)))
        print(self.path.stem, *key, row, flush=True)


def trained(name: str, data: Trajectories, windows: Windows, training: Training, sparse: Any = None) -> Any:
    """The trajectory model of some windows; it is trained when it is not there."""
    folder = RUNS / "models" / f"{name}-{training.seed}.model"
    if folder.exists():
        return load_model(folder)
    layout = Layout(windows.obs.shape[-1], windows.action.shape[-1], LENGTH, sparse)
    torch.manual_seed(training.seed)
    model = TrajectoryDiffusion(TrajectoryConfig(layout, PRESETS["small"]), *action_limits(data))
    model.codec.fit(windows)
    rows = model.codec.encode(windows)
    trainer = Trainer(model, training)
    began = time.process_time()
    trainer.run([rows], [rows[:0]])
    print(f"{folder.name}: loss {trainer.train_loss:.4f}, {time.process_time() - began:.0f} CPU seconds", flush=True)
    save_model(trainer.ema, folder)
    return trainer.ema


def draw(model: Any, count: int, seed: int, to: Any = None, guidance: PolicyGuidance | None = None) -> Windows:
    return model.sample(count, torch.Generator().manual_seed(seed), to, guidance)


# -- mechanism and fitted Q evaluation, on the point mass -------------------------------------------------------------

SETTINGS = {
    "unguided": PolicyGuidance(0.0),
    **{f"noise {w:g}": PolicyGuidance(w) for w in (1.0, 2.0, 3.0, 4.0, 6.0, 10.0)},
    "noise 3 at the noisy window": PolicyGuidance(3.0, at_denoised=False),
    **{f"cosine {w:g}": PolicyGuidance(w, "cosine") for w in (0.1, 0.3, 1.0, 3.0)},
    "cosine 0.3 at the noisy window": PolicyGuidance(0.3, "cosine", at_denoised=False),
    **{f"plain cosine {w:g}": PolicyGuidance(w, "cosine", normalize=False) for w in (0.001, 0.003, 0.01)},
}


FITS = 4
"""of a critic, per data set"""


def point_model(seed: int) -> tuple[Any, Windows]:
    data = record(30, seed)
    windows = cut_windows(data, LENGTH)
    return trained("point", data, windows, Training(10_000, seed=seed)), windows


def mechanism(seeds: list[int]) -> None:
    """Log-probability under the target and one-step dynamics error, against the strength of the guidance."""
    table = Table("mechanism", ("seed", "setting"))
    for seed in seeds:
        missing = [name for name in SETTINGS if not table.has(seed, name)]
        if not missing:
            continue
        model, windows = point_model(seed)
        scales = scales_of(windows, None, model.codec.low, model.codec.high)
        plain, off = draw(model, 512, seed), draw(model, 512, seed, target(), PolicyGuidance(0.0))
        assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True)), "weight 0 is unguided to the bit"
        if not table.has(seed, "recorded"):
            table.add(seed, "recorded", **_facts(windows, scales))
        for name in missing:
            made = plain if name == "unguided" else draw(model, 512, seed, target(), SETTINGS[name])
            table.add(seed, name, **_facts(made, scales))


def _facts(windows: Windows, scales: Any) -> dict[str, float]:
    found = diagnose(windows, target(), step, scales, most=4_000)
    return {name: getattr(found, name) for name in ("log_prob", "dynamics_mse", "reward_mse", "at_limit")}


def fqe(seeds: list[int]) -> None:
    """Error of the critic of a target policy, where its value is known by roll-outs."""
    table = Table("fqe", ("seed", "data"))
    chosen = ("noise 3", "noise 6", "cosine 1")
    for seed in seeds:
        missing = [name for name in ("real", "unguided", *chosen) if not table.has(seed, name)]
        if not missing:
            continue
        model, windows = point_model(seed)
        truth = Truth.measure(seed)
        for name in missing:
            parts = [windows]
            if name != "real":
                parts.append(draw(model, 4_096, 100 + seed, target(), SETTINGS[name]))
            errors = []
            for fit in range(FITS):
                critic = fitted_q(parts, 4_000, seed=10 * seed + fit)
                with torch.no_grad():
                    errors.append(critic(truth.state, truth.action)[0] - truth.value)
            error = torch.stack(errors)
            values = {"rmse": float(error.square().mean(dim=1).sqrt().mean()), "bias": float(error.mean())}
            table.add(seed, name, **values, truth_std=float(truth.value.std()), fits=FITS)


# -- offline agents on MuJoCo -----------------------------------------------------------------------------------------

METHODS = ("real", "unguided", "guided")
STEPS, REFRESH, WINDOWS = 10_000, 2_500, 512


def offline(seeds: list[int]) -> None:
    """TD3+BC and implicit Q-learning from a small data set of mixed quality, and with synthetic data beside it."""
    table = Table("offline", ("task", "agent", "method", "seed"))
    for seed in seeds:
        for task, agent, method in ((t, a, m) for t in TASKS for a in ("td3bc", "iql") for m in METHODS):
            if not table.has(task, agent, method, seed):
                table.add(task, agent, method, seed, **_offline_run(task, agent, method, seed))


def _offline_run(task: str, agent: str, method: str, seed: int) -> dict[str, float]:
    data = read_hdf5(mixed_data(task, RUNS / "data"))
    low, high = action_limits(data)
    windows = cut_windows(data, LENGTH, ending_repeats=8)
    model = trained(task, data, windows, Training(6_000)) if method != "real" else None
    spec = PolicySpec(dict(data.obs_shapes), len(low), horizon=1, n_action_steps=1, env=data.env)
    policy = squashed_policy(spec, low, high, learn_std=agent == "iql", seed=seed)
    policy.obs_normalizer.fit_standard(cut_windows(data, 1).obs[:, :1])
    learner = {"td3bc": TD3BC, "iql": IQL}[agent](policy)
    seconds, drawn = [0.0], iter(range(100))

    def made(guided: bool) -> Transitions:
        began = time.process_time()
        assert model is not None
        goal = make_target(policy, "gaussian", 0.1) if guided else None
        guidance = PolicyGuidance() if guided else None
        found = to_trajectories(draw(model, WINDOWS, 1_000 * seed + next(drawn), goal, guidance), data)
        seconds[0] += time.process_time() - began
        return cut_transitions(found, policy, 0.99)

    synthetic = None if model is None else made(guided=False)
    batches = MixedBatches(cut_transitions(data, policy, 0.99), synthetic, seed=seed)
    refresh = None if model is None else (lambda: made(method == "guided"))
    began = time.process_time()
    losses = train_offline(learner, batches, STEPS, refresh, REFRESH)
    spent = time.process_time() - began
    returns = [_episode(task, policy, 30_000 + i) for i in range(20)]
    worth: dict[str, float] = {}
    if model is not None:
        scales = scales_of(windows, None, model.codec.low, model.codec.high)
        goal = make_target(policy, "gaussian", 0.1)
        last = draw(model, 128, seed, goal if method == "guided" else None, PolicyGuidance())
        found = diagnose(last, goal, simulator_step(data.env, "dense", windows, scales), scales, most=500)
        worth = {"log_prob": found.log_prob, "dynamics_mse": found.dynamics_mse}
    share = seconds[0] / (spent + seconds[0])
    facts = {"return": float(np.mean(returns)), "return_std": float(np.std(returns)), "cpu_seconds": spent}
    return {**facts, "sampling_share": share, **worth, "q": losses.get("train/q", float("nan"))}


def _episode(task: str, policy: Any, seed: int) -> float:
    env = make_env(task, reward="dense")
    obs, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        with torch.no_grad():
            cond = policy.encode(torch.as_tensor(obs)[None, None])
            action = TD3BC.play(cond, policy)[0].numpy()
        obs, reward, ended, cut, _ = env.step(action)
        total, done = total + float(reward), ended or cut
    env.close()
    return total


# -- throughput, and steering -----------------------------------------------------------------------------------------


def throughput(seeds: list[int]) -> None:
    """Transitions per second of CPU or GPU time, by batch size, with and without guidance."""
    table = Table("throughput", ("device", "preset", "batch", "guided"))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device, preset, batch, guided in _throughput_keys(devices):
        if table.has(device, preset, batch, guided):
            continue
        model = TrajectoryDiffusion(
            TrajectoryConfig(Layout(4, 2, LENGTH), PRESETS[preset]), -torch.ones(2), torch.ones(2)
        )
        model.to(device).freeze()
        generator = torch.Generator(device=device).manual_seed(0)
        clock = time.process_time if device == "cpu" else time.perf_counter
        seconds = float("inf")
        for _ in range(4):  # the fastest: the first one warms up, others may be disturbed
            began = clock()
            made = model.sample(batch, generator, _on(device) if guided else None, PolicyGuidance(), batch_size=batch)
            made.obs.cpu()
            seconds = min(seconds, clock() - began)
        table.add(device, preset, batch, guided, transitions_per_second=batch * LENGTH / seconds, seconds=seconds)


def _throughput_keys(devices: list[str]) -> Iterator[tuple[str, str, int, bool]]:
    for device in devices:
        presets = ("tiny", "small", "medium") if device == "cpu" else ("small", "medium", "large")
        for preset in presets:
            for batch in (64, 256, 1_024) if device == "cpu" else (256, 1_024, 4_096):
                if preset == "medium" and batch > 256 and device == "cpu":
                    continue
                yield from ((device, preset, batch, guided) for guided in (False, True))


def _on(device: str) -> Any:
    std = torch.tensor(0.1, device=device)
    return type(target())(SPEC, lambda obs: (-obs[..., :2].clamp(-1, 1), std))


def na(seeds: list[int]) -> None:
    """Noise-aliased SAC on the policy that ships, its critics warm-started on nothing, demonstrations, and more."""
    folder, base = RUNS / "na", str(DEFAULT_CHECKPOINT)
    demos = folder / "demos.hdf5"
    if not demos.exists():
        _dsrl("collect", "--env", "robosuite/Lift", "--out", demos, "--episodes", 40, "--physics-timestep", 0.005,
              "--max-episode-steps", 80)  # fmt: skip
    for name, weight in (("unguided", 0.0), ("guided", PolicyGuidance().weight)):
        out = folder / f"{name}.hdf5"
        if not out.exists():
            made = ["--model", folder / "unguided.model"] if name == "guided" else []
            _dsrl("synthesize", "--dataset", demos, "--policy", base, "--out", out, "--guidance.weight", weight, *made)
    starts = {
        "nothing": [],
        "demonstrations": ["--demos", demos],
        "unguided": ["--demos", demos, "--warm-start", folder / "unguided.hdf5"],
        "guided": ["--demos", demos, "--warm-start", folder / "guided.hdf5", "--synthesize-every", 2_000],
    }
    table = Table("na", ("seed", "warm start"))
    flags = ["--total-env-steps", 5_000, "--eval-interval", 500, "--eval-episodes", 50]
    flags += ["--probe-episodes", 0, "--final-episodes", 10, "--no-final-controls"]
    for seed, name in ((seed, name) for seed in seeds for name in starts):
        if table.has(seed, name):
            continue
        run = folder / f"{name}-{seed}"
        _dsrl("finetune", "--seed", seed, "--run-dir", run, "--overwrite", *flags, *starts[name])
        found = [row for row in read_rows(run / "evaluations.csv") if row["policy"] == "steered"]
        rates = [float(row["success_rate"]) for row in found]
        reached = [int(row["env_steps"]) for row, rate in zip(found, rates, strict=True) if rate >= 0.8]
        seconds = float(found[-1]["wall_seconds"])
        table.add(
            seed, name, steps_to_80=reached[0] if reached else "", first=rates[0], last=rates[-1], wall_seconds=seconds
        )


def _dsrl(*words: Any) -> None:
    subprocess.run([str(Path(sys.executable).with_name("dsrl")), *map(str, words)], check=True)


PARTS = {"throughput": throughput, "mechanism": mechanism, "fqe": fqe, "offline": offline, "na": na}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["throughput", "mechanism", "fqe", "offline"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        PARTS[part](args.seeds)
        write_results(RESULTS)


if __name__ == "__main__":
    main()
