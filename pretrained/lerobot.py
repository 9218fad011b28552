"""Diffusion Policy folders of LeRobot, read without lerobot.

``config.json`` and ``model.safetensors``; since version 0.4 also ``policy_preprocessor.json``,
``policy_postprocessor.json`` and the safetensors files that they name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained.folders import read_json, read_tensors
from dsrl.pretrained.formats import Checkpoint, Format, ddim_steps_of, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.lerobot_config import ACTION, ENV, STATE, Features, read_features, read_settings
from dsrl.pretrained.lerobot_stats import INSIDE, Side, from_processors, has_processors, inside_weights
from dsrl.pretrained.lerobot_vision import PREFIX as _VISION
from dsrl.pretrained.lerobot_vision import read_vision, vision_weights
from dsrl.pretrained.unet_keys import UnetSizes, unet_sizes, unet_weights

_UNET = "diffusion.unet."
_FLOW = ("smolvla", "pi0", "pi05")
_COUNTERS = ".num_batches_tracked"
"""of batch normalisation, which nothing depends on"""
_MODES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
"""of LeRobot, for a config.json without normalization_mapping"""


def detect(found: Found) -> bool:
    """Whether a policy of LeRobot lies there, be it one that is supported or not."""
    if not found.is_folder or not (found.path / "config.json").is_file():
        return False
    try:
        config = read_json(found.path / "config.json")
    except DsrlError:
        return (found.path / "model.safetensors").is_file()  # so that reading it says what is wrong
    if "type" in config:
        return isinstance(config["type"], str) and (config["type"] == "diffusion" or "input_features" in config)
    return {"n_obs_steps", "horizon", "down_dims", "noise_scheduler_type"} <= config.keys()


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """A Diffusion Policy of LeRobot, of any version.

    Raises:
        DsrlError: when a file is missing, broken, or asks for what is not supported, each by name.
    """
    folder, path = found.path, found.path / "config.json"
    refuse_side_files(found, load)
    if not found.is_folder:
        raise DsrlError(f"{folder} is a file; a policy of LeRobot is a folder with config.json and model.safetensors")
    config = read_json(path)
    _check_type(config, path)
    settings, assumed = read_settings(config, path)
    features = read_features(config, path)
    vision, unsaid = read_vision(config, features, path)
    file = folder / "model.safetensors"
    tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in read_tensors(file, _COUNTERS).items()}
    known = (_UNET, *INSIDE, *((_VISION,) if vision else ()))
    foreign = sorted(name for name in tensors if not name.startswith(known))
    if foreign:
        kind = "with" if vision else "without"
        raise DsrlError(f"{file} holds tensors that a policy {kind} images does not have: {foreign[:5]}")
    weights = unet_weights(tensors, _UNET, lerobot=True)
    if len(weights) != sum(name.startswith(_UNET) for name in tensors):
        raise DsrlError(f"{file} holds two spellings of the same tensor; was it put together from two files?")
    _compare(settings, features, vision, unet_sizes(weights, file), path)
    sides, version, notes = _sides(folder, file, config, features, tensors)
    normalizers, double = _normalizers(sides, features)
    steps = settings["num_inference_steps"] or settings["num_train_timesteps"]
    sampler = settings["noise_scheduler_type"]
    steps = ddim_steps_of(
        found, load, train_steps=settings["num_train_timesteps"], own=steps if sampler == "DDIM" else None
    )
    return Checkpoint(
        kind="diffusion",
        config=_diffusion_config(settings, vision, steps, double),
        spec=_spec(settings, features),
        weights={
            **{f"denoiser.{name}": tensor for name, tensor in weights.items()},
            **vision_weights(tensors),
            **normalizers,
        },
        format=FORMAT.name,
        version=version,
        notes=(
            *assumed,
            *unsaid,
            *features.notes,
            *notes,
            *_sampler_notes(load, sampler, settings),
            *_neighbour(folder),
        ),
    )


def _check_type(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("type", "diffusion")
    if kind in _FLOW:
        raise DsrlError(
            f"{path} is a LeRobot policy of type '{kind}', a flow policy on a vision-language model, which lerobot "
            "itself computes; there is nothing to build or convert. Serve it from lerobot's own environment "
            "(docs/checkpoints.md, A policy in another process)"
        )
    if kind != "diffusion":
        raise DsrlError(
            f"{path} is a LeRobot policy of type {kind!r}; only 'diffusion' starts from noise and is supported"
        )
    if config.get("use_film_scale_modulation") is False:
        raise DsrlError(
            f"{path}: use_film_scale_modulation is false, so its U-Net only shifts features; that is not supported. "
            "Train with use_film_scale_modulation=true, LeRobot's default"
        )


def _compare(
    settings: Mapping[str, Any], features: Features, vision: Mapping[str, Any] | None, sizes: UnetSizes, path: Path
) -> None:
    """What config.json says against the tensors of the U-Net."""
    seen = {key: vision["feature_dim"] for key in features.images} if vision else {}
    cond_dim = settings["n_obs_steps"] * sum((*features.low_dims.values(), *seen.values()))
    said = {
        "down_dims": (tuple(settings["down_dims"]), sizes.down_dims),
        "kernel_size": (settings["kernel_size"], sizes.kernel_size),
        "diffusion_step_embed_dim": (settings["diffusion_step_embed_dim"], sizes.time_dim),
        "use_film_scale_modulation": (settings["use_film_scale_modulation"], sizes.film_scale),
        "the length of 'action'": (features.action_dim, sizes.action_dim),
        f"n_obs_steps times the lengths of {' and '.join(features.obs_shapes)}": (cond_dim, sizes.cond_dim),
    }
    for name, (config, tensors) in said.items():
        if config != tensors:
            raise DsrlError(
                f"{path} contradicts the tensors in model.safetensors: {name} is {config}, the tensors say {tensors}. "
                "Take both files from the same training"
            )


# -- statistics -------------------------------------------------------------------------------------------------------


def _sides(
    folder: Path, file: Path, config: Mapping[str, Any], features: Features, tensors: Mapping[str, Tensor]
) -> tuple[list[Side], str, tuple[str, ...]]:
    """Observations and actions, the version, and notes."""
    inside = any(name.startswith(INSIDE) for name in tensors)
    if has_processors(folder):
        note = ("the statistics inside the weights are not used; LeRobot reads those of the processor files",)
        return from_processors(folder), "0.4 or later", note if inside else ()
    modes, notes = _modes(config, features, folder / "config.json")
    used = [mode for key, mode in modes.items() if key in (*features.obs_shapes, ACTION)]
    if not inside and any(mode.upper() != "IDENTITY" for mode in used):
        raise DsrlError(
            f"{folder} holds no statistics to normalise with: neither policy_preprocessor.json and "
            "policy_postprocessor.json (LeRobot 0.4 and later) nor 'normalize_inputs.*' in model.safetensors (up to "
            "0.3). Copy the policy_* files of the training"
        )
    return inside_weights(file, tensors, modes, list(features.obs_shapes)), "0.3 or earlier", notes


def _modes(config: Mapping[str, Any], features: Features, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Modes by key, for files of 0.3 and earlier."""
    by_key = {
        **_mapping(config, path, "input_normalization_modes"),
        **_mapping(config, path, "output_normalization_modes"),
    }
    if by_key:
        return by_key, ()
    by_type = _mapping(config, path, "normalization_mapping")
    notes = () if by_type else (f"config.json has no normalization_mapping; assumed is {_MODES}",)
    by_type = by_type or _MODES
    types = {STATE: "STATE", ENV: "ENV", ACTION: "ACTION", **dict.fromkeys(features.images, "VISUAL")}
    return {key: by_type[kind] for key, kind in types.items() if kind in by_type}, notes


def _mapping(config: Mapping[str, Any], path: Path, name: str) -> dict[str, str]:
    modes = config.get(name) or {}
    if not isinstance(modes, dict) or not all(isinstance(mode, str) for mode in modes.values()):
        raise DsrlError(f"{path}: '{name}' is {modes!s:.80}, expected names of modes such as MIN_MAX")
    return modes


def _normalizers(sides: list[Side], features: Features) -> tuple[dict[str, Tensor], bool]:
    observations, actions = sides
    parts = [observations.affine(key, (dim,)) for key, dim in features.low_dims.items()]
    cameras = [observations.affine(key, shape) for key, shape in features.images.items()]
    action = actions.affine(ACTION, (features.action_dim,))
    offset, scale = torch.cat([part.offset for part in parts]), torch.cat([part.scale for part in parts])
    # a sensor that hardly moved: its middle, rounded to single precision, can miss the whole range
    double = bool((((offset.float() - offset) / scale).abs() > 1e-7).any())
    kind = torch.float64 if double else torch.float32
    weights = {
        "obs_normalizer.offset": offset.to(kind),
        "obs_normalizer.scale": scale.to(kind),
        "action_normalizer.offset": action.offset.float(),
        "action_normalizer.scale": action.scale.float(),
    }
    if cameras:
        weights["vision.offset"] = torch.stack([camera.offset for camera in cameras]).float()
        weights["vision.scale"] = torch.stack([camera.scale for camera in cameras]).float()
    return weights, double


# -- result -----------------------------------------------------------------------------------------------------------


def _diffusion_config(
    settings: Mapping[str, Any], vision: Mapping[str, Any] | None, steps: int, double: bool
) -> dict[str, Any]:
    """Fields of :class:`~dsrl.diffusion.DiffusionConfig`; the rest of the sampler is what diffusers has by default."""
    schedule = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample", "clip_sample_range")
    return {
        "network": {
            "type": "unet",
            "down_dims": list(settings["down_dims"]),
            "time_dim": settings["diffusion_step_embed_dim"],
            "kernel_size": settings["kernel_size"],
            "n_groups": settings["n_groups"],
        },
        **({"vision": vision} if vision else {}),
        "obs_clip": None,
        "obs_double": double,
        "train_steps": settings["num_train_timesteps"],
        "sampling_steps": steps,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "use_clipped_model_output": False,
        **{name: settings[name] for name in schedule},
    }


def _spec(settings: Mapping[str, Any], features: Features) -> PolicySpec:
    return PolicySpec(
        features.obs_shapes,
        action_dim=features.action_dim,
        horizon=settings["horizon"],
        n_action_steps=settings["n_action_steps"],
        n_obs_steps=settings["n_obs_steps"],
        action_start=settings["n_obs_steps"] - 1,
    )


def _sampler_notes(load: LoadConfig, sampler: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    own = settings["num_inference_steps"] or settings["num_train_timesteps"]
    if load.sampling_steps is None or (sampler == "DDIM" and load.sampling_steps == own):
        return ()
    return (f"the file says {sampler} in {own} steps; --load.sampling-steps made another policy of it",)


def _neighbour(folder: Path) -> tuple[str, ...]:
    averaged = folder.with_name(f"{folder.name}_ema")
    return (f"these are the raw weights; their moving average lies in {averaged}",) if averaged.is_dir() else ()


FORMAT = Format("lerobot", "folders of LeRobot's Diffusion Policy (config.json, model.safetensors)", detect, read)
