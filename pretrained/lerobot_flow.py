"""LeRobot's flow policies on vision-language models, computed by lerobot itself (0.4 and later).

What is ours: the noise is an argument, so nothing else is random; observations and chunks are batched and in
environment units, through lerobot's own processors; nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.policy import Obs, PolicySpec, concat_obs
from dsrl.pretrained.folders import read_json
from dsrl.pretrained.formats import refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.live import Live

KINDS = ("smolvla", "pi0", "pi05")
"""of LeRobot's ``config.json``"""
_ACTION = "action"
_SIDES = ("policy_preprocessor.json", "policy_postprocessor.json")


class LerobotFlowPolicy(nn.Module):
    """lerobot's policy between its processors.

    The noise is that of the whole chunk and of all actions that the network knows, ``(chunk_size, max_action_dim)``;
    the robot plays the first ``n_action_steps`` and its own dimensions. The encoding is the flat observation: what the
    language model makes of it is too large to be kept.

    Args:
        inner: a policy of lerobot, in evaluation mode.
        before: its preprocessor.
        after: its postprocessor.
        spec: keys by their names in LeRobot; images are in [0, 1], channels first.
        task: the instruction.
    """

    kind = "lerobot-flow"

    def __init__(self, inner: nn.Module, before: Any, after: Any, spec: PolicySpec, task: str):
        super().__init__()
        self.inner, self.spec, self.task = inner, spec, task
        self._before, self._after = before, after

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.inner.parameters()).device

    @property
    def cond_dim(self) -> int:
        """Length of the flat observation."""
        return self.spec.obs_dim

    def config_dict(self) -> dict[str, Any]:
        """There is nothing to save here.

        Raises:
            DsrlError: always.
        """
        raise DsrlError(
            "this policy is computed by lerobot and cannot be written into a file of ours; the run folder keeps where "
            "it lies, so score it with `dsrl evaluate RUN`"
        )

    @torch.no_grad()
    def encode(self, obs: Obs) -> Tensor:
        """``(B, 1, Do)`` in environment units -> ``(B, Do)``."""
        return concat_obs(obs, self.spec).flatten(1).to(self.device, torch.float32)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, Do), (B, chunk_size, max_action_dim)`` -> the executed chunk ``(B, Ta, Da)`` in environment units.

        Raises:
            ValueError: when the noise has another shape.
        """
        expected = (len(cond), *self.spec.noise_shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {expected}")
        shapes = self.spec.obs_shapes
        parts = cond.split([int(torch.Size(shape).numel()) for shape in shapes.values()], dim=-1)
        # clones: a processor that has nothing to do hands its input on, and the policy may write into it
        obs = {key: part.clone().unflatten(-1, shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
        batch = self._before({**obs, "task": [self.task] * len(cond)})
        inner: Any = self.inner
        chunk = self._after(inner.predict_action_chunk(batch, noise=noise.to(self.device, torch.float32)))
        return chunk[:, : self.spec.n_action_steps].float()

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)


def recognises(path: Path) -> bool:
    """Whether a flow policy of LeRobot lies there."""
    try:
        return (path / "config.json").is_file() and read_json(path / "config.json").get("type") in KINDS
    except DsrlError:
        return False


def open_policy(folder: Path, load: LoadConfig) -> LerobotFlowPolicy:
    """The policy in a folder of LeRobot, on the CPU.

    Raises:
        DsrlError: when lerobot is not installed, there is no instruction, or the folder is broken, would run code, or
            holds what cannot be steered.
    """
    refuse_side_files(Found(folder), load, sampled=True)
    if not load.task:
        raise DsrlError(f"{folder} acts on an instruction; say it as in --load.task 'lift the cube'")
    for name in _SIDES:
        _check_steps(folder / name)
    inner, before, after = _read(folder)
    spec = _spec(inner.config, folder, load.task)
    _check_statistics(before, list(spec.obs_shapes), folder / _SIDES[0])
    _check_statistics(after, [_ACTION], folder / _SIDES[1])
    _check_weights(inner, folder / "model.safetensors")
    return LerobotFlowPolicy(inner.requires_grad_(False).eval(), before, after, spec, load.task)


def _check_steps(path: Path) -> None:
    """lerobot imports what a processor names by ``class``; those that it knows have a ``registry_name``."""
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise DsrlError(f"{path} has no list of steps; was it written by LeRobot 0.4 or later?")
    for step in steps:
        if "class" in step or not isinstance(step.get("registry_name"), str):
            raise DsrlError(
                f"{path} wants to import '{step.get('class')!s:.80}'; that is refused and nothing was executed. Steps "
                "with a registry_name are read"
            )


def _read(folder: Path) -> tuple[Any, Any, Any]:
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.processor import DeviceProcessorStep
    except ImportError as error:
        raise DsrlError(
            f"{folder} is computed by lerobot, which is not installed ({error}): pip install 'dsrl-steering[lerobot]', "
            "or serve it from an environment of its own (docs/checkpoints.md, A policy in another process)"
        ) from error
    try:
        with redirect_stdout(io.StringIO()):  # lerobot prints
            kind = get_policy_class(read_json(folder / "config.json")["type"])  # registers the kind's config too
            config = PreTrainedConfig.from_pretrained(folder)
            _check_config(config, folder)
            config.device, config.compile_model = "cpu", False
            config.load_vlm_weights = False  # of smolvla: its own weights hold them
            inner = kind.from_pretrained(folder, config=config, strict=True)
            sides = make_pre_post_processors(config, pretrained_path=str(folder))
    except DsrlError:
        raise
    except Exception as error:  # draccus, safetensors, transformers and the hub raise many kinds
        raise DsrlError(f"{folder}: lerobot cannot read it ({_innermost(error)})") from error
    for side in sides:  # tensors stay where the policy is
        side.steps = [step for step in side.steps if not isinstance(step, DeviceProcessorStep)]
    return inner, *sides


def _innermost(error: BaseException) -> str:
    """What went wrong first: draccus says only that something did."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def _check_config(config: Any, folder: Path) -> None:
    rtc = getattr(config, "rtc_config", None)
    if rtc is not None and rtc.enabled:
        raise DsrlError(
            f"{folder}/config.json: rtc_config is enabled, which continues the chunk before; a chunk that depends on "
            "more than observation and noise cannot be steered. Set rtc_config.enabled to false"
        )
    if config.n_obs_steps != 1:
        raise DsrlError(f"{folder}/config.json: n_obs_steps is {config.n_obs_steps}; 1 is supported")
    if not config.input_features or _ACTION not in (config.output_features or {}):
        raise DsrlError(f"{folder}/config.json lacks input_features or the output feature '{_ACTION}'")


def _spec(config: Any, folder: Path, task: str) -> PolicySpec:
    shapes = {key: tuple(feature.shape) for key, feature in config.input_features.items()}
    return PolicySpec(
        # cameras that the robot does not have: lerobot fills them in
        obs_shapes={key: shape for key, shape in shapes.items() if ".empty_camera_" not in key},
        action_dim=config.output_features[_ACTION].shape[0],
        horizon=config.chunk_size,
        n_action_steps=config.n_action_steps,
        noise_shape=(config.chunk_size, config.max_action_dim),
        sha256=_identity(folder, task),
        provenance={"type": config.type, "task": task},
    )


def _identity(folder: Path, task: str) -> str:
    """Of every file that lerobot reads there, and of the instruction: both make the policy."""
    digest = hashlib.sha256(task.encode())
    for path in sorted([folder / "config.json", folder / "model.safetensors", *folder.glob("policy_*processor*")]):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _check_weights(inner: nn.Module, path: Path) -> None:
    """lerobot's pi0 goes on with random weights where it cannot load its file."""
    state, read = inner.state_dict(), set()
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  no dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise DsrlError(f"{path}: the tensor '{name}' holds NaN or infinite values")
                ours = name if name in state else f"model.{name}"
                if ours not in state or not torch.equal(state[ours], tensor.to(state[ours].dtype)):
                    raise DsrlError(
                        f"{path}: lerobot did not load the tensor '{name}'; save it again with this lerobot"
                    )
                read.add(ours)
    except (SafetensorError, OSError) as error:
        raise DsrlError(f"{path} is truncated or no safetensors file ({error!s:.120}); copy it again") from error
    # one of two names of the same tensor is left out of a file
    shared = {state[name].data_ptr() for name in read}
    missing = sorted(name for name in state if name not in read and state[name].data_ptr() not in shared)
    if missing:
        raise DsrlError(f"{path} lacks {missing[:5]}; save it again with this lerobot")


def _check_statistics(side: Any, keys: Sequence[str], path: Path) -> None:
    """lerobot leaves alone what it has no statistics for."""
    for step in side.steps:
        for key in keys:
            feature = getattr(step, "features", {}).get(key)
            mode = getattr(step, "norm_map", {}).get(feature.type) if feature else None
            if mode is not None and mode.name != "IDENTITY" and key not in (step.stats or {}):
                raise DsrlError(
                    f"{path} has no statistics of '{key}', which is normalised by {mode.name}; is it a base model that "
                    "was not trained on a robot yet?"
                )


def describe(policy: LerobotFlowPolicy) -> list[tuple[str, str]]:
    """What is known, as rows of name and value."""
    config: Any = policy.inner.config
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    return [
        ("format", f"lerobot, {config.type}, computed by lerobot"),
        ("instruction", policy.task),
        ("network", f"{parameters:,} parameters"),
        ("sampler", f"Euler, {getattr(config, 'num_steps', None) or config.num_inference_steps} steps"),
    ]


LIVE = Live(recognises, open_policy, describe)
