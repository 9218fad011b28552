"""What an extraction is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dsrl.config import LoadConfig, Reward
from dsrl.errors import DsrlError
from dsrl.guidance import Guidance, check_weight
from dsrl.limits import check_training, within
from dsrl.values import ValuesConfig

Mode = Literal["anchored", "fresh", "goal", "hierarchical", "awr"]
GOAL_MODES = ("goal", "hierarchical")


@dataclass(frozen=True)
class ExtractConfig:
    """Guide a policy towards what is good: learn what tells good chunks from all, and exaggerate it."""

    base_policy: Path
    """checkpoint of the policy to improve; it is never changed"""
    dataset: Path
    """robomimic HDF5 file with rewards; with --labels critic its observations alone count"""
    out: Path
    """checkpoint to write; a name without suffix is a folder that gets a ckpt.pt"""
    load: LoadConfig = field(default_factory=LoadConfig)
    mode: Mode = "anchored"
    """anchored: the base policy is the reference, a second network learns what good chunks add to it; fresh: one new
    network that is told whether a chunk is good, as in the paper; goal: one that is told what was reached later, which
    takes no rewards; hierarchical: that twice, for subgoals and for chunks that lead to them; awr: no guidance, one new
    network that clones good chunks more than bad ones, to compare with"""
    guidance_weight: float = 1.0
    """0 is the reference, 1 the conditional policy, more exaggerates; can be changed when the result is loaded"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """noise levels (1 is noise, 0 the finished chunk) between which the weight may exceed 1"""
    max_guidance_weight: float = 3.0
    """largest weight that the result is meant for; it is saved, and larger ones are warned of"""
    clip_inside: bool = True
    """clip the guided estimate in every denoising step, if the base policy clips its own; False: at the end only"""
    labels: Literal["data", "critic"] = "data"
    """data: the recorded chunks, by values of implicit Q-learning; critic: samples of the base policy at the recorded
    observations, by the critic of --agent"""
    agent: Path | None = None
    """run folder of `dsrl finetune --algo na` on the same base policy, for --labels critic"""
    rule: Literal["threshold", "quantile", "soft"] = "quantile"
    """good is: an advantage of --threshold or more; one of the best --share; or, with probability sigmoid(advantage /
    temperature), any"""
    threshold: float = 0.0
    """least advantage of a good chunk, in units of the return"""
    share: float = 0.3
    """of the chunks that are called good; with --labels critic, of those at each observation"""
    temperature: float = 1.0
    """of the soft rule, in units of the return"""
    awr_temperature: float = 1.0
    """in standard deviations of the advantages: with --mode awr a chunk counts exp(advantage / temperature) times, at
    most 100; --rule then says only what is reported"""
    candidates: int = 16
    """samples of the base policy per observation, for --labels critic"""
    states: int = 4096
    """recorded observations at most, for --labels critic"""
    values: ValuesConfig = field(default_factory=ValuesConfig)
    folds: int = 2
    """parts of the episodes, for --labels data: each is labelled by values that were learned from the others; 1: by
    values of all, for data too many to be remembered"""
    gamma: float = 0.99
    """discount per env step"""
    reward: Reward = "auto"
    """success: +1 and the end at success; step-cost: -1 until success; dense: as recorded. auto: success for
    manipulation, dense elsewhere"""
    goal_key: str = "goal"
    """for --mode goal and hierarchical: what the environment calls the goal"""
    reached_key: str | None = None
    """the recorded observation that says what was reached, in the units of a goal; left out: the only other one"""
    subgoal_steps: int = 25
    """env steps to a subgoal, for --mode hierarchical"""
    steps: int = 5_000
    """gradient steps of the policy"""
    batch_size: int = 256
    """chunks per gradient step"""
    lr: float = 1e-3
    """of AdamW at the start; a cosine takes it to zero"""
    weight_decay: float = 1e-4
    """of AdamW"""
    ema_decay: float = 0.995
    """of the averaged weights, which are what is saved"""
    valid_share: float = 0.1
    """share of the episodes held out for the validation loss, when the file does not choose them"""
    seed: int = 0
    """of the initial weights and the batches; added to that of the values"""
    run_dir: Path | None = None
    """where metrics are written; left out: runs/<env>/extract/<time>_seed<seed>"""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto"""
    overwrite: bool = False
    """replace an existing checkpoint, and write into a run folder that already exists"""

    def __post_init__(self) -> None:
        check_weight(self.guidance_weight)
        check_weight(self.max_guidance_weight, "--max-guidance-weight")
        check_training(self)
        within(self, "[1, inf)", "states", "subgoal_steps", "folds")
        within(self, "[2, inf)", "candidates")
        within(self, "(0, 1)", "share")
        within(self, "(0, inf)", "temperature", "awr_temperature")
        within(self, "(0, 1]", "gamma")
        if (self.labels == "critic") != (self.agent is not None):
            raise DsrlError(
                f"--labels is {self.labels} and --agent {self.agent}; --labels critic needs the run whose critic rates "
                "the samples (--agent RUN), --labels data has none"
            )
        if self.mode in GOAL_MODES and self.labels != "data":
            raise DsrlError(
                f"--labels is {self.labels}, but --mode {self.mode} needs no labels: what was reached later is the "
                "goal; leave out --labels and --agent"
            )

    @property
    def guidance(self) -> Guidance:
        """Weights, interval and clipping."""
        return Guidance(self.guidance_weight, self.guidance_interval, self.clip_inside, self.max_guidance_weight)
