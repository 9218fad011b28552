"""robomimic's diffusion policy: a ``.pth``, as v0.5 and its branches write it.

::

    {"model": {"nets": ..., "ema": ... or None, ...}, "config": JSON, "algo_name": "diffusion_policy",
     "shape_metadata": {"ac_dim", "all_shapes"}, "env_metadata": ..., "obs_normalization_stats": ...,
     "action_normalization_stats": ...}

Observations, or what is seen in them, are concatenated in the order of ``all_shapes``. The sizes of the U-Net are those
of the tensors: robomimic ignores those of its config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.env_spec import EnvSpec, known_families
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained.formats import Checkpoint, Format, check_first_level, ddim_steps_of, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.robomimic_config import config_of, flag_at, integer_at, value_at
from dsrl.pretrained.robomimic_vision import PREFIX as _VISION
from dsrl.pretrained.robomimic_vision import read_vision, vision_weights
from dsrl.pretrained.unet_keys import unet_sizes, unet_weights
from dsrl.vision import image_keys

_NETWORK = "policy.noise_pred_net."
_N_GROUPS = 8  # of every GroupNorm, whatever the config says; no tensor tells
_BETA_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")


def detect(found: Found) -> bool:
    """Whether robomimic wrote it, with whatever algorithm."""
    content = found.content
    return isinstance(content, dict) and "model" in content and "algo_name" in content


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """What robomimic's ``save_model`` wrote.

    Raises:
        DsrlError: when it is broken, holds another algorithm than diffusion policy, or one that is not supported.
    """
    refuse_side_files(found, load)
    content = found.read()
    if not isinstance(content, dict) or not detect(found):
        raise DsrlError(f"{found.path} is no robomimic checkpoint: it lacks 'model' or 'algo_name'")
    if content["algo_name"] != "diffusion_policy":
        raise DsrlError(
            f"{found.path} holds a policy of robomimic's algorithm '{content['algo_name']}'; only diffusion_policy "
            "starts from noise and can be steered"
        )
    config = config_of(found, content)
    obs_shapes = _observations(found, content, config)
    action_dim = integer_at(found, content, "shape_metadata.ac_dim", "")
    cameras = image_keys(obs_shapes)
    vision = read_vision(found, config, {key: obs_shapes[key] for key in cameras})
    state, notes = _state(found, content, load, (_NETWORK, _VISION) if vision else (_NETWORK,))
    net = unet_weights(state, _NETWORK)
    sizes = unet_sizes(net, found.path, _misfit)
    sampler, sampler_notes = _sampler(found, config, load)
    env, env_notes = _environment(content, tuple(obs_shapes))
    spec = _spec(found, config, obs_shapes, action_dim, env)
    seen = {key: vision["feature_dim"] for key in cameras} if vision else {}
    expected = spec.n_obs_steps * sum(seen.get(key, math.prod(shape)) for key, shape in obs_shapes.items())
    if sizes.cond_dim != expected or sizes.action_dim != action_dim:
        raise DsrlError(
            f"{found.path}: its network reads {sizes.cond_dim} numbers and predicts {sizes.action_dim} per "
            f"step, but {spec.n_obs_steps} steps of {dict(spec.obs_shapes)} are {expected} and shape_metadata.ac_dim "
            f"is {action_dim}; was the file put together from two?"
        )
    weights = {f"denoiser.{name}": tensor for name, tensor in net.items()}
    weights |= _obs_statistics(found, content, config, obs_shapes)
    if vision:
        weights |= vision_weights(found, state, cameras)
        weights["vision.offset"] = torch.zeros(len(cameras), obs_shapes[cameras[0]][0])
        weights["vision.scale"] = torch.ones_like(weights["vision.offset"])
    weights |= _action_statistics(found, content, config, action_dim)
    version = "0.5" if "variable_state" in content else "before 0.5"
    network = {
        "type": "unet",
        "down_dims": list(sizes.down_dims),
        "time_dim": sizes.time_dim,
        "kernel_size": sizes.kernel_size,
        "n_groups": _N_GROUPS,
    }
    settings = {"network": network, **({"vision": vision} if vision else {}), "obs_clip": None, **sampler}
    return Checkpoint("diffusion", settings, spec, weights, FORMAT.name, version, notes + sampler_notes + env_notes)


# -- what it reads and writes -----------------------------------------------------------------------------------------


def _observations(found: Found, content: Mapping[str, Any], config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the observations that the network reads, in the order in which it concatenates them."""
    modalities = value_at(found, config, "observation.modalities.obs")
    shapes = value_at(found, content, "shape_metadata.all_shapes", "")
    if not isinstance(modalities, dict) or not all(isinstance(keys, list) for keys in modalities.values()):
        raise DsrlError(f"{found.path}: 'config.observation.modalities.obs' is not lists of observation keys")
    if not isinstance(shapes, Mapping):
        raise DsrlError(f"{found.path}: 'shape_metadata.all_shapes' is {type(shapes).__name__}, expected shapes by key")
    for modality, keys in modalities.items():
        if keys and modality not in ("low_dim", "rgb"):
            raise DsrlError(
                f"{found.path} observes {', '.join(map(str, keys))} ({modality}); only low-dimensional observations "
                "and images are supported. Train one with observation.modalities.obs.low_dim and rgb"
            )
    for setting in ("core_class", "obs_randomizer_class"):
        value = value_at(found, config, f"observation.encoder.low_dim.{setting}", default=None)
        if value not in (None, [], [None]):
            raise DsrlError(
                f"{found.path}: 'config.observation.encoder.low_dim.{setting}' is {value!r:.60}; only observations "
                "that go into the U-Net as they are are supported, expected null"
            )
    images = modalities.get("rgb", [])
    wanted = [*modalities.get("low_dim", []), *images]
    if missing := [key for key in wanted if key not in shapes]:
        raise DsrlError(f"{found.path}: the observations {missing} have no shape; known are {list(shapes)}")
    if not wanted:
        raise DsrlError(f"{found.path}: 'config.observation.modalities.obs' names no observation")
    used = {key: _shape(found, key, shape) for key, shape in shapes.items() if key in wanted}
    if images != [] and sorted(image_keys(used)) != sorted(images):
        raise DsrlError(f"{found.path}: its images are {images}, but the shapes are {used}; was the file edited?")
    return used


def _shape(found: Found, key: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    if not sizes or not all(type(size) is int and 1 <= size <= 10**6 for size in sizes):
        raise DsrlError(f"{found.path}: the observation '{key}' has the shape {shape!r:.60}, expected positive sizes")
    return sizes


def _spec(
    found: Found, config: Any, obs_shapes: dict[str, tuple[int, ...]], action_dim: int, env: EnvSpec | None
) -> PolicySpec:
    names = ("observation_horizon", "action_horizon", "prediction_horizon")
    n_obs_steps, n_action_steps, horizon = (integer_at(found, config, f"algo.horizon.{name}") for name in names)
    try:
        steps = horizon, n_action_steps, n_obs_steps, n_obs_steps - 1
        return PolicySpec(obs_shapes, action_dim, *steps, env=env, provenance={"made by": "robomimic"})
    except ValueError as error:
        raise DsrlError(f"{found.path}: {error}; its config.algo.horizon contradicts itself") from error


def _environment(content: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[EnvSpec | None, tuple[str, ...]]:
    metadata = content.get("env_metadata")
    if metadata is None:
        return None, ()
    unknown = (f"env_metadata names no environment that is known here ({metadata!r:.80}); give --env",)
    try:
        if metadata.get("type") not in (1, 2) or type(metadata["env_name"]) is not str:
            return None, unknown
        env = EnvSpec.from_robomimic(metadata)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, unknown
    if env.family not in known_families():
        return None, unknown
    return (replace(env, obs_keys=keys) if env.family == "robosuite" else env), ()


# -- network ----------------------------------------------------------------------------------------------------------


def _state(
    found: Found, content: Mapping[str, Any], load: LoadConfig, parts: tuple[str, ...]
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The tensors of these parts by robomimic's names, and which of the two sets they are."""
    chosen, notes = "nets", ("weights: the raw ones",)
    if load.weights == "ema":
        has_ema = value_at(found, content, "model.ema", "", default=None) is not None
        chosen = "ema" if has_ema else "nets"
        notes = ("weights: the moving average",) if has_ema else ("weights: the raw ones, there is no moving average",)
    state = value_at(found, content, f"model.{chosen}", "")
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DsrlError(f"{found.path}: 'model.{chosen}' must hold tensors only; was it edited by hand?")
    if extra := sorted(str(name) for name in state if not str(name).startswith(parts)):
        raise DsrlError(
            f"{found.path}: 'model.{chosen}' holds {extra[:3]} beside the U-Net and the encoders of the images that "
            "its config names; other encoders are not supported"
        )
    return state, notes


def _misfit(name: str, found: list[int] | None, ndim: int) -> str:
    what = "is missing" if found is None else f"has shape {found}, expected {ndim} dimensions"
    return f"the tensor '{_NETWORK}{name}' {what}; it is not robomimic's U-Net"


def _sampler(found: Found, config: Any, load: LoadConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of DiffusionConfig that say how it is sampled; robomimic asks for DDPM first."""
    enabled = [name for name in ("ddpm", "ddim") if flag_at(found, config, f"algo.{name}.enabled")]
    if not enabled:
        raise DsrlError(f"{found.path}: neither config.algo.ddpm nor config.algo.ddim is enabled; it has no sampler")
    name = enabled[0]
    train_steps = integer_at(found, config, f"algo.{name}.num_train_timesteps")
    own = integer_at(found, config, f"algo.{name}.num_inference_timesteps", high=train_steps)
    steps = ddim_steps_of(found, load, train_steps=train_steps, own=own if name == "ddim" else None)
    for setting, known in (("prediction_type", ("epsilon",)), ("beta_schedule", _BETA_SCHEDULES)):
        value = value_at(found, config, f"algo.{name}.{setting}")
        if value not in known:
            # robomimic trains on the noise whatever prediction_type says, so another one contradicts the weights
            raise DsrlError(f"{found.path}: 'config.algo.{name}.{setting}' is {value!r:.60}; known: {', '.join(known)}")
    offset = integer_at(found, config, "algo.ddim.steps_offset", low=0) if name == "ddim" else 0
    setting = f"config.algo.{name}.steps_offset"
    check_first_level(found.path, setting, steps=steps, train_steps=train_steps, offset=offset)
    sampler = {
        "train_steps": train_steps,
        "beta_schedule": value_at(found, config, f"algo.{name}.beta_schedule"),
        "prediction_type": "epsilon",
        "sampling_steps": steps,
        "timestep_spacing": "leading",
        "steps_offset": offset,
        "set_alpha_to_one": name == "ddpm" or flag_at(found, config, "algo.ddim.set_alpha_to_one"),
        "clip_sample": flag_at(found, config, f"algo.{name}.clip_sample"),
        "clip_sample_range": 1.0,
        "use_clipped_model_output": False,
    }
    changed = steps != own or name == "ddpm"
    return sampler, ((f"robomimic samples it by {name.upper()} in {own} steps",) if changed else ())


# -- statistics -------------------------------------------------------------------------------------------------------


def _obs_statistics(
    found: Found, content: Mapping[str, Any], config: Any, obs_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    statistics = content.get("obs_normalization_stats")
    if statistics is None and value_at(found, config, "train.hdf5_normalize_obs", default=False):
        raise DsrlError(
            f"{found.path} lacks 'obs_normalization_stats', though config.train.hdf5_normalize_obs says that it was "
            "trained on normalised observations"
        )
    images = image_keys(obs_shapes)
    if statistics is not None and images:
        raise DsrlError(
            f"{found.path}: its observations are normalised, images among them; statistics of images are not "
            "supported, train with hdf5_normalize_obs=false"
        )
    sizes = {key: math.prod(shape) for key, shape in obs_shapes.items() if key not in images}
    return _normalizer(found, "obs", statistics, sizes)


def _action_statistics(found: Found, content: Mapping[str, Any], config: Any, action_dim: int) -> dict[str, Tensor]:
    """Of the whole action vector, which is that of the environment unless rotations are converted."""
    keys = value_at(found, config, "train.action_keys", default=["actions"])
    formats = value_at(found, config, "train.action_config", default={})
    if not isinstance(keys, list) or not keys or not isinstance(formats, dict):
        raise DsrlError(f"{found.path}: 'config.train.action_keys' and action_config are not those of robomimic")
    for key in map(str, keys):
        setting = formats.get(key)
        if "rot_6d" in key or (isinstance(setting, dict) and setting.get("format") == "rot_6d"):
            raise DsrlError(
                f"{found.path}: the action '{key}' is a 6-D rotation (rot_6d), which robomimic converts after "
                "sampling; that is not supported, train on the actions that the environment takes"
            )
    statistics = content.get("action_normalization_stats")
    if statistics is None:
        return _normalizer(found, "action", None, {"actions": action_dim})
    sizes = {str(key): _array(found, "action", statistics, str(key), ("offset", "mean")).numel() for key in keys}
    if sum(sizes.values()) != action_dim:
        raise DsrlError(
            f"{found.path}: 'action_normalization_stats' of {sizes} are {sum(sizes.values())} numbers, the action has "
            f"{action_dim} (shape_metadata.ac_dim)"
        )
    return _normalizer(found, "action", statistics, sizes)


def _normalizer(found: Found, part: str, statistics: Any, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    pairs = [
        (torch.zeros(size), torch.ones(size)) if statistics is None else _pair(found, part, statistics, key, size)
        for key, size in sizes.items()
    ]
    offset, scale = (torch.cat(values) for values in zip(*pairs, strict=True))
    return {f"{part}_normalizer.offset": offset, f"{part}_normalizer.scale": scale}


def _pair(found: Found, part: str, statistics: Any, key: str, size: int) -> tuple[Tensor, Tensor]:
    # mean and std up to v0.3, offset and scale from v0.4 on
    offset = _array(found, part, statistics, key, ("offset", "mean"))
    scale = _array(found, part, statistics, key, ("scale", "std"))
    if offset.numel() != size or scale.numel() != size:
        sizes = f"{offset.numel()} offsets and {scale.numel()} scales"
        raise DsrlError(f"{found.path}: '{part}_normalization_stats.{key}' holds {sizes}, expected {size} of each")
    if not (torch.isfinite(offset).all() and torch.isfinite(scale).all() and (scale > 0).all()):
        raise DsrlError(f"{found.path}: '{part}_normalization_stats.{key}' must be finite, its scale positive")
    return offset, scale


def _array(found: Found, part: str, statistics: Any, key: str, names: tuple[str, str]) -> Tensor:
    values = statistics.get(key) if isinstance(statistics, Mapping) else None
    name = next((name for name in names if isinstance(values, Mapping) and name in values), None)
    if values is None or name is None:
        raise DsrlError(f"{found.path} lacks '{part}_normalization_stats.{key}.{names[0]}' (or {names[1]})")
    try:
        return torch.as_tensor(values[name], dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DsrlError(f"{found.path}: '{part}_normalization_stats.{key}.{name}' is no table of numbers") from error


FORMAT = Format("robomimic", "robomimic's diffusion policy (.pth)", detect, read)
