"""A folder as diffusers lays it out, with a ``policy.json`` that gives it meaning; ``dsrl convert`` writes it.

::

    policy.json                                      shapes, steps, config, statistics' file, environment, provenance
    normalizer.safetensors                           statistics of observations and actions
    scheduler/scheduler_config.json                  of DDIMScheduler or FlowMatchEulerDiscreteScheduler
    denoiser/config.json                             class and arguments of the network
    denoiser/diffusion_pytorch_model.safetensors     its weights
    vision/config.json                               of a policy that sees: class and arguments of its image encoder
    vision/diffusion_pytorch_model.safetensors       its weights, and the statistics of images

``policy.json`` is enough to build the policy; the other JSON files are for diffusers, and must say the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dsrl.chunk_policy import read_config
from dsrl.config import LoadConfig
from dsrl.diffusion import DiffusionConfig, FlowConfig, ddim_scheduler, flow_scheduler
from dsrl.errors import DsrlError, nearest
from dsrl.networks import build_denoiser
from dsrl.policy import PolicySpec
from dsrl.pretrained.folders import read_json, read_tensors
from dsrl.pretrained.formats import Checkpoint, Format, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.kinds import weights_sha256
from dsrl.pretrained.native import check_sizes, plain, spec_from_dict, spec_to_dict
from dsrl.vision import VisionEncoder

VERSION = 1
POLICY = "policy.json"
NORMALIZER = "normalizer.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
FOLDERS = ("scheduler", "denoiser", "vision")
"""inside; the last one where the policy sees images"""
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

_FIELDS: dict[str, Any] = {
    "format": str, "version": int, "kind": str, "config": dict, "spec": dict, "env": (dict, type(None)),
    "provenance": dict, "notes": list, "converted_from": str, "hash_of_weights": bool, "sha256": str,
}  # fmt: skip


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Fill an empty folder.

    Raises:
        DsrlError: when its kind does not fit into such a folder.
    """
    scheduler = _scheduler(checkpoint.kind, checkpoint.config)
    env = checkpoint.spec.env
    content = {
        "format": FORMAT.name,
        "version": VERSION,
        "kind": checkpoint.kind,
        "config": plain(dict(checkpoint.config)),
        "spec": spec_to_dict(checkpoint.spec),
        "env": plain(env.to_robomimic()) if env else None,
        "provenance": plain(dict(checkpoint.spec.provenance)),
        "notes": list(checkpoint.notes),
        "converted_from": checkpoint.converted_from or checkpoint.format,
        "hash_of_weights": checkpoint.hash_of_weights,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    content["sha256"] = _seal(content, weights)
    scheduler.save_pretrained(folder / "scheduler")
    rest = dict(weights)
    # safetensors' own way of writing makes files that only their owner can read
    for part, config in _networks(checkpoint.config, checkpoint.spec).items():
        (folder / part).mkdir()
        _write_json(folder / part / _CONFIG, config)
        inside = {name.removeprefix(f"{part}."): rest.pop(name) for name in weights if name.startswith(f"{part}.")}
        (folder / part / _WEIGHTS).write_bytes(save(inside))
    (folder / NORMALIZER).write_bytes(save(rest))
    _write_json(folder / POLICY, content)


def detect(found: Found) -> bool:
    """Whether it is a folder with a ``policy.json``."""
    return found.is_folder and (found.path / POLICY).is_file()


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """What :func:`write` wrote.

    Raises:
        DsrlError: when a file is missing or broken, or two of them contradict each other.
    """
    refuse_side_files(found, load, sampled=True)
    path = found.path / POLICY
    _check_there(found.path, POLICY, NORMALIZER, SCHEDULER)
    content = _check_header(read_json(path), path)
    check_sizes(content, path)
    try:
        spec = spec_from_dict(content)
        scheduler = _scheduler(content["kind"], content["config"])
        networks = _networks(content["config"], spec)
    except Exception as error:  # a wrong setting fails in as many ways as there are settings
        raise DsrlError(f"{path}: its spec and config do not make a policy: {error}; convert it again") from error
    _check_there(found.path, *(f"{part}/{name}" for part in networks for name in (_CONFIG, _WEIGHTS)))
    settings = {"_class_name": type(scheduler).__name__, **scheduler.config}
    # settings that we leave to diffusers differ between its versions
    _compare(found.path / SCHEDULER, settings, free=settings.pop("_use_default_values", ()))
    weights = read_tensors(found.path / NORMALIZER)
    for part, config in networks.items():
        _compare(found.path / part / _CONFIG, config)
        inside = read_tensors(found.path / part / _WEIGHTS)
        weights |= {f"{part}.{name}": tensor for name, tensor in inside.items()}
    if content["sha256"] != _seal(content, weights):
        raise DsrlError(
            f"{path}: its config, its spec or the tensors beside it are not those that were written (sha256 differs); "
            "convert it again"
        )
    return Checkpoint(
        content["kind"],
        content["config"],
        spec,
        weights,
        FORMAT.name,
        f"{content['version']}, converted from {content['converted_from']}",
        tuple(map(str, content["notes"])),
        content["converted_from"],
        content["hash_of_weights"],
    )


def _scheduler(kind: str, config: Mapping[str, Any]) -> Any:
    if kind == "diffusion":
        return ddim_scheduler(read_config(DiffusionConfig, config))
    if kind == "flow":
        return flow_scheduler(read_config(FlowConfig, config))
    raise DsrlError(
        f"a policy of kind '{kind}' does not fit into a diffusers folder, which holds one network and its scheduler: "
        "convert the base policy (a diffusion or flow policy), and keep the agent in its run folder or in the file of "
        "dsrl export"
    )


def _networks(config: Mapping[str, Any], spec: PolicySpec) -> dict[str, dict[str, Any]]:
    """By part, class and all arguments of the networks; nothing of their size is allocated."""
    configs, step_dim = {}, spec.obs_dim
    with torch.device("meta"):
        if config.get("vision") is not None:
            vision = VisionEncoder(spec.obs_shapes, **config["vision"])
            configs["vision"], step_dim = {"_class_name": type(vision).__name__, **vision.config}, vision.step_dim
        sizes = {"action_dim": spec.action_dim, "horizon": spec.horizon, "cond_dim": spec.n_obs_steps * step_dim}
        denoiser = build_denoiser({**config.get("network", {"type": "mlp"}), **sizes})
    configs["denoiser"] = {"_class_name": type(denoiser).__name__, **denoiser.config}
    return {part: plain(values) for part, values in configs.items()}


def _check_there(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise DsrlError(f"there is no {folder / name}; the folder is incomplete, convert it again")


def _seal(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Hash of all that decides which chunk follows from which noise, and of what an agent knows the policy by."""
    parts = [content[name] for name in ("kind", "config", "spec", "converted_from", "hash_of_weights")]
    return hashlib.sha256(f"{json.dumps(parts)}{weights_sha256(weights)}".encode()).hexdigest()


def _check_header(content: dict[str, Any], path: Path) -> dict[str, Any]:
    if content.get("format") != FORMAT.name:
        raise DsrlError(
            f'{path} is not that of a policy (expected "format": "{FORMAT.name}"); write it by dsrl convert'
        )
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise DsrlError(
            f"{path} has version {version!r}, this dsrl reads {VERSION}; update dsrl-steering or convert again"
        )
    for name in content:
        if name not in _FIELDS:
            raise DsrlError(f"{path} has an unknown field '{name}'.{nearest(name, list(_FIELDS))} Take it out")
    for name, kind in _FIELDS.items():
        if name not in content or not isinstance(content[name], kind):
            raise DsrlError(f"{path} lacks '{name}', or it has the wrong type; was it edited by hand? Convert it again")
    return content


def _compare(path: Path, expected: Mapping[str, Any], free: Collection[str] | None = None) -> None:
    """A JSON file for diffusers must say what ``policy.json`` says.

    Args:
        free: settings that may be missing; None: all must be there, and no other ones.
    """
    content = read_json(path)
    wanted = plain(dict(expected))
    unknown = content.keys() - wanted.keys() if free is None else set()
    missing = wanted.keys() - content.keys() - set(free or ())
    differing = {name for name in wanted.keys() & content.keys() if content[name] != wanted[name]}
    for name in sorted((unknown | missing | differing) - {"_diffusers_version"}):
        raise DsrlError(
            f"{path}: '{name}' is {content.get(name, 'missing')!r:.60}, but {POLICY} says "
            f"{wanted.get(name, 'nothing about it')!r:.60}; to change it, convert again with other --load flags"
        )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


FORMAT = Format("diffusers", "folders of `dsrl convert` (policy.json, scheduler, denoiser)", detect, read)
