"""What the commands are told that play a policy and learn nothing: ``dsrl evaluate`` and ``dsrl probe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dsrl.config import LoadConfig, NoiseSpaceConfig, Reward, check_bound
from dsrl.errors import DsrlError
from dsrl.limits import within
from dsrl.safety import SafetyConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run (base and steered policy on the same episodes) or a checkpoint."""

    target: Path
    """run folder or checkpoint"""
    load: LoadConfig = field(default_factory=LoadConfig)
    env: str | None = None
    """left out: the one of the run or the checkpoint"""
    max_episode_steps: int | None = None
    """time limit in env steps; left out: that of the run or the checkpoint"""
    compare: Path | None = None
    """another run or checkpoint, played on the same episodes; what the target does more than it is shown"""
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
    agent: Literal["best", "final"] = "final"
    """which agent of the run: the last one, or the one of the best evaluation on the way"""
    json: Path | None = None
    """write the numbers here"""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    video: Path | None = None
    """film the first episodes: NAME.mp4 shows base and steered side by side, NAME.png is a film strip, a folder gets a
    file per policy and episode; mp4 needs the [video] extra"""
    video_episodes: int = 3
    """episodes per policy that are filmed"""
    guidance_weight: str | None = None
    """weights such as 0,1,1.5,2,3,5: play a guided checkpoint with each of them, and recommend one"""
    choice_seed: int = 20_000_000
    """of the first of as many other initial states, on which the recommended weight is chosen"""
    plot: Path | None = None
    """draw success against the guidance weight here"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "episodes", "repeats", "n_envs", "video_episodes", "max_episode_steps")
        if self.compare is not None and (self.repeats > 1 or self.video is not None or self.weights):
            raise DsrlError("--compare plays two policies once; leave out --repeats, --video and --guidance-weight")
        if not self.weights:
            if self.plot is not None:
                raise DsrlError("--plot draws success against the guidance weight; give --guidance-weight 0,1,1.5,2")
            return
        if self.repeats > 1 or self.video is not None or self.load.guidance_weight is not None:
            raise DsrlError(
                "--guidance-weight plays every weight once; leave out --repeats, --video and --load.guidance-weight"
            )
        if abs(self.seed - self.choice_seed) < self.episodes:
            raise DsrlError(
                f"--seed {self.seed} and --choice-seed {self.choice_seed} are less than {self.episodes} episodes "
                "apart: the weight would be chosen on starts that it is reported on"
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Those of ``guidance_weight``."""
        try:
            return tuple(sorted({float(word) for word in (self.guidance_weight or "").split(",") if word.strip()}))
        except ValueError:
            raise DsrlError(
                f"--guidance-weight is '{self.guidance_weight}'; expected numbers separated by commas, such as 0,1,1.5"
            ) from None


@dataclass(frozen=True)
class ProbeConfig:
    """Steerability check: what the choice of noise changes, before any training."""

    checkpoint: Path
    """policy to look at"""
    load: LoadConfig = field(default_factory=LoadConfig)
    env: str | None = None
    """left out: the one of the checkpoint"""
    max_episode_steps: int | None = None
    """time limit in env steps; left out: that of the checkpoint"""
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
        within(self, "[1, inf)", "states", "repeats", "n_envs", "max_episode_steps")
        check_bound(self.bound)
