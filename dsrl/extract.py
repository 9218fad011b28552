"""CFGRL (arXiv 2505.23458): a policy, and chunks labelled good or bad, in; a guided policy out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from dsrl import __version__
from dsrl.actor_file import read_critic
from dsrl.agent_config import positive
from dsrl.anchored import AnchoredPolicy
from dsrl.cfgrl import LABEL_DIM, Guided, GuidedPolicy
from dsrl.config import LoadConfig, Reward, to_dict
from dsrl.data import Trajectories
from dsrl.demos import read_demos
from dsrl.diffusion import DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.guidance import Guidance, check_weight
from dsrl.labelled import ChunkCritic, Labelled, label_recorded, label_samples, support
from dsrl.labels import Quantile, Rule, Soft, Threshold
from dsrl.policy import FrozenPolicy
from dsrl.pretrained import load_policy, save_policy, spelled
from dsrl.pretrained.agent_folder import is_agent_folder
from dsrl.pretrained.hub import local, local_data
from dsrl.run import RunFolder
from dsrl.sb3_logging import MetricsWriter
from dsrl.training import Trainer, windows
from dsrl.values import ValuesConfig


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
    mode: Literal["anchored", "fresh"] = "anchored"
    """anchored: the base policy is the reference, a second network learns what good chunks add to it; fresh: one new
    network that is told whether a chunk is good, as in the paper"""
    guidance_weight: float = 1.0
    """0 is the reference, 1 the conditional policy, more exaggerates; can be changed when the result is loaded"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """noise levels (1 is noise, 0 the finished chunk) between which the weight may exceed 1"""
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
    candidates: int = 16
    """samples of the base policy per observation, for --labels critic"""
    states: int = 4096
    """recorded observations at most, for --labels critic"""
    values: ValuesConfig = field(default_factory=ValuesConfig)
    gamma: float = 0.99
    """discount per env step"""
    reward: Reward = "auto"
    """success: +1 and the end at success; step-cost: -1 until success; dense: as recorded. auto: success for
    manipulation, dense elsewhere"""
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
        positive(self, "steps", "batch_size", "states")
        if self.candidates < 2:
            raise DsrlError(f"--candidates is {self.candidates}; to prefer one of them takes at least 2")
        if not 0 <= self.valid_share < 1:
            raise DsrlError(f"--valid-share is {self.valid_share}; it must be at least 0 and below 1")
        if not self.lr > 0:
            raise DsrlError(f"--lr is {self.lr}; it must be positive")
        if not 0 < self.gamma <= 1:
            raise DsrlError(f"--gamma is {self.gamma}; a discount per env step lies in (0, 1]")
        if (self.labels == "critic") != (self.agent is not None):
            raise DsrlError(
                f"--labels is {self.labels} and --agent {self.agent}; --labels critic needs the run whose critic rates "
                "the samples (--agent RUN), --labels data has none"
            )

    @property
    def guidance(self) -> Guidance:
        """Weight, interval and clipping."""
        return Guidance(self.guidance_weight, self.guidance_interval, self.clip_inside)


def extract(config: ExtractConfig, console: Console | None = None) -> Path:
    """Label, train, save the averaged weights.

    Ctrl-C during the training leaves what was learned so far in ``<out>.partial``.

    Returns:
        the checkpoint.

    Raises:
        DsrlError: when policy, data, labels or settings do not fit, before the policy is trained.
        RunFailed: when a loss is no longer finite.
    """
    console = console or Console(markup=False, highlight=False)
    out = config.out if config.out.suffix else config.out / "ckpt.pt"
    if out.exists() and not config.overwrite:
        raise DsrlError(f"{out} exists; choose another --out, or replace it with --overwrite")
    config = replace(config, dataset=local_data(config.dataset))
    guidance, rule = config.guidance, _rule(config)
    base: Any = load_policy(config.base_policy, **vars(config.load), device=config.device)
    data = read_demos(config.dataset, base, base.spec.env)
    train, valid = data.split(config.valid_share, config.seed)
    policy = _POLICIES[config.mode](base, guidance, train, config)
    critic = _critic(config, base)
    folder = _new_folder(config, base, data)
    console.print(f"{config.mode} extraction from {spelled(config.base_policy)}, run folder {folder.path}")
    log = _Log(folder, console)
    near = support(base, *_executed(windows(train, base.spec, base.device), base), seed=config.seed)
    log.show(near.metrics(), [near.concern() if critic is None else None])
    if critic is None:
        values = replace(config.values, seed=config.values.seed + config.seed)
        with console.status("values"):
            labelled = label_recorded(
                train,
                valid,
                policy,
                rule,
                values,
                gamma=config.gamma,
                reward=config.reward,
                source=str(config.dataset),
                report=log.write,
            )
    else:
        settings = {"candidates": config.candidates, "states": config.states, "seed": config.seed}
        labelled = label_samples(train, valid, base, rule, critic, **settings)
    log.show(labelled.metrics(), labelled.report.concerns())
    return _train(policy, labelled, config, _origin(config, base, data), out, log)


def _train(
    policy: Guided, labelled: Labelled, config: ExtractConfig, origin: Mapping[str, Any], out: Path, log: _Log
) -> Path:
    parts = (labelled.train, labelled.valid)
    rows, held_out = parts if policy.learns_from_bad else (part.good() for part in parts)
    if not len(rows.label):
        raise DsrlError("labels/positive_rate is 0% of the episodes for training: use the quantile rule, or --seed")
    log.say(f"{config.mode} policy, {len(rows.label)} chunks for training, {len(held_out.label)} held out")
    if config.guidance_weight > 3:
        log.say(
            f"a weight of {config.guidance_weight:g} usually is too much; look at the whole curve before you use it"
        )
    trainer = Trainer(policy, config, log.write)

    def described() -> Any:
        found = {**labelled.metrics(), "train loss": trainer.train_loss, "valid loss": trainer.valid_loss}
        numbers = {name: round(value, 5) for name, value in found.items()}
        trainer.ema.spec = replace(trainer.ema.spec, provenance={**origin, "steps": trainer.step, **numbers})
        return trainer.ema

    try:
        trainer.run(rows.columns(), held_out.columns())
    except KeyboardInterrupt:
        partial = save_policy(described(), out.with_name(f"{out.name}.partial"))
        log.say(f"interrupted after {trainer.step} steps; what was learned so far is in {partial}")
        raise
    finally:
        log.close()
    save_policy(described(), out)
    log.say(f"loss {trainer.train_loss:.4f}, held out {trainer.valid_loss:.4f}")
    log.say(f"wrote {out}; choose its weight with: dsrl evaluate {out} --guidance-weight 0,1,1.5,2,3,5")
    return out


# -- what is trained --------------------------------------------------------------------------------------------------


def _anchored(base: Any, guidance: Guidance, train: Trajectories, config: ExtractConfig) -> AnchoredPolicy:
    if not isinstance(base, DiffusionPolicy | FlowPolicy):
        raise DsrlError(
            f"{spelled(config.base_policy)} holds a policy of kind '{_kind(base)}', whose network cannot be copied; "
            "anchored extraction takes a diffusion or a flow policy. --mode fresh trains a network of its own"
        )
    policy = AnchoredPolicy(base, guidance)
    policy.spec = replace(policy.spec, env=base.spec.env or train.env)
    return policy


def _fresh(base: Any, guidance: Guidance, train: Trajectories, config: ExtractConfig) -> GuidedPolicy:
    """The network, sampler and normalisers of the base policy, where it has some; else those of `dsrl pretrain`."""
    spec = replace(base.spec, env=base.spec.env or train.env, sha256="", provenance={}, noise_shape=())
    new: DiffusionPolicy | FlowPolicy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(base, DiffusionPolicy | FlowPolicy):
            new = type(base)(spec, replace(base.config, label_dim=LABEL_DIM))
            for name in ("obs_normalizer", "action_normalizer"):
                getattr(new, name).load_state_dict(getattr(base, name).state_dict())
        else:
            new = FlowPolicy(spec, FlowConfig(label_dim=LABEL_DIM))
            new.fit_normalizers(*windows(train, spec, torch.device("cpu")))
    return GuidedPolicy(new, guidance).to(base.device)


_POLICIES = {"anchored": _anchored, "fresh": _fresh}


def _rule(config: ExtractConfig) -> Rule:
    rules: dict[str, Any] = {
        "threshold": lambda: Threshold(config.threshold),
        "quantile": lambda: Quantile(config.share),
        "soft": lambda: Soft(config.temperature),
    }
    return rules[config.rule]()


def _critic(config: ExtractConfig, base: Any) -> ChunkCritic | None:
    """What rates samples of the base policy, where that is asked for."""
    if config.agent is None:
        return None
    if not isinstance(base, DiffusionPolicy | FlowPolicy):
        raise DsrlError(
            f"{spelled(config.base_policy)} holds a policy of kind '{_kind(base)}', which does not show whole chunks; "
            "--labels critic takes a diffusion or a flow policy"
        )
    folder = local(config.agent)
    agent = folder if is_agent_folder(folder) else RunFolder.open(folder).final
    return ChunkCritic(*read_critic(agent, base))


def _kind(policy: FrozenPolicy) -> str:
    return getattr(policy, "kind", type(policy).__name__)


def _executed(columns: tuple[torch.Tensor, torch.Tensor], base: FrozenPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations, and what is executed of whole chunks in environment units."""
    obs, chunk = columns
    start = base.spec.action_start
    return obs, chunk[:, start : start + base.spec.n_action_steps]


# -- what is left behind ----------------------------------------------------------------------------------------------


def _new_folder(config: ExtractConfig, base: FrozenPolicy, data: Trajectories) -> RunFolder:
    env = base.spec.env or data.env
    where = env.id.replace("/", "-") if env else "data"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    facts = {"path": spelled(config.base_policy), "sha256": base.spec.sha256, "load": to_dict(config.load)}
    return RunFolder.create(
        config.run_dir or Path("runs") / where / "extract" / f"{stamp}_seed{config.seed}",
        config=to_dict(config),
        base_policy=facts | ({"env": env.to_robomimic()} if env else {}),
        force=config.overwrite,
    )


class _Log:
    """Metrics for the run folder and for TensorBoard, words for the console."""

    def __init__(self, folder: RunFolder, console: Console):
        self.console = console
        self.logger = Logger(
            str(folder.path), [TensorBoardOutputFormat(str(folder.path / "tb")), MetricsWriter(folder)]
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if value == value:  # a loss of no rows is NaN
                self.logger.record(name, value)
        self.logger.dump(step)

    def say(self, words: str) -> None:
        self.console.print(words)

    def show(self, metrics: Mapping[str, float], concerns: Sequence[str | None]) -> None:
        """Write and print, and say what speaks against going on."""
        self.write(0, metrics)
        self.say(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
        for concern in concerns:
            if concern:
                self.say(f"warning: {concern}")

    def close(self) -> None:
        self.logger.close()


def _origin(config: ExtractConfig, base: FrozenPolicy, data: Trajectories) -> dict[str, Any]:
    """Where the new policy comes from."""
    # where files lie on this machine is nobody else's business
    private = ("base_policy", "dataset", "out", "run_dir", "agent", "overwrite", "load")
    return {
        "made by": f"dsrl {__version__} extract",
        "base policy": f"{config.base_policy.name}, sha256 {base.spec.sha256}",
        "data": f"{config.dataset.name}, {len(data)} episodes, {sum(e.success for e in data.episodes)} successes",
        "data sha256": hashlib.sha256(config.dataset.read_bytes()).hexdigest(),
        "config": {key: value for key, value in asdict(config).items() if key not in private},
    }
