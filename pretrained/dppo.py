"""DPPO's checkpoints (github.com/irom-princeton/dppo): ``state_N.pt``, hydra's YAML and ``normalization.npz``.

Pre-training writes ``{"epoch", "model", "ema"}``, fine-tuning ``{"itr", "model"}``: the base policy under ``actor.``,
what became of it under ``actor_ft.``; only the last ``ft_denoising_steps`` of denoising use the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError, nearest
from dsrl.policy import PolicySpec
from dsrl.pretrained.dppo_files import Ranges, RunConfig, find_config, find_ranges
from dsrl.pretrained.dppo_networks import Network, contradiction, read_network
from dsrl.pretrained.formats import Checkpoint, Format, ddim_steps_of
from dsrl.pretrained.found import Found
from dsrl.pretrained.obs_keys import obs_shapes

_MODELS = ("DiffusionModel", "DiffusionEval", "PPODiffusion", "VPGDiffusion")
"""upstream's classes that sample as it is done here; the place of their modules changes between versions"""
_FINE_TUNED = ("network", "actor", "actor_ft", "critic", "eta")
_MAX = 10_000
"""noise levels, steps of a chunk: more is a slip of the pen"""


def detect(found: Found) -> bool:
    """Whether ``model`` holds a diffusion model of DPPO."""
    content = found.content
    model = content.get("model") if isinstance(content, dict) else None
    return isinstance(model, dict) and any(str(key).startswith(("network.", "actor_ft.")) for key in model)


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """The file, with what its run says about it.

    Raises:
        DsrlError: when YAML or ranges are missing, something is broken, or parts contradict each other.
    """
    model, weights_note = _choose_weights(found, load)
    run = find_config(found.path, load)
    _check_model(run)
    ranges = find_ranges(found.path, run, load)
    sampler, own_steps = _read_sampler(found, run, load)
    if any(key.startswith("actor_ft.") for key in model):
        version = "fine-tuned"
        network, stages, weights, stage_note = _read_stages(found, run, model, sampler, own_steps)
    else:
        version, stage_note = "pre-trained", ""
        network = read_network(_part(model, "network"), run, _section(run), found.path)
        stages, weights = network.config, dict(network.weights)
    config = {
        "network": stages,
        "obs_clip": 1.0 if run.flag("env.wrappers.robomimic_lowdim.clamp_obs", False) else None,
        "obs_double": True,
        **sampler,
    }
    notes = [f"settings from {run.path}", f"ranges from {ranges.path}", weights_note, stage_note]
    return Checkpoint(
        "diffusion",
        config,
        _read_spec(found, run, network, ranges),
        {**{f"denoiser.{key}": tensor for key, tensor in weights.items()}, **_normalizers(ranges)},
        FORMAT.name,
        version,
        tuple(note for note in notes if note),
    )


def _section(run: RunConfig) -> str:
    return "model.actor" if run.has("model.actor") else "model.network"


# -- weights ----------------------------------------------------------------------------------------------------------


def _choose_weights(found: Found, load: LoadConfig) -> tuple[dict[str, Tensor], str]:
    """The wanted state dict, and a sentence when another one was wanted."""
    content = found.read()
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        inside = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise DsrlError(f"{found.path} is no DPPO checkpoint: it lacks 'model' (found: {inside})")
    name, note = load.weights, ""
    if name not in content and any(str(key).startswith("actor_ft.") for key in content["model"]):
        name, note = "model", "a fine-tuned file has no moving average; its weights are the raw ones"
    if name not in content:
        raise DsrlError(f"{found.path} has no moving average '{name}'; --load.weights model reads the raw weights")
    model = content[name]
    if not isinstance(model, dict) or not all(map(_is_weight, model.values())):
        raise DsrlError(f"{found.path}: '{name}' must hold tensors of numbers only; was the file edited by hand?")
    parts = _FINE_TUNED if any(str(key).startswith("actor") for key in model) else ("network",)
    for key in model:
        if str(key).split(".")[0] not in parts:
            raise DsrlError(
                f"{found.path}: '{name}' holds '{key}', which is none of {', '.join(parts)}; only diffusion policies "
                "that were pre-trained, or fine-tuned by PPO, can be read"
            )
    if "actor" in {key.split(".")[0] for key in model} and not _part(model, "actor_ft"):
        raise DsrlError(
            f"{found.path} has 'actor.*' but no 'actor_ft.*'; of the fine-tuned files only those of PPO can be read"
        )
    return model, note


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _part(model: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in model.items() if key.startswith(f"{name}.")}


def _read_stages(
    found: Found, run: RunConfig, model: Mapping[str, Tensor], sampler: Mapping[str, Any], own_steps: int | None
) -> tuple[Network, Mapping[str, Any], dict[str, Tensor], str]:
    """Base policy and fine-tuned policy of one file, and from which noise level on the latter is asked."""
    count = run.integer("model.ft_denoising_steps")
    if not count:
        raise DsrlError(
            f"{found.path} was fine-tuned ('actor_ft.*'), but {run.path} says ft_denoising_steps {count}, with which "
            "the base policy would be played. Give the YAML of the fine-tuning run with --load.config, or set it there"
        )
    late = read_network(_part(model, "actor_ft"), run, _section(run), found.path)
    early = read_network(_part(model, "actor"), run, _section(run), found.path)
    levels, steps = sampler["train_steps"], sampler["sampling_steps"]
    # counted in steps of the run's own sampler: of DDIM where it has one, else one per noise level
    switch = count * (levels // own_steps) if own_steps else count
    if switch > (steps - 1) * (levels // steps):
        return late, late.config, dict(late.weights), "every denoising step was fine-tuned"
    weights = {
        **{f"early.{key}": tensor for key, tensor in early.weights.items()},
        **{f"late.{key}": tensor for key, tensor in late.weights.items()},
    }
    note = f"the fine-tuned network denoises the levels below {switch}, the base policy those above"
    return late, {"type": "staged", "network": late.config, "switch": switch}, weights, note


# -- sampler ----------------------------------------------------------------------------------------------------------


def _check_model(run: RunConfig) -> None:
    target = run.target("model")
    if target and target not in _MODELS:
        raise DsrlError(
            f"{run.path}: a model of class '{target}' samples in its own way, which is not known here."
            f"{nearest(target, _MODELS)} Known: {', '.join(_MODELS)}"
        )
    if run.get("model.eps_clip_value") is not None:
        raise DsrlError(f"{run.path}: 'model.eps_clip_value' bounds the noise in every step; only null is supported")
    if run.get("model.ddim_discretize", "uniform") != "uniform":
        raise DsrlError(f"{run.path}: only 'model.ddim_discretize: uniform' is supported")


def _read_sampler(found: Found, run: RunConfig, load: LoadConfig) -> tuple[dict[str, Any], int | None]:
    """Fields of DiffusionConfig, and the steps of the run's own DDIM sampler if it has one."""
    levels = run.integer("model.denoising_steps", run.integer("denoising_steps"))
    if not levels or levels > _MAX:
        raise DsrlError(f"{run.path}: 'denoising_steps' is {levels}; it must be from 1 to {_MAX}")
    own = None
    if run.flag("model.use_ddim", False):
        own = run.integer("model.ddim_steps")
        if not own or own > levels:
            raise DsrlError(f"{run.path}: 'use_ddim' needs 'ddim_steps' from 1 to {levels}, found {own}")
    bound, final = run.number("model.denoised_clip_value", 1.0), run.number("model.final_action_clip_value")
    if any(clip is not None and clip <= 0 for clip in (bound, final)):
        raise DsrlError(f"{run.path}: 'denoised_clip_value' and 'final_action_clip_value' must be above 0, or null")
    fields = {
        "train_steps": levels,
        "sampling_steps": ddim_steps_of(found, load, train_steps=levels, own=own),
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon" if run.flag("model.predict_epsilon", True) else "sample",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "clip_sample": bound is not None,
        "clip_sample_range": 1.0 if bound is None else bound,
        "use_clipped_model_output": True,
        "final_clip": final,
    }
    return fields, own


# -- shapes and units -------------------------------------------------------------------------------------------------


def _read_spec(found: Found, run: RunConfig, network: Network, ranges: Ranges) -> PolicySpec:
    path, obs_dim, action_dim = found.path, len(ranges.obs_min), len(ranges.action_min)
    for name, size in (("obs_dim", obs_dim), ("action_dim", action_dim)):
        stated = run.integer(name, run.integer(f"model.{name}"))
        if stated is not None and stated != size:
            raise DsrlError(
                f"{ranges.path} has {name} {size}, but {run.path} says {stated}; they belong to different runs, see "
                "--load.normalization and --load.config"
            )
    n_obs_steps = run.integer("cond_steps", 1) or 0
    if network.cond_dim != n_obs_steps * obs_dim:
        expected = f"cond_steps {n_obs_steps} times the {obs_dim} of {ranges.path}"
        raise contradiction(path, "numbers in the observation history:", network.cond_dim, run, expected)
    horizon = run.integer("horizon_steps", run.integer("model.horizon_steps"))
    if not horizon and not network.is_unet:
        horizon = network.outputs // action_dim
    if not horizon or horizon > _MAX:
        raise DsrlError(
            f"{run.path}: 'horizon_steps' is {horizon}; the weights of a U-Net do not tell it, so it must stand there, "
            f"from 1 to {_MAX}"
        )
    if network.outputs != (action_dim if network.is_unet else horizon * action_dim):
        expected = f"horizon_steps {horizon} and action_dim {action_dim}"
        raise contradiction(path, "numbers in its output:", network.outputs, run, expected)
    n_action_steps = run.integer("act_steps", horizon)
    if not n_action_steps or n_action_steps > horizon:
        raise DsrlError(f"{run.path}: 'act_steps' is {n_action_steps}; it must be from 1 to horizon_steps, {horizon}")
    count = {name: found.content[name] for name in ("epoch", "itr") if isinstance(found.content.get(name), int)}
    keys = run.known("env.wrappers.robomimic_lowdim.low_dim_keys")
    shapes = obs_shapes(keys, obs_dim, "state")
    return PolicySpec(shapes, action_dim, horizon, n_action_steps, n_obs_steps, provenance=count)


def _normalizers(ranges: Ranges) -> dict[str, Tensor]:
    """Upstream: ``2 ((o - min) / (max - min + 1e-6) - 0.5)`` and ``(a + 1) / 2 (max - min) + min``."""
    # the range in the file's own precision, as upstream has it
    obs_scale = (ranges.obs_max - ranges.obs_min + 1e-6).astype(np.float64) / 2
    low, high = ranges.action_min.astype(np.float64), ranges.action_max.astype(np.float64)
    return {
        "obs_normalizer.offset": torch.from_numpy(ranges.obs_min + obs_scale),
        "obs_normalizer.scale": torch.from_numpy(obs_scale),
        "action_normalizer.offset": torch.from_numpy((low + high) / 2).float(),
        "action_normalizer.scale": torch.from_numpy((high - low) / 2).float(),
    }


FORMAT = Format("dppo", "DPPO's state_N.pt", detect, read)
