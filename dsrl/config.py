"""What a fine-tuning run is told: frozen dataclasses behind the command line, presets and ``config.yaml`` alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dsrl.errors import DsrlError, nearest

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
        for name in ("rows", "basis"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DsrlError(f"--noise.{name} is {value}; it must be at least 1, or be left out")
        if self.rows is not None and self.basis is not None:
            raise DsrlError("--noise.rows and --noise.basis exclude each other; give one of them")
        if self.rows is None and self.rest != "prior":
            raise DsrlError(f"--noise.rest is '{self.rest}', but nothing is left over; give --noise.rows too")


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic on the noise (arXiv 2506.15799, DSRL-SAC)."""

    learning_rate: float = 3e-4
    """of actor, critics and temperature"""
    updates_per_env_step: float = 1.25
    """gradient steps per env step; 1.25 is five per chunk of four"""
    batch_size: int = 128
    """transitions per gradient step"""
    n_critics: int = 4
    """Q-networks; the target takes their minimum. On Lift four learned more steadily than two"""
    tau: float = 0.005
    """Polyak factor of the target critics"""
    ent_coef: str = "0.003"
    """temperature: a number, 'auto', or 'auto_0.1' to start the automatic one at 0.1"""
    target_entropy: str = "auto"
    """for the automatic temperature: a number, in nats of u = noise / bound, or 'auto' (minus the dimension)"""
    buffer_size: int = 1_000_000
    """decisions that are kept"""

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "n_critics", "buffer_size")
        for name in ("ent_coef", "target_entropy"):
            value = getattr(self, name)
            if not value.startswith("auto"):
                try:
                    float(value)
                except ValueError:
                    raise DsrlError(f"--sac.{name.replace('_', '-')} is '{value}'; a number or 'auto'") from None


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on the noise."""

    learning_rate: float = 3e-4
    """of actor and value network"""
    rollout_env_steps: int = 4096
    """env steps between updates, over all environments"""
    batch_size: int = 128
    """decisions per gradient step"""
    n_epochs: int = 10
    """passes over each roll-out"""
    gae_lambda: float = 0.95
    """of the generalised advantage estimate, per decision"""
    clip_range: float = 0.2
    """of the probability ratio"""
    ent_coef: float = 0.0
    """entropy bonus"""
    target_kl: float | None = 0.03
    """stops the epochs of an update early: a noise of 28 dimensions moves fast"""

    def __post_init__(self) -> None:
        _positive(self, "rollout_env_steps", "batch_size", "n_epochs")


@dataclass(frozen=True)
class FinetuneConfig:
    """Steer a frozen policy: an agent learns which noise it should start from."""

    base_policy: Path | None = None
    """checkpoint of the policy to steer; it is never changed. Left out: the small one that ships with dsrl"""
    env: str | None = None
    """robosuite/Lift, metaworld/push-v3, or any gymnasium id; left out: the one the checkpoint was made for"""
    algo: Literal["sac", "ppo"] = "sac"
    """which stable-baselines3 agent"""
    run_dir: Path | None = None
    """where everything is written; left out: runs/<env>/<algo>/<time>_seed<seed>"""
    total_env_steps: int = 14_000
    """budget of training in env steps, warm-up included, evaluation not"""
    warmup_env_steps: int = 3_000
    """first env steps, played by the base policy itself"""
    n_envs: int = 4
    """training environments side by side"""
    bound: float | None = None
    """noise stays within this many standard deviations; left out: 1.5 for SAC, 3 for PPO, which starts as N(0, I)"""
    noise: NoiseSpaceConfig = field(default_factory=NoiseSpaceConfig)
    accept_noise_space: bool = False
    """train although the steerability check finds that noise space or bound break the base policy"""
    gamma: float = 0.97
    """discount per env step; about 1 - 1/T for a task that takes T env steps (Lift takes 30)"""
    reward: Reward = "auto"
    """success: +1 and the end at success; step-cost: -1 until success; dense: the simulator's own.
    auto: success for manipulation, dense elsewhere"""
    hidden_dims: tuple[int, ...] = (128, 128)
    """of actor and critics"""
    seed: int = 0
    """of networks, environments and noise"""
    eval_interval: int = 2_500
    """env steps between evaluations"""
    eval_episodes: int = 50
    """episodes per evaluation, the same ones every time"""
    final_episodes: int = 100
    """episodes of the last comparison, on starts that were used for nothing else"""
    final_repeats: int = 8
    """noise seeds of the base policy per final episode, for best-of-N in hindsight"""
    probe_episodes: int = 16
    """initial states of the steerability check before training; 0 leaves it out"""
    n_eval_envs: int = 4
    """evaluation environments side by side"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""
    overwrite: bool = False
    """write into a run folder that already exists"""
    sac: SACConfig = field(default_factory=SACConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        _positive(
            self, "total_env_steps", "n_envs", "eval_interval", "eval_episodes", "final_episodes", "final_repeats"
        )
        _positive(self, "n_eval_envs")
        if self.probe_episodes < 0:
            raise DsrlError(f"--probe-episodes is {self.probe_episodes}; it is a number of episodes, 0 for none")
        if not 0 <= self.seed < 10_000:
            raise DsrlError(f"--seed is {self.seed}; it must lie in [0, 10000), where every run has starts of its own")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise DsrlError(f"--hidden-dims is {self.hidden_dims}; at least one layer of at least one unit is needed")
        if self.bound is not None:
            _check_bound(self.bound)
        if not 0 < self.gamma <= 1:
            raise DsrlError(f"--gamma is {self.gamma}; a discount per env step lies in (0, 1]")
        if not 0 <= self.warmup_env_steps < self.total_env_steps:
            raise DsrlError(
                f"--warmup-env-steps is {self.warmup_env_steps} of --total-env-steps {self.total_env_steps}; "
                "nothing would be left to steer"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run (base and steered policy on the same episodes) or a checkpoint."""

    target: Path
    """run folder or checkpoint"""
    env: str | None = None
    """left out: the one of the run or the checkpoint"""
    episodes: int = 100
    """initial states, the seeds seed, seed + 1, ..."""
    seed: int = 10_000_000
    """of the first initial state and of the noise; left alone, no run has trained or chosen its best agent on it"""
    repeats: int = 1
    """noise seeds of the base policy per initial state, for best-of-N in hindsight"""
    reward: Reward = "auto"
    """reward convention; step-cost plays on after success, so that success held at the end means something"""
    n_envs: int = 4
    """environments side by side"""
    agent: Literal["best", "final"] = "best"
    """which agent of the run"""
    json: Path | None = None
    """write the numbers here"""
    video: Path | None = None
    """write a few episodes of each policy into this folder (needs the [video] extra)"""
    video_episodes: int = 3
    """episodes per policy that are filmed"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""

    def __post_init__(self) -> None:
        _positive(self, "episodes", "repeats", "n_envs", "video_episodes")


@dataclass(frozen=True)
class ProbeConfig:
    """Steerability check: what the choice of noise changes, before any training."""

    checkpoint: Path
    """policy to look at"""
    env: str | None = None
    """left out: the one of the checkpoint"""
    states: int = 25
    """initial states"""
    repeats: int = 8
    """noise seeds per state"""
    bound: float = 1.5
    """half-width of the box that the agent would get"""
    noise: NoiseSpaceConfig = field(default_factory=NoiseSpaceConfig)
    noise_spaces: bool = False
    """also play the base policy in each of the smaller noise spaces"""
    seed: int = 0
    """of the first initial state"""
    reward: Reward = "auto"
    """reward convention"""
    n_envs: int = 4
    """environments side by side"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""

    def __post_init__(self) -> None:
        _positive(self, "states", "repeats", "n_envs")
        _check_bound(self.bound)


@dataclass(frozen=True)
class ExportConfig:
    """Write base policy and agent into one file that acts without stable-baselines3."""

    run: Path
    """run folder"""
    out: Path
    """checkpoint to write"""
    agent: Literal["best", "final"] = "best"
    """which agent of the run"""
    overwrite: bool = False
    """replace an existing file"""


@dataclass(frozen=True)
class InspectConfig:
    """Print what is in a checkpoint."""

    checkpoint: Path
    """file to look into"""


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values, ready for YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def finetune_config(values: Mapping[str, Any]) -> FinetuneConfig:
    """The inverse of :func:`to_dict`; unknown keys are errors that name the nearest known one."""
    return _build(FinetuneConfig, values, "")


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise DsrlError(f"unknown setting '{prefix}{key}'.{nearest(key, list(hints))}")
    return kind(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Bring a value out of a YAML file into the type of its field."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _build(kind, value, f"{name}.")
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], item, name) for item in value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    # YAML writes 1 for 1.0, and True is an int to Python
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str | int | float):
        return str(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise DsrlError(f"the setting '{name}' holds {value!r}, expected {_describe_type(kind)}")


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind))


def _check_bound(bound: float) -> None:
    if not 0 < bound < float("inf"):
        raise DsrlError(f"--bound is {bound}; it must be positive and finite (1.5 is a good start, 3 covers N(0, I))")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise DsrlError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be at least 1")
