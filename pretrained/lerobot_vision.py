"""How a LeRobot policy sees: the image encoder that its config.json describes, and its tensors by our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pretrained.lerobot_config import Features, is_count

PREFIX = "diffusion.rgb_encoder."
_NUMBERED = re.compile(r"\d+\.")
_BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}
_DEFAULTS: dict[str, Any] = {
    "vision_backbone": "resnet18",
    "crop_shape": [84, 84],
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": 32,
    "use_separate_rgb_encoder_per_camera": False,
}
"""of LeRobot up to 0.4.3, for what a config.json leaves out"""
_SINCE_0_4_4 = {"crop_shape": None, "resize_shape": None, "crop_ratio": 1.0}
_SINCE_0_6 = {"use_group_norm": False, "use_separate_rgb_encoder_per_camera": True}


def read_vision(config: Mapping[str, Any], features: Features, path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Arguments of :class:`~dsrl.vision.VisionEncoder`, and what was assumed; None for a policy without images.

    Raises:
        DsrlError: when a field is not what LeRobot can have, or asks for another network.
    """
    if not features.images:
        return None, []
    defaults = {
        **_DEFAULTS,
        **(_SINCE_0_4_4 if {"resize_shape", "crop_ratio"} & config.keys() else {}),
        **(_SINCE_0_6 if "gradient_checkpointing" in config else {}),
    }
    values = {name: config.get(name, default) for name, default in defaults.items()}
    absent = [name for name in defaults if name not in config]
    backbone = values["vision_backbone"]
    if not isinstance(backbone, str) or backbone not in _BLOCKS:
        raise DsrlError(f"{path}: 'vision_backbone' is {backbone!r:.60}; known are {', '.join(_BLOCKS)}")
    for name in ("use_group_norm", "use_separate_rgb_encoder_per_camera"):
        if not isinstance(values[name], bool):
            raise DsrlError(f"{path}: '{name}' is {values[name]!r:.60}, expected true or false")
    keypoints = values["spatial_softmax_num_keypoints"]
    if not is_count(keypoints):
        raise DsrlError(f"{path}: 'spatial_softmax_num_keypoints' is {keypoints!r:.60}, expected a whole number")
    size = next(iter(features.images.values()))[1:]
    resize, crop = _resize_and_crop(values, size, path)
    vision = {
        "blocks": _BLOCKS[backbone],
        "norm": "group" if values["use_group_norm"] else "batch",
        "resize": resize,
        "crop": crop,
        "keypoints": keypoints,
        "feature_dim": 2 * keypoints,
        "shared": not values["use_separate_rgb_encoder_per_camera"],
    }
    return vision, [f"config.json does not say {name}; assumed is {defaults[name]}" for name in absent]


def _resize_and_crop(
    values: Mapping[str, Any], size: tuple[int, ...], path: Path
) -> tuple[list[int] | None, list[int] | None]:
    """Height and width; top, left, height and width."""
    resize, crop = (_pair(values.get(name), name, path) for name in ("resize_shape", "crop_shape"))
    if resize is not None:  # then LeRobot derives the crop from the ratio
        ratio = values["crop_ratio"]
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise DsrlError(f"{path}: 'crop_ratio' is {ratio!r:.60}, expected a number above 0 and up to 1")
        crop = [int(side * ratio) for side in resize] if ratio < 1 else None
    if crop is None:
        return resize, None
    whole = resize or list(size)
    if min(crop) < 1 or crop[0] > whole[0] or crop[1] > whole[1]:
        raise DsrlError(f"{path}: 'crop_shape' {crop} does not fit into the images, which have {whole} pixels")
    # the centre as torchvision rounds it: a half to the even number
    return resize, [round((whole[0] - crop[0]) / 2), round((whole[1] - crop[1]) / 2), *crop]


def _pair(value: Any, name: str, path: Path) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(is_count(side) and side <= 4096 for side in value):
        raise DsrlError(f"{path}: '{name}' is {value!r:.60}, expected null or [height, width] in pixels")
    return value


def vision_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the image encoders, by the names of :class:`~dsrl.vision.VisionEncoder`."""
    inside = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    # one for all cameras has no number
    return {f"vision.encoders.{name if _NUMBERED.match(name) else f'0.{name}'}": t for name, t in inside.items()}
