"""Images in an observation: a ResNet and a spatial softmax make a few numbers of each, before anything is denoised.

::

    N  cameras    C, H, W  channels, height, width of every image    K  keypoints    F  numbers per image

    state (B, To, 2), image (B, To, 3, 96, 96), goal (B, To, 4)  ->  state, features, goal: (B, To, 2 + F + 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

_TOLERANCE = 1e-3


def image_keys(obs_shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The observations that are images: those of three dimensions, ``(C, H, W)``."""
    return [key for key, shape in obs_shapes.items() if len(shape) == 3]


class VisionEncoder(nn.Module):
    """Puts ``F`` numbers in the place of every image of an observation; all else stays as it is.

    Images are float32 in [0, 1], channels first, and have one shape.

    Args:
        obs_shapes: of the policy, in its order; see :func:`image_keys`.
        blocks: residual blocks per stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        width: channels of the first stage; every further stage doubles them.
        norm: ``group``, with 16 channels per group, or ``batch``, whose statistics are those of the file.
        resize: height and width that images are brought to first, bilinearly; None leaves them as they are.
        crop: top, left, height and width of the part that is looked at; None is all of it.
        keypoints: of the spatial softmax.
        feature_dim: F.
        shared: one network for all cameras, instead of one for each.

    Raises:
        ValueError: when there is no image, their shapes differ, or a part of them does not lie inside.
    """

    config: dict[str, Any]
    offset: Tensor
    """(N, C), of the statistics of images; in [0, 1]"""
    scale: Tensor

    def __init__(
        self,
        obs_shapes: Mapping[str, tuple[int, ...]],
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        norm: str = "group",
        resize: Sequence[int] | None = None,
        crop: Sequence[int] | None = None,
        keypoints: int = 32,
        feature_dim: int = 64,
        shared: bool = True,
    ):
        super().__init__()
        self.keys = image_keys(obs_shapes)
        shapes = {obs_shapes[key] for key in self.keys}
        if len(shapes) != 1:
            raise ValueError(f"a policy that sees has images of one shape, (C, H, W); this one has {dict(obs_shapes)}")
        self.image_shape: tuple[int, int, int] = shapes.pop()  # type: ignore[assignment]  # image_keys counted them
        self._sizes = {key: math.prod(shape) for key, shape in obs_shapes.items()}
        self.low_dim = sum(size for key, size in self._sizes.items() if key not in self.keys)
        self.step_dim = self.low_dim + len(self.keys) * feature_dim
        channels, height, wide = self.image_shape
        self.resize = tuple(resize) if resize is not None else None
        self.crop = _inside(crop or (0, 0, *(resize or (height, wide))), resize or (height, wide))
        self.encoders = nn.ModuleList(
            ImageEncoder(channels, self.crop[2:], blocks, width, norm, keypoints, feature_dim)
            for _ in range(1 if shared else len(self.keys))
        )
        self.register_buffer("offset", torch.zeros(len(self.keys), channels))
        self.register_buffer("scale", torch.ones(len(self.keys), channels))
        self.config = {
            "blocks": list(blocks),
            "width": width,
            "norm": norm,
            "resize": list(resize) if resize is not None else None,
            "crop": list(crop) if crop is not None else None,
            "keypoints": keypoints,
            "feature_dim": feature_dim,
            "shared": shared,
        }

    def split(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, To, Do)`` -> what is low-dimensional ``(B, To, L)``, and the images ``(B, To, N, C, H, W)``.

        Raises:
            ValueError: when a pixel lies outside [0, 1].
        """
        parts = dict(zip(self._sizes, obs.split(list(self._sizes.values()), dim=-1), strict=True))
        low = [part for key, part in parts.items() if key not in self.keys]
        images = torch.stack([parts[key].unflatten(-1, self.image_shape) for key in self.keys], dim=2)
        if images.numel() and ((images < -_TOLERANCE) | (images > 1 + _TOLERANCE)).any():
            least, most = float(images.amin()), float(images.amax())
            raise ValueError(
                f"the images {self.keys} hold values from {least:.4g} to {most:.4g}; expected float32 in [0, 1], "
                "divide 8-bit pixels by 255"
            )
        return torch.cat(low, dim=-1) if low else obs[..., :0], images

    def forward(self, low: Tensor, images: Tensor) -> Tensor:
        """``(B, To, L)`` in network units and ``(B, To, N, C, H, W)`` in [0, 1] -> ``(B, To, step_dim)``."""
        pixels = (images - self.offset[..., None, None]) / self.scale[..., None, None]
        cameras = rearrange(pixels, "b t n c h w -> n (b t) c h w")
        features = {
            key: self.encoders[i % len(self.encoders)](self._look_at(camera)).unflatten(0, images.shape[:2])
            for i, (key, camera) in enumerate(zip(self.keys, cameras, strict=True))
        }
        rest = iter(low.split([size for key, size in self._sizes.items() if key not in self.keys], dim=-1))
        return torch.cat([features[key] if key in features else next(rest) for key in self._sizes], dim=-1)

    def _look_at(self, images: Tensor) -> Tensor:
        if self.resize is not None:
            images = nn.functional.interpolate(images, size=self.resize, mode="bilinear", antialias=True)
        top, left, height, width = self.crop
        return images[..., top : top + height, left : left + width]


def _inside(crop: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    top, left, height, width = crop
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"crop (top, left, height, width) is {tuple(crop)}; images have {tuple(size)} pixels")
    return tuple(crop)


class ImageEncoder(nn.Module):
    """ResNet, spatial softmax, one linear layer and a ReLU; parameter names are those of LeRobot's checkpoints.

    Args:
        channels: of an image.
        size: height and width of an image.
        blocks, width, norm, keypoints, feature_dim: see :class:`VisionEncoder`.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        blocks: Sequence[int],
        width: int,
        norm: str,
        keypoints: int,
        feature_dim: int,
    ):
        super().__init__()
        self.backbone = resnet(channels, blocks, width, norm)
        # the first convolution, the pooling and every stage but the first halve the sides, rounding up
        height, wide = (math.ceil(side / 2 ** (len(blocks) + 1)) for side in size)
        self.pool = SpatialSoftmax(width * 2 ** (len(blocks) - 1), height, wide, keypoints)
        self.out = nn.Linear(2 * keypoints, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, F)``."""
        return self.out(self.pool(self.backbone(images)).flatten(1)).relu()


class SpatialSoftmax(nn.Module):
    """Where in the image each keypoint is expected, from -1 to 1 (arXiv 1509.06113).

    Args:
        channels, height, width: of the feature maps.
        keypoints: K.
    """

    pos_grid: Tensor

    def __init__(self, channels: int, height: int, width: int, keypoints: int):
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        # a map of one pixel is at -1, as NumPy has it
        y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1)
        self.register_buffer("pos_grid", grid.reshape(-1, 2).float())

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, channels, height, width) -> (B, K, 2)``, x before y."""
        return self.nets(maps).flatten(2).softmax(dim=-1) @ self.pos_grid


# -- ResNet (arXiv 1512.03385) ----------------------------------------------------------------------------------------


def resnet(channels: int, blocks: Sequence[int], width: int, norm: str) -> nn.Sequential:
    """``(B, channels, H, W)`` -> feature maps; parameter names are those of torchvision's modules in a Sequential.

    Raises:
        ValueError: for an unknown ``norm``.
    """
    norms: dict[str, Callable[[int], nn.Module]] = {
        "group": lambda channels: nn.GroupNorm(max(1, channels // 16), channels),
        "batch": FrozenBatchNorm,
    }
    if norm not in norms:
        raise ValueError(f"unknown norm '{norm}'; known are {sorted(norms)}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        norms[norm](width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    deep = width
    for stage, count in enumerate(blocks):
        wide, deep = deep, width * 2**stage
        first = BasicBlock(wide, deep, 1 if stage == 0 else 2, norms[norm])
        layers.append(nn.Sequential(first, *(BasicBlock(deep, deep, 1, norms[norm]) for _ in range(count - 1))))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        channels_in, channels_out: of the feature maps.
        stride: of the first convolution.
        norm: makes the normalisation of so many channels.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = norm(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, norm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)``."""
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.downsample(x)).relu()


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by the statistics of the training, whatever mode the policy is in."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)``, normalised."""
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
