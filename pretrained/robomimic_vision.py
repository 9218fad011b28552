"""How a robomimic policy sees: its ``VisualCore`` for each camera, and their tensors by our names.

robomimic puts GroupNorm in the place of every BatchNorm of a diffusion policy, and crops the centre at evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pretrained.found import Found
from dsrl.pretrained.robomimic_config import integer_at, value_at

PREFIX = "policy.obs_encoder.nets.obs.obs_nets."
_LONGEST_SIDE = 4096
_RGB = "observation.encoder.rgb"
_CORE = f"{_RGB}.core_kwargs"
_CROP = "CropRandomizer"
_FIXED: dict[str, Any] = {
    f"{_CORE}.backbone_class": "ResNet18Conv",
    f"{_CORE}.backbone_kwargs.input_coord_conv": False,
    f"{_CORE}.pool_class": "SpatialSoftmax",
    f"{_CORE}.pool_kwargs.output_variance": False,
    f"{_CORE}.flatten": True,
}
"""what is supported; also robomimic's defaults"""
_SAME = {"nets.0.": "backbone.", "nets.1.": "pool."}
"""a VisualCore keeps these modules under two names"""


def read_vision(found: Found, config: Any, images: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Arguments of :class:`~dsrl.vision.VisionEncoder`; None for a policy without images.

    Raises:
        DsrlError: when the config asks for another network, or the images do not suit it.
    """
    if not images:
        return None
    if len(set(images.values())) > 1 or any(len(s) != 3 or max(s) > _LONGEST_SIDE for s in images.values()):
        raise DsrlError(f"{found.path}: its images have the shapes {dict(images)!s:.200}; expected is one, (C, H, W)")
    for path, expected in {f"{_RGB}.core_class": "VisualCore", **_FIXED}.items():
        value = value_at(found, config, path, default=_FIXED.get(path))
        if value != expected:
            raise DsrlError(f"{found.path}: 'config.{path}' is {value!r:.60}; of images only {expected!r} is supported")
    return {
        "blocks": [2, 2, 2, 2],
        "norm": "group",
        "crop": _crop(found, config, next(iter(images.values()))[1:]),
        "keypoints": integer_at(found, config, f"{_CORE}.pool_kwargs.num_kp", default=32),
        "feature_dim": integer_at(found, config, f"{_CORE}.feature_dimension", default=64),
        "shared": False,
    }


def _crop(found: Found, config: Any, size: tuple[int, ...]) -> list[int] | None:
    """Top, left, height and width of the centre, rounded down."""
    names = value_at(found, config, f"{_RGB}.obs_randomizer_class", default=None)
    kwargs = value_at(found, config, f"{_RGB}.obs_randomizer_kwargs", default=None)
    if isinstance(names, list) and len(names) == 1:
        names, kwargs = names[0], kwargs[0] if isinstance(kwargs, list) and kwargs else kwargs
    if names is None or names == []:
        return None
    if names != _CROP or value_at(found, kwargs, "pos_enc", default=False) is not False:
        raise DsrlError(
            f"{found.path}: 'config.{_RGB}.obs_randomizer_class' is {names!r:.60} with {kwargs!r:.80}; only {_CROP} "
            "without pos_enc is supported"
        )
    part = f"config.{_RGB}.obs_randomizer_kwargs."
    sides = zip(("crop_height", "crop_width"), size, strict=True)
    height, width = (integer_at(found, kwargs or {}, name, part, high=side, default=76) for name, side in sides)
    return [(size[0] - height) // 2, (size[1] - width) // 2, height, width]


def vision_weights(found: Found, state: Mapping[str, Tensor], keys: list[str]) -> dict[str, Tensor]:
    """The tensors of the cameras' encoders, by the names of :class:`~dsrl.vision.VisionEncoder`.

    Raises:
        DsrlError: when one is missing, or a module that has two names has two values.
    """
    weights = {}
    for i, key in enumerate(keys):
        for name, tensor in _encoder(found, _one_name_each(found, state, f"{PREFIX}{key}.")).items():
            weights[f"vision.encoders.{i}.{name}"] = tensor
    return weights


def _one_name_each(found: Found, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for full, tensor in state.items():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix)
        for other, first in _SAME.items():
            name = first + name.removeprefix(other) if name.startswith(other) else name
        if name in tensors and not torch.equal(tensors[name], tensor):
            raise DsrlError(
                f"{found.path}: '{full}' differs from '{prefix}{name}', but they are one tensor to robomimic"
            )
        tensors[name] = tensor
    return tensors


def _encoder(found: Found, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    needed = ("pool.nets.weight", "pool.nets.bias", "pool.temperature", "pool.pos_x", "pool.pos_y")
    if missing := [name for name in needed if name not in tensors]:
        raise DsrlError(f"{found.path}: the tensors of an image encoder are incomplete; missing: {missing}")
    weight, bias, temperature, x, y = (tensors.pop(name) for name in needed)
    if temperature.numel() != 1 or not float(temperature) > 0 or x.numel() != y.numel():
        raise DsrlError(f"{found.path}: 'pool.temperature', 'pool.pos_x' or 'pool.pos_y' is not that of robomimic")
    renamed = {
        name.replace("backbone.nets.", "backbone.", 1).replace("nets.3.", "out.", 1): tensor
        for name, tensor in tensors.items()
    }
    return {
        **renamed,
        # the maps are divided by the temperature
        "pool.nets.weight": weight / temperature,
        "pool.nets.bias": bias / temperature,
        "pool.pos_grid": torch.stack([x.flatten(), y.flatten()], dim=-1),
    }
