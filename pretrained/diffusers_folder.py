"""A folder as diffusers lays it out, with a ``policy.json`` that gives it meaning; ``dsrl convert`` writes it.

::

    policy.json                                      shapes, steps, config, statistics' file, environment, provenance
    normalizer.safetensors                           statistics of observations and actions
    scheduler/scheduler_config.json                  of DDIMScheduler or FlowMatchEulerDiscreteScheduler
    denoiser/config.json                             class and arguments of the network
    denoiser/diffusion_pytorch_model.safetensors     its weights

``policy.json`` is enough to build the policy; the two other JSON files are for diffusers, and must say the same.
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

from dsrl.config import LoadConfig
from dsrl.diffusion import DiffusionConfig, FlowConfig, ddim_scheduler, flow_scheduler, read_config
from dsrl.errors import DsrlError, nearest
from dsrl.networks import build_denoiser
from dsrl.policy import PolicySpec
from dsrl.pretrained.folders import read_json, read_tensors
from dsrl.pretrained.formats import Checkpoint, Format
from dsrl.pretrained.found import Found
from dsrl.pretrained.native import plain, spec_from_dict, spec_to_dict, weights_sha256

VERSION = 1
POLICY = "policy.json"
NORMALIZER = "normalizer.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORK = "denoiser/config.json"
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"

_PREFIX = "denoiser."
_FIELDS: dict[str, Any] = {
    "format": str, "version": int, "kind": str, "config": dict, "spec": dict, "env": (dict, type(None)),
    "provenance": dict, "notes": list, "converted_from": str, "sha256": str,
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
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    content["sha256"] = _seal(content, weights)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "denoiser").mkdir()
    _write_json(folder / NETWORK, _network(checkpoint.config, checkpoint.spec))
    network = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    statistics = {name: value for name, value in weights.items() if not name.startswith(_PREFIX)}
    (folder / WEIGHTS).write_bytes(save(network))  # safetensors' own files are readable for their owner only
    (folder / NORMALIZER).write_bytes(save(statistics))
    _write_json(folder / POLICY, content)


def detect(found: Found) -> bool:
    """Whether it is a folder with a ``policy.json``."""
    return found.is_folder and (found.path / POLICY).is_file()


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """What :func:`write` wrote.

    Raises:
        DsrlError: when a file is missing or broken, or two of them contradict each other.
    """
    if load.sampling_steps or load.config or load.normalization:
        raise DsrlError(
            f"{found.path} says itself how it is sampled and normalised; leave out --load.sampling-steps, "
            "--load.config and --load.normalization, or give them to dsrl convert"
        )
    path = found.path / POLICY
    for name in (POLICY, NORMALIZER, SCHEDULER, NETWORK, WEIGHTS):
        if not (found.path / name).is_file():
            raise DsrlError(f"there is no {found.path / name}; the folder is incomplete, convert it again")
    content = _check_header(read_json(path), path)
    try:
        spec = spec_from_dict(content)
        scheduler = _scheduler(content["kind"], content["config"])
        network = _network(content["config"], spec)
    except (DsrlError, LookupError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise DsrlError(f"{path}: its spec and config do not make a policy: {error}; convert it again") from error
    settings = {"_class_name": type(scheduler).__name__, **scheduler.config}
    # settings that we leave to diffusers differ between its versions
    _compare(found.path / SCHEDULER, settings, free=settings.pop("_use_default_values", ()))
    _compare(found.path / NETWORK, network)
    weights = {f"{_PREFIX}{name}": tensor for name, tensor in read_tensors(found.path / WEIGHTS).items()}
    weights |= read_tensors(found.path / NORMALIZER)
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


def _network(config: Mapping[str, Any], spec: PolicySpec) -> dict[str, Any]:
    """Class and all arguments of the network; nothing of its size is allocated."""
    sizes = {"action_dim": spec.action_dim, "horizon": spec.horizon, "cond_dim": spec.n_obs_steps * spec.obs_dim}
    with torch.device("meta"):
        network = build_denoiser({**config.get("network", {"type": "mlp"}), **sizes})
    return plain({"_class_name": type(network).__name__, **network.config})


def _seal(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Hash of all that decides which chunk follows from which noise, and of what an agent knows the policy by."""
    parts = [content[name] for name in ("kind", "config", "spec", "converted_from")]
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
