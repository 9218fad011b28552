"""Our own checkpoint: one file with the weights and everything that says what they mean.

::

    {"format": "dsrl", "version": 2, "kind": "diffusion", "config": {...}, "spec": {...},
     "env": robomimic's env_args or None, "weights": state_dict, "provenance": {...}}

Only tensors and plain values; it is read with ``torch.load(weights_only=True)``, so no file can run code. Version 1 is
the same, but its policies are known by the hash of their weights alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dsrl.config import LoadConfig
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.files import replacing
from dsrl.guidance import Guidance, check_weight
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained.formats import Checkpoint, Format, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.kinds import KINDS, Weights, weights_sha256

VERSION = 2
_MOST = {"train_steps": 10_000, "sampling_steps": 10_000, "n_layers": 1_000, "n_cond_layers": 1_000}
_FIELDS = {"kind": str, "config": dict, "spec": dict, "weights": dict}


def save_policy(policy: FrozenPolicy, path: str | Path) -> Path:
    """Write ``policy`` to ``path`` (``ckpt.pt`` in it, when that is a folder); the file appears whole or not at all.

    Returns:
        the file.
    """
    module: Any = policy
    spec = policy.spec
    checkpoint = {
        "format": FORMAT.name,
        "version": VERSION,
        "kind": module.kind,
        "config": plain(module.config_dict()),
        "spec": spec_to_dict(spec),
        "env": plain(spec.env.to_robomimic()) if spec.env else None,
        "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()},
        "provenance": plain(dict(spec.provenance)),
    }
    path = checkpoint_file(Path(path))
    # through memory, so that a full disk is an ordinary OSError
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def checkpoint_file(path: Path) -> Path:
    """A folder stands for the ``ckpt.pt`` in it."""
    return path / "ckpt.pt" if path.is_dir() or not path.suffix else path


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """What :func:`save_policy` wrote.

    Raises:
        DsrlError: when it is broken, unsafe, foreign or too new, or is asked for what our files do not have.
    """
    refuse_side_files(found, load, sampled=True)
    content = _check_header(found.read(), found.path)
    check_sizes(content, found.path)
    try:
        spec = spec_from_dict(content)
    except (DsrlError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DsrlError(f"{found.path}: its spec is not that of a policy: {error}") from error
    return Checkpoint(
        content["kind"],
        content["config"],
        spec,
        content["weights"],
        FORMAT.name,
        str(content["version"]),
        hash_of_weights=content["version"] == 1,
    )


def build_policy(checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The frozen policy that a checkpoint describes, with its weights, on the CPU."""
    kind, weights = checkpoint.kind, checkpoint.weights
    if kind not in KINDS:
        raise DsrlError(f"{path} holds a policy of kind '{kind}'; known are {sorted(KINDS)}. Is this dsrl too old?")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise DsrlError(
                f"{path}: the tensor '{name}' holds NaN or infinite values; the training that wrote it failed"
            )
    try:
        spec = replace(checkpoint.spec, sha256=_identity(checkpoint))
        with _SkipInit():
            policy = KINDS[kind](checkpoint.config, spec, weights)
    except Exception as error:  # a wrong setting fails in as many ways as there are settings
        raise DsrlError(f"{path}: spec and config do not make a {kind} policy: {error}") from error
    _load_weights(policy, weights, path)
    return policy.eval().requires_grad_(False)


def check_sizes(content: Mapping[str, Any], path: Path) -> None:
    """Before anything is built: a slip of the pen must neither fill the memory nor compute for hours.

    Raises:
        DsrlError: naming the first number in ``config`` or ``spec`` that is too large.
    """

    def walk(value: Any, name: str, depth: int = 0) -> None:
        if depth > 50:
            raise DsrlError(f"{path}: its config contains itself, or is none that dsrl wrote")
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, str(key), depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item, name, depth + 1)
        elif isinstance(value, int) and name != "seed" and abs(value) > (most := _MOST.get(name, 100_000)):
            raise DsrlError(f"{path}: '{name}' is {value}, which is more than {most}; was it edited by hand?")

    for part in ("config", "spec"):
        walk(content[part], part)


class _SkipInit(TorchFunctionMode):
    """Leaves out random initial weights: they would be overwritten, and a large network takes a second to draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _identity(checkpoint: Checkpoint) -> str:
    """Of all that makes a chunk out of observations and noise: weights, network, sampler, shapes and their order."""
    digest = weights_sha256(checkpoint.weights)
    if checkpoint.hash_of_weights:
        return digest
    spec = spec_to_dict(checkpoint.spec) | {"obs_shapes": list(checkpoint.spec.obs_shapes.items())}
    rest = json.dumps(plain([checkpoint.kind, dict(checkpoint.config), spec]), sort_keys=True)
    return hashlib.sha256(f"{digest}{rest}".encode()).hexdigest()


def with_guidance_weight(checkpoint: Checkpoint, weight: float, path: Path) -> Checkpoint:
    """The same policy, guided with another weight; one that it is not meant for is warned of.

    Raises:
        DsrlError: when it is not guided.
    """
    guidance = {**_guidance(checkpoint, f"--load.guidance-weight is {weight}", path), "weight": weight}
    _warn_of(guidance, weight)
    return replace(checkpoint, config={**checkpoint.config, "guidance": guidance})


def with_weight_in_noise(checkpoint: Checkpoint, max_weight: float, path: Path) -> Checkpoint:
    """The same policy as a :class:`~dsrl.weighted.WeightedPolicy`.

    Raises:
        DsrlError: when it is not guided, or its own weight is larger.
    """
    guidance = _guidance(checkpoint, f"--steer-guidance is {max_weight}", path)
    if check_weight(max_weight, "--steer-guidance") < guidance["weight"]:
        raise DsrlError(
            f"--steer-guidance is {max_weight:g}, less than {guidance['weight']:g}, the weight of {path} itself; give "
            "a larger one, or a smaller --load.guidance-weight"
        )
    _warn_of(guidance, max_weight)
    shape = checkpoint.spec.noise_shape
    base = {"kind": checkpoint.kind, "config": checkpoint.config, "noise_shape": list(shape)}
    return replace(
        checkpoint,
        kind="weighted",
        config={"base": base, "max_weight": max_weight},
        spec=replace(checkpoint.spec, noise_shape=(math.prod(shape) + 1,)),
        weights={f"base.{name}": tensor for name, tensor in checkpoint.weights.items()},
    )


def _guidance(checkpoint: Checkpoint, asked: str, path: Path) -> Mapping[str, Any]:
    if "guidance" not in checkpoint.config:
        raise DsrlError(
            f"{asked}, but {path} holds a policy of kind '{checkpoint.kind}', which is not guided; leave it out"
        )
    return checkpoint.config["guidance"]


def _warn_of(guidance: Mapping[str, Any], weight: float) -> None:
    if concern := Guidance(max_weight=guidance.get("max_weight", Guidance.max_weight)).concern(weight):
        warnings.warn(concern, stacklevel=2)


# -- reading ----------------------------------------------------------------------------------------------------------


def _check_header(checkpoint: Any, path: Path) -> dict[str, Any]:
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT.name:
        found = sorted(map(str, checkpoint))[:8] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise DsrlError(
            f"{path} is a checkpoint of another program (found: {found}). This version reads its own files, "
            "written by `dsrl pretrain` or dsrl.save_policy."
        )
    version = checkpoint.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise DsrlError(f"{path} has format version {version}, this dsrl reads 1 to {VERSION}; update dsrl-steering")
    for name, kind in _FIELDS.items():
        if not isinstance(checkpoint.get(name), kind):
            raise DsrlError(f"{path} lacks '{name}' (found: {sorted(checkpoint)}); was it edited by hand?")
    for name, tensor in checkpoint["weights"].items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise DsrlError(f"{path}: 'weights' must hold plain tensors only, but '{name}' is none")
    return checkpoint


def _load_weights(policy: nn.Module, weights: Weights, path: Path) -> None:
    expected = policy.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise DsrlError(f"{path}: weights do not fit the config; missing: {missing[:5]}, not expected: {extra[:5]}")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise DsrlError(
                f"{path}: '{name}' has shape {list(weights[name].shape)}, the config says {list(tensor.shape)}"
            )
    policy.load_state_dict(dict(weights))


# -- values -----------------------------------------------------------------------------------------------------------


def plain(values: Any) -> Any:
    """JSON types only: what else stood in the file, weights_only would not read."""
    return json.loads(json.dumps(values, default=str))


def spec_to_dict(spec: PolicySpec) -> dict[str, Any]:
    """Shapes and steps as plain values; :func:`spec_from_dict` is the inverse."""
    return {
        "obs_shapes": {key: list(shape) for key, shape in spec.obs_shapes.items()},
        "action_dim": spec.action_dim,
        "horizon": spec.horizon,
        "n_action_steps": spec.n_action_steps,
        "n_obs_steps": spec.n_obs_steps,
        "action_start": spec.action_start,
        "noise_shape": list(spec.noise_shape),
    }


def spec_from_dict(checkpoint: Mapping[str, Any]) -> PolicySpec:
    """From the entries ``spec``, ``env`` and ``provenance`` of a checkpoint.

    Raises:
        ValueError: for a size that is none; other kinds of errors for other things that are no spec.
    """
    values = dict(checkpoint["spec"])
    values["obs_shapes"] = {key: tuple(shape) for key, shape in values["obs_shapes"].items()}
    values["noise_shape"] = tuple(values.get("noise_shape", ()))
    numbers = [(name, value) for name, value in values.items() if name not in ("obs_shapes", "noise_shape")]
    numbers += [("noise_shape", size) for size in values["noise_shape"]]
    numbers += [(key, size) for key, shape in values["obs_shapes"].items() for size in shape]
    for name, number in numbers:
        if type(number) is not int or number < (name != "action_start"):
            raise ValueError(f"'{name}' is {number!r:.60}, expected a whole number above 0")
    env = checkpoint.get("env")
    return PolicySpec(
        **values,
        env=EnvSpec.from_robomimic(env) if env else None,
        provenance=checkpoint.get("provenance") or {},
    )


def detect(found: Found) -> bool:
    """Whether :func:`save_policy` wrote it."""
    content = found.content
    return isinstance(content, dict) and content.get("format") == FORMAT.name


FORMAT = Format("dsrl", "files of `dsrl pretrain` and dsrl.save_policy", detect, read)
