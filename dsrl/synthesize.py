"""Policy-guided diffusion (arXiv 2404.06356): data and a policy in, data close to what the policy would see out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from dsrl import __version__
from dsrl.commands import load_run
from dsrl.config import LoadConfig
from dsrl.data import Trajectories, write_hdf5
from dsrl.demos import read_demos, under_convention
from dsrl.edm import EDMConfig
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.facts import file_sha256, flags
from dsrl.files import check_out, write_text
from dsrl.limits import check_training, within
from dsrl.policy import FrozenPolicy
from dsrl.policy_guidance import PolicyGuidance, Target
from dsrl.policy_targets import TargetKind, histories, make_target
from dsrl.pretrained import is_checkpoint, load_policy, spelled
from dsrl.synthetic_diagnostics import Diagnostics, Scales, Step, diagnose, fitted_step, scales_of, simulator_step
from dsrl.training import Trainer
from dsrl.trajectory_diffusion import PRESETS, TrajectoryConfig, TrajectoryDiffusion, load_model, save_model
from dsrl.trajectory_windows import Layout, Windows, cut_windows, sparse_values, to_trajectories
from dsrl.unfinished import NotKept, Unfinished
from dsrl.wrappers.make import make_env, resolve_reward

MODEL_SUFFIX = ".model"
"""of the folder of the trajectory model, beside the data that it made"""
_ENDING_REPEATS = 8
_NOT_OF_THE_MODEL = (
    "dataset", "policy", "out", "load", "agent", "model", "windows", "guidance", "target", "target_std", "device",
    "overwrite",
)  # fmt: skip
"""settings that an unfinished training of the trajectory model does not depend on"""


@dataclass(frozen=True)
class SynthesizeConfig:
    """Draw data like those of a data set, but with the actions of a policy."""

    dataset: Path
    """robomimic HDF5 file with rewards"""
    policy: Path
    """the target: a checkpoint, or a run folder of `dsrl finetune`"""
    out: Path
    """HDF5 file to write, which every command reads as a data set"""
    load: LoadConfig = field(default_factory=LoadConfig)
    agent: Literal["best", "final"] = "final"
    """of a run folder"""
    model: Path | None = None
    """trajectory model of an earlier call (OUT.model); left out: one is trained"""
    windows: int = 1_024
    """that are drawn"""
    window: int | None = None
    """env steps of a window; left out: 16, or the next multiple of the policy's chunk"""
    guidance: PolicyGuidance = field(default_factory=PolicyGuidance)
    target: TargetKind = "auto"
    """gaussian: a Gaussian policy's own; score: the network of a diffusion or flow policy, at the noise level of the
    window; samples: a Gaussian around a sampled chunk, which any policy has; auto: the first of them that does"""
    target_std: float = 0.1
    """of the Gaussian around a sampled chunk, in half-widths of the range of an action"""
    preset: Literal["tiny", "small", "medium", "large"] = "small"
    """size of the U-Net"""
    edm: EDMConfig = field(default_factory=EDMConfig)
    reward: Literal["auto", "success", "dense"] = "auto"
    """success: 1 and the end at success; dense: as recorded. auto: success for manipulation, dense elsewhere"""
    steps: int = 4_000
    """gradient steps of the trajectory model"""
    batch_size: int = 128
    """windows per gradient step"""
    lr: float = 2e-3
    """of AdamW at the start; a cosine takes it to zero"""
    weight_decay: float = 1e-5
    """of AdamW"""
    ema_decay: float = 0.995
    """of the averaged weights, which are what is used"""
    valid_share: float = 0.1
    """share of the episodes held out, when the file does not choose them"""
    seed: int = 0
    """of weights, batches and samples"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""
    overwrite: bool = False
    """replace an existing file"""

    def __post_init__(self) -> None:
        check_training(self)
        within(self, "[1, inf)", "windows")
        within(self, "[2, inf)", "window")
        within(self, "(0, inf)", "target_std")


def synthesize(config: SynthesizeConfig, console: Console | None = None) -> Path:
    """Train a trajectory model where none is given, draw windows, write them with what they are worth.

    Beside ``out``: ``out`` with the suffix ``.json``, the diagnostics of guided, unguided and recorded windows, and
    with the suffix ``.model``, the trajectory model.

    The same call goes on with a training that was interrupted (:class:`~dsrl.unfinished.Unfinished`).

    Raises:
        DsrlError: when data, policy, model and settings do not fit, before anything is trained.
        RunFailed: when the loss is no longer finite.
    """
    console = console or Console(markup=False, highlight=False)
    check_out(config.out, config.overwrite)
    policy, env = _policy(config)
    recorded = read_demos(config.dataset, policy, env)
    reward = resolve_reward(recorded.env or EnvSpec("gymnasium", ""), config.reward)
    data = under_convention(recorded, reward)
    _check_rewards(config, data, console)
    given = None if config.model is None else load_model(config.model, policy.device)
    length = _length(config, policy, given)
    train, valid = data.split(config.valid_share, config.seed)
    windows = cut_windows(train, length, source=str(config.dataset), ending_repeats=_ENDING_REPEATS).to(policy.device)
    low, high = action_limits(data)
    model = given or _new_model(config, data, windows, (low, high), reward)
    _check_model(config, model, data)
    target = make_target(policy, config.target, config.target_std * float((high - low).mean()) / 2)
    histories(windows.obs[:1], policy.spec)  # refuses windows that are no whole number of chunks
    kept = NotKept()
    if given is None:
        facts = {**flags(asdict(config), _NOT_OF_THE_MODEL), "data": file_sha256(config.dataset)}
        kept = Unfinished(config.out, facts, anew=config.overwrite, say=console.print)
        console.print(f"trajectory model on {len(windows.obs)} windows of {length} env steps, {config.preset}")
        model = _train(config, model, windows, _held_out(valid, length, policy.device), kept, console)
    if config.model is None or config.model.resolve() != config.out.with_suffix(MODEL_SUFFIX).resolve():
        save_model(model, config.out.with_suffix(MODEL_SUFFIX))
    made, seconds = _draw(config, model, target, console)
    held_out = _held_out(valid, length, policy.device)
    report = _report(config, model, data.env, (windows, held_out), made, target, reward, seconds)
    write_hdf5(config.out, to_trajectories(made, data))
    write_text(config.out.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    kept.finish()
    _show(report, console)
    console.print(f"wrote {config.out}: {config.windows} windows of {length} env steps")
    return config.out


# -- before the long work ---------------------------------------------------------------------------------------------


def _policy(config: SynthesizeConfig) -> tuple[Any, EnvSpec | None]:
    if config.policy.is_dir() and not is_checkpoint(config.policy):
        return load_run(config.policy, config.agent, config.device)
    policy = load_policy(config.policy, **vars(config.load), device=config.device)
    return policy, policy.spec.env


def _check_rewards(config: SynthesizeConfig, data: Trajectories, console: Console) -> None:
    if not any(episode.rewards.any() for episode in data.episodes):
        raise DsrlError(
            f"{config.dataset} has no rewards: all {data.n_steps} of them are 0, so critics learn nothing from windows "
            "like these; record rewards"
        )
    if not any(episode.terminated.any() for episode in data.episodes):
        console.print(
            f"warning: no episode of {config.dataset} terminates, so no synthetic window will. Right where only the "
            "time limit ends an episode; else record terminations ('dones')"
        )


def _length(config: SynthesizeConfig, policy: FrozenPolicy, given: TrajectoryDiffusion | None) -> int:
    if given is not None:
        length = given.config.layout.length
        if config.window not in (None, length):
            raise DsrlError(f"--window is {config.window}, the model {config.model} draws windows of {length}")
        return length
    chunk = policy.spec.n_action_steps
    return config.window or -(-16 // chunk) * chunk


def action_limits(data: Trajectories) -> tuple[Tensor, Tensor]:
    """``(Da,)`` each: those of the environment where it is known and can be built, else those of the data."""
    actions = torch.cat([torch.from_numpy(episode.actions) for episode in data.episodes])
    if data.env is not None:
        try:
            env = make_env(data.env, reward="dense")
        except (DsrlError, ImportError):
            env = None
        if env is not None:
            box: Any = env.action_space
            env.close()
            return torch.as_tensor(box.low), torch.as_tensor(box.high)
    low, high = actions.amin(dim=0), actions.amax(dim=0)
    if bool((low >= -1).all() and (high <= 1).all()):
        return -torch.ones_like(low), torch.ones_like(high)
    return low, torch.where(high > low, high, low + 1)


def _new_model(
    config: SynthesizeConfig, data: Trajectories, windows: Windows, limits: tuple[Tensor, Tensor], reward: str
) -> TrajectoryDiffusion:
    layout = Layout(windows.obs.shape[-1], windows.action.shape[-1], windows.action.shape[1], sparse_values(data))
    facts = {
        "made by": f"dsrl {__version__} synthesize",
        "data": f"{config.dataset.name}, {len(data)} episodes, {data.n_steps} env steps",
        "env": data.env.to_robomimic() if data.env else {},
        "obs_shapes": {key: list(shape) for key, shape in data.obs_shapes.items()},
        "reward": reward,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TrajectoryDiffusion(TrajectoryConfig(layout, PRESETS[config.preset], config.edm, facts=facts), *limits)
    model.to(windows.obs.device).codec.fit(windows)
    return model


def _check_model(config: SynthesizeConfig, model: TrajectoryDiffusion, data: Trajectories) -> None:
    layout, first = model.config.layout, data.episodes[0]
    obs_dim = sum(int(torch.Size(shape).numel()) for shape in data.obs_shapes.values())
    if (layout.obs_dim, layout.action_dim) != (obs_dim, first.actions.shape[1]):
        raise DsrlError(
            f"{config.model} draws observations of {layout.obs_dim} and actions of {layout.action_dim} numbers, "
            f"{config.dataset} has {obs_dim} and {first.actions.shape[1]}; train a model on it (leave out --model)"
        )


def _held_out(valid: Trajectories, length: int, device: torch.device) -> Windows | None:
    try:
        return cut_windows(valid, length).to(device)
    except DsrlError:  # the held-out episodes may all be short
        return None


# -- the long work ----------------------------------------------------------------------------------------------------


def _train(
    config: SynthesizeConfig,
    model: TrajectoryDiffusion,
    train: Windows,
    valid: Windows | None,
    kept: Unfinished,
    console: Console,
) -> TrajectoryDiffusion:
    trainer = Trainer(model, config, kept=kept)
    rows = model.codec.encode(train)
    try:
        trainer.run([rows], [rows[:0] if valid is None else model.codec.encode(valid)])
    except KeyboardInterrupt:
        console.print(kept.explain(f"after {trainer.step} steps"))
        raise
    console.print(f"loss {trainer.train_loss:.4f}, held out {trainer.valid_loss:.4f}")
    return trainer.ema


def _draw(
    config: SynthesizeConfig, model: TrajectoryDiffusion, target: Target, console: Console
) -> tuple[Windows, float]:
    """Windows, and the seconds that they took; a few are looked at first."""
    few = _sample(config, model, target, min(64, config.windows), config.guidance)
    share = diagnose(few, None, None, scales_of(few, None, model.codec.low, model.codec.high)).at_limit
    if share > 0.5:
        console.print(
            f"warning: {share:.0%} of the actions lie at their limits with --guidance.weight "
            f"{config.guidance.weight:g}: that is more than the data can say anything about. Use a smaller weight"
        )
    began = time.perf_counter()
    made = _sample(config, model, target, config.windows, config.guidance)
    return made, time.perf_counter() - began


def _sample(
    config: SynthesizeConfig, model: TrajectoryDiffusion, target: Target, count: int, guidance: PolicyGuidance
) -> Windows:
    generator = torch.Generator(device=model.device).manual_seed(config.seed)
    return model.sample(count, generator, target, guidance)


# -- what it is worth -------------------------------------------------------------------------------------------------


def _report(
    config: SynthesizeConfig,
    model: TrajectoryDiffusion,
    env: EnvSpec | None,
    recorded: tuple[Windows, Windows | None],
    made: Windows,
    target: Target,
    reward: str,
    seconds: float,
) -> dict[str, Any]:
    """``recorded`` are the windows for training, and those held out, where there are some."""
    seen, held_out = recorded[0], recorded[0] if recorded[1] is None else recorded[1]
    scales = scales_of(seen, model.config.layout.reward_values, model.codec.low, model.codec.high)
    step, judge = _judge(env, reward, seen, scales)
    few = min(256, config.windows)
    rows = torch.randperm(len(held_out.obs), generator=torch.Generator().manual_seed(0))[:few]
    parts = {
        "synthetic": made.at(torch.arange(min(1_024, len(made.obs)))),
        "unguided": _sample(config, model, target, few, PolicyGuidance(weight=0.0)),
        "recorded": held_out.at(rows.to(held_out.obs.device)),
    }
    found: dict[str, Diagnostics] = {name: diagnose(part, target, step, scales) for name, part in parts.items()}
    transitions = int(made.alive().sum())
    return {
        "policy": spelled(config.policy),
        "dataset": config.dataset.name,
        "guidance": asdict(config.guidance),
        "target": config.target,
        "target_std": config.target_std,
        "dynamics judged by": judge,
        "windows": len(made.obs),
        "transitions": transitions,
        "seconds": round(seconds, 3),
        "transitions per second": round(transitions / seconds, 1),
        "device": str(model.device),
        **{name: {key.partition("/")[2]: value for key, value in d.metrics(name).items()} for name, d in found.items()},
    }


def _judge(env: EnvSpec | None, reward: str, recorded: Windows, scales: Scales) -> tuple[Step, str]:
    try:
        step = simulator_step(env, reward, recorded, scales)
    except (DsrlError, ImportError):
        step = None
    if step is not None:
        return step, "the simulator"
    return fitted_step(recorded, scales), "a model of one env step, fitted to the recorded data"


def _show(report: Mapping[str, Any], console: Console) -> None:
    console.print(f"dynamics judged by {report['dynamics judged by']}; per column:")
    names = [name for name in report["synthetic"] if name in report["recorded"] or name in report["unguided"]]
    for part in ("synthetic", "unguided", "recorded"):
        values = ", ".join(f"{name} {report[part][name]:.3g}" for name in names if name in report[part])
        console.print(f"  {part:<9}  {values}")
    guided, plain = report["synthetic"]["dynamics_mse"], report["unguided"]["dynamics_mse"]
    if guided > 2 * plain:
        console.print(
            f"warning: the dynamics error is {guided / plain:.1f} times that of unguided windows; a smaller "
            "--guidance.weight stays closer to the data"
        )
