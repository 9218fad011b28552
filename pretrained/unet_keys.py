"""One conditional U-Net, three spellings: what its tensors are called in the files that hold it, and its sizes.

Diffusion Policy and robomimic use the names of :class:`~dsrl.networks.ConditionalUnet1D`, LeRobot changes two of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dsrl.errors import DsrlError

_CONV = re.compile(r"\.conv([12])\.")
_RESAMPLE = re.compile(r"^((?:down|up)_modules\.\d+\.2)\.(weight|bias)$")


def lerobot_name(name: str) -> str:
    """LeRobot's name of a tensor of the U-Net -> ours."""
    name = _CONV.sub(lambda match: f".blocks.{int(match[1]) - 1}.", name)
    return _RESAMPLE.sub(r"\1.conv.\2", name)


def unet_weights(weights: Mapping[str, Tensor], prefix: str, lerobot: bool = False) -> dict[str, Tensor]:
    """What stands under ``prefix``, by the names of :class:`~dsrl.networks.ConditionalUnet1D`.

    Args:
        weights: by the names of the file.
        prefix: ``model.`` in Diffusion Policy, ``policy.noise_pred_net.`` in robomimic, ``diffusion.unet.`` in LeRobot.
        lerobot: whether the names are LeRobot's.
    """
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return {lerobot_name(name): tensor for name, tensor in inside.items()} if lerobot else inside


@dataclass(frozen=True)
class UnetSizes:
    """What the shapes of the tensors say; the number of groups is not among it."""

    action_dim: int
    cond_dim: int
    down_dims: tuple[int, ...]
    time_dim: int
    kernel_size: int
    film_scale: bool
    """whether the condition scales the features; otherwise it only shifts them"""


def unet_sizes(
    weights: Mapping[str, Tensor], path: Path, misfit: Callable[[str, list[int] | None, int], str] | None = None
) -> UnetSizes:
    """Sizes of a U-Net from its tensors, by our names.

    Args:
        weights: of the U-Net.
        path: of the file, for messages.
        misfit: puts into words that a tensor has this shape, or is not there, and not so many dimensions.

    Raises:
        DsrlError: when one of them is missing or has another number of dimensions.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        found = list(weights[name].shape) if name in weights else None
        if found is None or len(found) != ndim:
            raise DsrlError(f"{path}: {(misfit or _misfit)(name, found, ndim)}")
        return tuple(found)

    levels = len({name.split(".")[1] for name in weights if name.startswith("down_modules.")})
    first = shape("down_modules.0.0.blocks.0.block.0.weight", 3)
    down_dims = tuple(shape(f"down_modules.{i}.0.blocks.0.block.0.weight", 3)[0] for i in range(levels))
    time_dim = shape("diffusion_step_encoder.3.weight", 2)[0]
    film = shape("down_modules.0.0.cond_encoder.1.weight", 2)
    return UnetSizes(
        action_dim=shape("final_conv.1.weight", 3)[0],
        cond_dim=film[1] - time_dim,
        down_dims=down_dims,
        time_dim=time_dim,
        kernel_size=first[2],
        film_scale=film[0] == 2 * first[0],
    )


def _misfit(name: str, found: list[int] | None, ndim: int) -> str:
    what = "no such tensor" if found is None else f"the shape {found}"
    return (
        f"the weights of its U-Net are incomplete: '{name}' has {what}, expected {ndim} dimensions; was it written to "
        "its end?"
    )
