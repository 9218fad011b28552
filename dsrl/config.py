"""What a fine-tuning run is told: frozen dataclasses behind the command line, presets and ``config.yaml`` alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dsrl.agent_config import NAConfig, PPOConfig, SACConfig
from dsrl.errors import DsrlError
from dsrl.limits import within
from dsrl.plain import build
from dsrl.plain import to_dict as to_dict
from dsrl.safety import SafetyConfig

Reward = Literal["auto", "success", "step-cost", "dense"]
NoiseRest = Literal["prior", "zero", "repeat"]


@dataclass(frozen=True)
class NoiseSpaceConfig:
    """Which part of the noise the agent chooses; all of it, when nothing is given."""

    rows: int | None = None
    """only this many rows of the noise, from the first step of the horizon on"""
    rest: NoiseRest = "prior"
    """the other rows: drawn from N(0, I), which is the base policy; zero; or the chosen rows again and again. One
    repeated row is what the published pi0 code does; it destroys many policies"""
    basis: int | None = None
    """only this many cosines over the horizon, the slowest first; 1 is noise that is constant in time"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "rows", "basis", prefix="noise.")
        if self.rows is not None and self.basis is not None:
            raise DsrlError("--noise.rows and --noise.basis exclude each other; give one of them")
        if self.rows is None and self.rest != "prior":
            raise DsrlError(f"--noise.rest is '{self.rest}', but nothing is left over; give --noise.rows too")


@dataclass(frozen=True)
class LoadConfig:
    """How a checkpoint of another program is read; files of ``dsrl pretrain`` need none of it."""

    format: str = "auto"
    """of the checkpoint; auto finds it out from the file"""
    config: Path | None = None
    """DPPO's hydra YAML; left out: the one beside the checkpoint"""
    normalization: Path | None = None
    """DPPO's normalization.npz; left out: the one beside the checkpoint"""
    weights: Literal["ema", "model"] = "ema"
    """the moving average, where there is one, or the raw weights"""
    sampling_steps: int | None = None
    """denoise with DDIM in this many steps, whatever the file says; that is another policy"""
    task: str | None = None
    """the instruction, for a policy that reads one; another instruction is another policy"""
    guidance_weight: float | None = None
    """of a guided policy: 0 is what it is guided away from, 1 plain conditioning; left out: what the file says"""
    base: Path | None = None
    """of an agent of `dsrl push` or of a run: its base policy, when that is no longer where it was"""
    steer_guidance: float | None = None
    """of a guided policy: its noise gets one number more, which chooses the weight between 0 and this"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "sampling_steps", prefix="load.")


@dataclass(frozen=True)
class FinetuneConfig:
    """Steer a frozen policy: an agent learns which noise it should start from."""

    base_policy: Path | None = None
    """checkpoint of the policy to steer; it is never changed. Left out: the small one that ships with dsrl"""
    load: LoadConfig = field(default_factory=LoadConfig)
    env: str | None = None
    """robosuite/Lift, metaworld/push-v3, or any gymnasium id; left out: the one the checkpoint was made for"""
    max_episode_steps: int | None = None
    """time limit in env steps; left out: the environment's own"""
    algo: Literal["na", "sac", "ppo"] = "na"
    """na: noise-aliased SAC; sac and ppo: the stock agents of stable-baselines3"""
    run_dir: Path | None = None
    """where everything is written; left out: runs/<env>/<algo>/<time>_seed<seed>"""
    total_env_steps: int = 8_000
    """budget of training in env steps, warm-up included, evaluation not"""
    warmup_episodes: int = 20
    """first episodes, played by the base policy itself, half of the budget at most (PPO has none)"""
    warmup_successes: int = 6
    """the warm-up goes on, up to three times as long, until the base policy has succeeded this often"""
    n_envs: int = 4
    """training environments side by side"""
    steer_guidance: float | None = None
    """of a guided base policy: the agent chooses the guidance weight too, between 0 and this, at every decision"""
    bound: float | None = None
    """noise stays within this many standard deviations; left out: 1.5 where an actor is squashed
    into it; 10, which is no bound, for NA's Gaussian; 3 for PPO's"""
    noise: NoiseSpaceConfig = field(default_factory=NoiseSpaceConfig)
    accept_noise_space: bool = False
    """train although the steerability check finds that noise space or bound break the base policy"""
    demos: Path | None = None
    """robomimic HDF5 file of demonstrations for NA's critics; their actions are played back first, as a check"""
    demo_mix: Literal["prefill", "ratio", "decay"] = "ratio"
    """ratio: a fixed share of every batch; decay: a share that has fallen to zero at the end of the budget; prefill: as
    if they stood in the replay buffer from the start"""
    demo_share: float = 0.25
    """of a batch, for ratio, and for decay at the start"""
    warm_start: Path | None = None
    """data of `dsrl synthesize` for NA's critics, from the first batch on, whose share falls to zero over the budget"""
    synthetic_share: float = 0.25
    """of a batch at the start, at most 0.5"""
    synthesize_every: int | None = None
    """env steps after which the synthetic data are made anew, towards what the agent does by then"""
    gamma: float = 0.99
    """discount per env step; about 1 - 1/T for a task that takes T env steps (Lift takes 30)"""
    reward: Reward = "auto"
    """success: +1 and the end at success; step-cost: -1 until success; dense: the simulator's own.
    auto: success for manipulation, dense elsewhere"""
    hidden_dims: tuple[int, ...] = (128, 128)
    """of actor and critics"""
    seed: int = 0
    """of networks, environments and noise"""
    eval_interval: int | None = None
    """env steps between evaluations; left out: as often as a quarter of the env steps of training pays for"""
    eval_episodes: int | None = None
    """episodes per evaluation, the same ones every time; left out: so few that this quarter pays for several"""
    final_episodes: int = 100
    """episodes of the last comparison, on starts that were used for nothing else"""
    final_repeats: int = 8
    """noise seeds of the base policy per final episode, for best-of-N in hindsight"""
    final_controls: bool = True
    """the last comparison also plays zero noise, half the noise, and the actor with its own noise"""
    probe_episodes: int = 16
    """initial states of the steerability check before training; 0 leaves it out"""
    n_eval_envs: int = 4
    """evaluation environments side by side"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""
    overwrite: bool = False
    """write into a run folder that already exists"""
    checkpoint_interval: float = 60.0
    """seconds between two checkpoints, from which a run can be resumed; 0: after every decision"""
    simulator_timeout: float = 300.0
    """seconds after which a simulator in a process of its own, that does not answer, is given up"""
    resume: Path | None = None
    """go on with this run, with its settings, from its newest checkpoint; --total-env-steps gives it a new budget"""
    force: bool = False
    """resume although policy, environment, versions or settings have changed, and write down what"""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    na: NAConfig = field(default_factory=NAConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        counts = ("total_env_steps", "warmup_episodes", "n_envs", "final_episodes", "final_repeats", "n_eval_envs")
        within(self, "[1, inf)", *counts, "eval_interval", "eval_episodes", "max_episode_steps", "synthesize_every")
        within(self, "[0, inf)", "probe_episodes", "warmup_successes", "checkpoint_interval")
        within(self, "(0, inf)", "simulator_timeout")
        within(self, "(0, 1]", "gamma", "demo_share")
        within(self, "(0, 0.5]", "synthetic_share")
        if not 0 <= self.seed < 10_000:
            raise DsrlError(f"--seed is {self.seed}; it must lie in [0, 10000), where every run has starts of its own")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise DsrlError(f"--hidden-dims is {self.hidden_dims}; at least one layer of at least one unit is needed")
        if self.bound is not None:
            check_bound(self.bound)
        if self.demos is not None and self.algo != "na":
            raise DsrlError(f"--demos is for --algo na: demonstrations have no noise, which {self.algo} learns from")
        if self.warm_start is not None and self.algo != "na":
            raise DsrlError(
                f"--warm-start is for --algo na: synthetic data have no noise, which {self.algo} learns from"
            )
        if self.synthesize_every is not None and self.warm_start is None:
            raise DsrlError("--synthesize-every needs --warm-start SYNTHETIC.hdf5, the data that are made anew")

    @property
    def loading(self) -> LoadConfig:
        """How the base policy is read, so that its noise is all that the agent chooses."""
        if self.steer_guidance is None:
            return self.load
        return replace(self.load, steer_guidance=self.steer_guidance)


@dataclass(frozen=True)
class ExportConfig:
    """Write base policy and agent into one file that acts without stable-baselines3."""

    run: Path
    """run folder"""
    out: Path
    """checkpoint to write"""
    agent: Literal["best", "final"] = "final"
    """which agent of the run: the last one, or the one of the best evaluation on the way"""
    overwrite: bool = False
    """replace an existing file"""


@dataclass(frozen=True)
class InspectConfig:
    """Print what is in a checkpoint."""

    checkpoint: Path
    """file to look into"""
    load: LoadConfig = field(default_factory=LoadConfig)
    verify: bool = False
    """sample some chunks too: are they determined by their noise, how large are the actions, how many are clipped"""
    device: str = "auto"
    """where to sample: cpu, cuda, auto"""


@dataclass(frozen=True)
class ConvertConfig:
    """Write a policy of any format into a folder that diffusers and dsrl read."""

    checkpoint: Path
    """policy to convert"""
    out: Path
    """folder to write"""
    load: LoadConfig = field(default_factory=LoadConfig)
    overwrite: bool = False
    """replace a folder that was converted before"""


@dataclass(frozen=True)
class PluginsConfig:
    """List the formats and simulators that other installed packages add."""


def finetune_config(values: Mapping[str, Any]) -> FinetuneConfig:
    """The inverse of :func:`to_dict`; unknown keys are errors that name the nearest known one."""
    return build(FinetuneConfig, values, "")


def safety_config(values: Mapping[str, Any]) -> SafetyConfig:
    """What a ``config.yaml`` says under ``safety``; unknown keys are errors."""
    return build(SafetyConfig, values.get("safety") or {}, "safety.")


def check_bound(bound: float) -> None:
    """Check that noise can be bounded by this many standard deviations.

    Raises:
        DsrlError: naming the flag.
    """
    if not 0 < bound < float("inf"):
        raise DsrlError(f"--bound is {bound}; it must be positive and finite (1.5 is a good start, 3 covers N(0, I))")
