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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dsrl.actor import NoiseActor
from dsrl.anchored import AnchoredPolicy
from dsrl.awr import GaussianPolicy
from dsrl.cfgrl import GuidedPolicy
from dsrl.config import LoadConfig
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.files import replacing
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained.formats import Checkpoint, Format, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.toy import ToyPolicy
from dsrl.steered import SelectingPolicy, SteeredPolicy

VERSION = 2
_MOST = {"train_steps": 10_000, "sampling_steps": 10_000, "n_layers": 1_000, "n_cond_layers": 1_000}
_FIELDS = {"kind": str, "config": dict, "spec": dict, "weights": dict}

Weights = Mapping[str, Tensor]
Builder = Callable[[Mapping[str, Any], PolicySpec, Weights], nn.Module]


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
    """The same policy, guided with another weight.

    Raises:
        DsrlError: when it is not guided.
    """
    if "guidance" not in checkpoint.config:
        raise DsrlError(
            f"--load.guidance-weight is {weight}, but {path} holds a policy of kind '{checkpoint.kind}', which is not "
            "guided; leave it out"
        )
    guidance = {**checkpoint.config["guidance"], "weight": weight}
    return replace(checkpoint, config={**checkpoint.config, "guidance": guidance})


def weights_sha256(weights: Weights) -> str:
    """Over names, types, shapes and raw bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- kinds ------------------------------------------------------------------------------------------------------------


def _build_diffusion(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    _check_noise(spec)
    return DiffusionPolicy.from_config(config, spec)


def _build_flow(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    _check_noise(spec)
    return FlowPolicy.from_config(config, spec)


def _check_noise(spec: PolicySpec) -> None:
    if spec.noise_shape != (spec.horizon, spec.action_dim):
        raise ValueError(f"noise of shape {spec.noise_shape} is no chunk of {spec.horizon} x {spec.action_dim}")


def _build_gaussian(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    return GaussianPolicy.from_config(config, spec)


def _build_guided(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    base: Any = KINDS[config["base"]["kind"]](config["base"]["config"], spec, _of_base(weights))
    return GuidedPolicy.from_config(config, base)


def _build_anchored(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    base: Any = KINDS[config["base"]["kind"]](config["base"]["config"], spec, _of_base(weights))
    anchored = AnchoredPolicy.from_config(config, base)
    anchored.spec = spec
    return anchored


def _build_steered(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    inner = config["base"]
    base_weights = _of_base(weights)
    base_spec = replace(
        spec, noise_shape=tuple(inner["noise_shape"]), sha256=weights_sha256(base_weights), provenance={}
    )
    base: Any = KINDS[inner["kind"]](inner["config"], base_spec, base_weights)
    actor = NoiseActor(config["actor"])
    steered = SteeredPolicy(base, actor)
    if "critic" in config:
        steered = SelectingPolicy(base, actor, CriticEnsemble(**config["critic"]), config["choice"])
    steered.spec = replace(steered.spec, env=spec.env, sha256=spec.sha256, provenance=spec.provenance)
    return steered


def _of_base(weights: Weights) -> dict[str, Tensor]:
    return {key.removeprefix("base."): value for key, value in weights.items() if key.startswith("base.")}


def _build_toy(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    return ToyPolicy()


# a builder gives the module; its weights are checked and loaded afterwards, in build_policy
KINDS: dict[str, Builder] = {
    "diffusion": _build_diffusion,
    "flow": _build_flow,
    "gaussian": _build_gaussian,
    "guided": _build_guided,
    "anchored": _build_anchored,
    "steered": _build_steered,
    "selecting": _build_steered,
    "toy": _build_toy,
}


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
