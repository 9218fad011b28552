"""Any checkpoint -> a frozen policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dsrl.config import LoadConfig
from dsrl.device import auto_device
from dsrl.errors import DsrlError
from dsrl.policy import FrozenPolicy
from dsrl.pretrained import (
    agent_folder,
    diffusers_folder,
    diffusion_policy,
    dppo,
    hub,
    lerobot,
    lerobot_flow,
    native,
    remote,
    robomimic,
)
from dsrl.pretrained.formats import Checkpoint, Format, find_format
from dsrl.pretrained.found import Found
from dsrl.pretrained.live import Live
from dsrl.pretrained.plugins import plugin_formats
from dsrl.sampler import Sampler

_MODULES = (native, dppo, diffusion_policy, robomimic, lerobot, diffusers_folder)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
"""by name, in the order in which they are asked"""
LIVE = (remote.LIVE, agent_folder.LIVE, lerobot_flow.LIVE)
"""policies that are not built here, asked before the formats"""


def load_policy(
    path: str | Path,
    *,
    format: str = "auto",
    config: str | Path | None = None,
    normalization: str | Path | None = None,
    weights: Literal["ema", "model"] = "ema",
    sampling_steps: int | None = None,
    task: str | None = None,
    guidance_weight: float | None = None,
    base: str | Path | None = None,
    steer_guidance: float | None = None,
    device: str | torch.device = "auto",
) -> FrozenPolicy:
    """Read a checkpoint: frozen, on ``device``, proven to be deterministic.

    Args:
        path: a file, or a folder of LeRobot, diffusers or a run of ``dsrl pretrain``, or ``hf://org/name@revision``,
            or ``ws://host:port`` for a policy in another process.
        format: a key of :data:`FORMATS`; ``auto`` finds it out from the file.
        config: DPPO's hydra YAML, when it does not lie beside the checkpoint.
        normalization: DPPO's ``normalization.npz``, when it does not lie beside the checkpoint.
        weights: the moving average, where there is one, or the raw weights.
        sampling_steps: denoise with DDIM in this many steps instead of what the file says. That is another policy.
        task: the instruction, for a policy that reads one.
        guidance_weight: of a guided policy, instead of what its file says. That is another policy too.
        base: of an agent of `dsrl push`: its base policy, when that is not where the folder says.
        steer_guidance: of a guided policy: one number more in its noise chooses the weight, between 0 and this.
        device: ``cpu``, ``cuda``, ``auto``.

    Raises:
        DsrlError: when the file is missing, broken, foreign or contradicts itself; nothing in it is ever executed.
    """
    target = auto_device(device)
    load = LoadConfig(
        format=format,
        config=Path(config) if config else None,
        normalization=Path(normalization) if normalization else None,
        weights=weights,
        sampling_steps=sampling_steps,
        task=task,
        guidance_weight=guidance_weight,
        base=Path(base) if base else None,
        steer_guidance=steer_guidance,
    )
    live, path = find_live(Path(path), load)
    opened = live.open(path, load) if live else native.build_policy(read_checkpoint(path, load), path)
    policy: Any = opened.to(target)
    _prove_deterministic(policy, spelled(path))
    return policy


def find_live(path: Path, load: LoadConfig) -> tuple[Live | None, Path]:
    """Who opens what lies there, None when it is built from its tensors; and where it lies, once it was fetched."""
    path = path if remote.is_address(path) else checkpoint_path(path)
    asked = LIVE if load.format in ("auto", lerobot.FORMAT.name) else (remote.LIVE,)
    return next((live for live in asked if live.recognises(path)), None), path


def read_checkpoint(path: Path, load: LoadConfig) -> Checkpoint:
    """The checked content of a checkpoint of any format; nothing is built yet.

    Raises:
        DsrlError: when it is missing, broken, unsafe or foreign.
    """
    found = Found(path)
    ours = load.format in FORMATS or (load.format == "auto" and _is_ours(found))
    if load.task and ours:
        raise DsrlError(f"{path} acts on no instruction; leave out --load.task")
    # other packages are imported only when none of ours fits, and cannot take a name of ours
    formats = FORMATS if ours else {**plugin_formats(), **FORMATS}
    checkpoint = find_format(found, formats, load.format).read(found, load)
    if load.base is not None:
        raise DsrlError(f"--load.base is for agents and runs; {path} is a policy of its own, so leave it out")
    if load.guidance_weight is not None:
        checkpoint = native.with_guidance_weight(checkpoint, load.guidance_weight, path)
    if load.steer_guidance is not None:
        checkpoint = native.with_weight_in_noise(checkpoint, load.steer_guidance, path)
    return checkpoint


def is_checkpoint(path: Path) -> bool:
    """Whether one of our formats recognises what lies there; a run folder is none."""
    return _is_ours(Found(path))


def _is_ours(found: Found) -> bool:
    return any(each.detect(found) for each in FORMATS.values())


def checkpoint_path(path: Path) -> Path:
    """A folder with a ``ckpt.pt`` stands for that file, ``hf://org/name@revision`` for what is fetched from there.

    Raises:
        DsrlError: for the address of a server, which has no file.
    """
    if remote.is_address(path):
        raise DsrlError(
            f"{spelled(path)}: the weights of this policy are in another process; do that where its checkpoint lies"
        )
    path = hub.fetch(path) if hub.is_address(path) else path
    own = native.checkpoint_file(path)
    return own if own.is_file() else path


def spelled(path: str | Path) -> str:
    """As it was given: a ``Path`` has lost the second slash of an address."""
    return re.sub(r"^(hf|wss?):/(?!/)", r"\1://", str(path))


@torch.no_grad()
def _prove_deterministic(policy: Any, path: str) -> None:
    """Steering chooses the noise, so nothing else may be random; in any step of a sampler it would show."""
    spec = policy.spec
    obs = torch.zeros(1, spec.n_obs_steps, spec.obs_dim, device=policy.device)
    noise = torch.randn(1, *spec.noise_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    try:
        with _first_and_last_step(policy):
            first, second = policy.sample(obs, noise), policy.sample(obs, noise)
    except DsrlError:
        raise
    except Exception as error:  # of the arithmetic, or of another package
        raise DsrlError(f"{path}: the policy cannot be sampled: {error!s:.200}") from error
    if not torch.isfinite(first).all():
        raise DsrlError(f"{path}: the policy answers with NaN")
    if not torch.equal(first, second):
        raise DsrlError(
            f"{path}: the same noise gave two different chunks; a policy must be deterministic to be steered"
        )


@contextmanager
def _first_and_last_step(policy: nn.Module) -> Iterator[None]:
    """A large network that is evaluated 100 times would take longer than all the rest of loading."""
    modules: list[Any] = [each for each in policy.modules() if isinstance(getattr(each, "sampler", None), Sampler)]
    samplers = [module.sampler for module in modules]
    try:
        for module, sampler in zip(modules, samplers, strict=True):
            module.sampler = Sampler((sampler.steps[0], sampler.steps[-1]), sampler.final_clip)
        yield
    finally:
        for module, sampler in zip(modules, samplers, strict=True):
            module.sampler = sampler
