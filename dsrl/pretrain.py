"""Behaviour cloning: a data set in, a frozen policy out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsrl.errors import DsrlError
from dsrl.files import check_out, checkpoint_file
from dsrl.limits import check_training, within

if TYPE_CHECKING:
    from dsrl.data import Trajectories
    from dsrl.training import Trainer


@dataclass(frozen=True)
class PretrainConfig:
    """Train a diffusion or flow policy on demonstrations; the defaults are small enough for one CPU core."""

    dataset: Path
    """robomimic HDF5 file, as `dsrl collect` writes it"""
    out: Path
    """checkpoint to write; a name without suffix is a folder that gets a ckpt.pt"""
    kind: Literal["diffusion", "flow"] = "diffusion"
    """how noise becomes actions"""
    network: Literal["mlp", "unet"] = "mlp"
    """residual MLP, or the 1-D U-Net for long horizons"""
    hidden_dims: tuple[int, ...] | None = None
    """widths; left out: two residual blocks of 256 (an input layer and two layers per block), U-Net levels 64 128"""
    n_obs_steps: int = 1
    """observations the policy looks at"""
    horizon: int = 4
    """predicted steps, which is the length of the noise"""
    n_action_steps: int = 4
    """executed steps of the horizon"""
    action_start: int | None = None
    """first executed step; left out: the one of the last observation"""
    train_steps: int = 20
    """noise levels of a diffusion policy; a flow has none"""
    sampling_steps: int = 10
    """network evaluations per chunk"""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """what the network of a diffusion policy predicts"""
    steps: int = 5_000
    """gradient steps"""
    batch_size: int = 256
    """windows per gradient step"""
    lr: float = 1e-3
    """of AdamW at the start; a cosine takes it to zero"""
    weight_decay: float = 1e-4
    """of AdamW"""
    ema_decay: float = 0.995
    """of the averaged weights, which are what is saved"""
    valid_share: float = 0.1
    """share of the episodes held out for the validation loss, when the file does not choose them"""
    eval_episodes: int = 50
    """episodes played at the end; 0 plays none"""
    eval_seed: int = 10_000_000
    """first of their seeds, away from those of the demonstrations"""
    seed: int = 0
    """of the initial weights and the batches"""
    device: str = "auto"
    """auto, cpu or cuda:0"""
    overwrite: bool = False
    """replace an existing checkpoint"""

    def __post_init__(self) -> None:
        check_training(self)
        counts = ("n_obs_steps", "horizon", "n_action_steps", "train_steps", "sampling_steps")
        within(self, "[1, inf)", *counts)
        within(self, "[0, inf)", "action_start", "eval_episodes")


def pretrain(config: PretrainConfig) -> Path:
    """Train, save the averaged weights, play some episodes.

    Ctrl-C leaves a policy in ``<out>.partial``. The same call goes on from there, and after ``kill -9`` from what was
    written last (:class:`~dsrl.unfinished.Unfinished`).

    Returns:
        the checkpoint.

    Raises:
        DsrlError: when data or settings do not fit.
        RunFailed: when the loss is no longer finite.
    """
    from rich.console import Console

    from dsrl.data import read_hdf5
    from dsrl.device import auto_device
    from dsrl.facts import flags
    from dsrl.pretrained import save_policy
    from dsrl.pretrained.hub import local_data
    from dsrl.training import Trainer, windows
    from dsrl.unfinished import Unfinished

    console = Console(markup=False, highlight=False)  # messages hold [brackets]
    out = checkpoint_file(config.out)
    check_out(out, config.overwrite)
    config = replace(config, dataset=local_data(config.dataset))
    data = read_hdf5(config.dataset)
    device = auto_device(config.device)
    policy = _new_policy(config, data).to(device)
    train, valid = (windows(part, policy.spec, device) for part in data.split(config.valid_share, config.seed))
    policy.fit_normalizers(*train)
    successes = sum(episode.success for episode in data.episodes)
    console.print(
        f"{len(data)} episodes ({successes} successes), {len(train[0])} windows for training, {len(valid[0])} held out"
    )
    console.print(f"{config.kind} policy, {sum(p.numel() for p in policy.parameters()):,} parameters, on {device}")
    origin = _origin(config, data)
    free = ("device", "eval_episodes", "eval_seed")
    facts = {**flags(origin["config"], free), "data": origin["data sha256"]}
    kept = Unfinished(out, facts, anew=config.overwrite, say=console.print)
    trainer = Trainer(policy, config, kept=kept)
    try:
        trainer.run(train, valid)
    except KeyboardInterrupt:
        console.print(
            kept.explain(f"after {trainer.step} steps", save_policy(_described(trainer, origin), kept.partial))
        )
        raise
    frozen = _described(trainer, origin)
    save_policy(frozen, out)
    kept.finish()
    console.print(f"wrote {out}")
    success = _rollout(frozen, config, console.print)
    if success is not None:
        save_policy(_described(trainer, origin, success=success), out)
    return out


def _new_policy(config: PretrainConfig, data: Trajectories) -> Any:
    import torch

    from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
    from dsrl.policy import PolicySpec

    network: dict[str, Any] = {"type": config.network}
    if config.hidden_dims is not None:
        network["hidden_dims" if config.network == "mlp" else "down_dims"] = config.hidden_dims
    try:
        spec = PolicySpec(
            obs_shapes=dict(data.obs_shapes),
            action_dim=data.episodes[0].actions.shape[1],
            horizon=config.horizon,
            n_action_steps=config.n_action_steps,
            n_obs_steps=config.n_obs_steps,
            action_start=config.n_obs_steps - 1 if config.action_start is None else config.action_start,
            env=data.env,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.kind == "flow":
                return FlowPolicy(spec, FlowConfig(network, sampling_steps=config.sampling_steps))
            diffusion = DiffusionConfig(
                network,
                train_steps=config.train_steps,
                sampling_steps=config.sampling_steps,
                prediction_type=config.prediction_type,
            )
            return DiffusionPolicy(spec, diffusion)
    except ValueError as error:
        raise DsrlError(str(error)) from error


def _origin(config: PretrainConfig, data: Trajectories) -> dict[str, Any]:
    """Where the new policy comes from."""
    from dsrl import __version__
    from dsrl.facts import file_sha256

    # where files lie on this machine is nobody else's business
    settings = {key: value for key, value in asdict(config).items() if key not in ("dataset", "out", "overwrite")}
    return {
        "made by": f"dsrl {__version__} pretrain",
        "data": f"{config.dataset.name}, {len(data)} episodes, {sum(e.success for e in data.episodes)} successes",
        "data sha256": file_sha256(config.dataset),
        "config": settings,
    }


def _described(trainer: Trainer, origin: Mapping[str, Any], **more: Any) -> Any:
    """The averaged policy, knowing where it came from."""
    policy, losses = trainer.ema, {"train loss": trainer.train_loss, "valid loss": trainer.valid_loss}
    numbers = {name: round(loss, 5) for name, loss in losses.items()}
    policy.spec = replace(policy.spec, provenance={**origin, "steps": trainer.step, **numbers, **more})
    return policy


def _rollout(policy: Any, config: PretrainConfig, say: Callable[[str], None]) -> str | None:
    """Success of the new policy in the environment that the data came from, in words."""
    if config.eval_episodes <= 0:
        return None
    if policy.spec.env is None:
        say("not played: the data set does not name its environment")
        return None
    try:
        from dsrl.evaluate import evaluate_in_env

        result = evaluate_in_env(policy, episodes=config.eval_episodes, seed=config.eval_seed, n_envs=4)
    except (DsrlError, ImportError) as error:
        # the checkpoint is written; a simulator that is not installed here does not make it worse
        say(f"not played: {error}")
        return None
    say(f"success {result.describe()}")
    return result.describe()
