"""Denoisers: what predicts the noise, the clean chunk or the velocity from a noisy chunk.

All are called as ``denoiser(x, t, cond)``: noisy chunks ``(B, Tp, Da)``, times ``(B,)`` or a scalar, condition
``(B, C)`` -> prediction ``(B, Tp, Da)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from dsrl.errors import nearest

if TYPE_CHECKING:
    from dsrl.transformer import TransformerDenoiser


def build_denoiser(config: Mapping[str, Any]) -> MLPDenoiser | ConditionalUnet1D | TransformerDenoiser:
    """``{"type": "mlp" | "unet" | "transformer", **constructor arguments}`` -> a network.

    Its attribute ``config`` holds every argument, so that a file does not depend on today's defaults.

    Raises:
        ValueError: for an unknown type.
    """
    from dsrl.transformer import TransformerDenoiser  # which needs the time embedding from here

    kinds: dict[str, Any] = {"mlp": MLPDenoiser, "unet": ConditionalUnet1D, "transformer": TransformerDenoiser}
    arguments = dict(config)
    kind = arguments.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"unknown network type {kind!r}; known are {sorted(kinds)}.{nearest(str(kind), list(kinds))}")
    bound = inspect.signature(kinds[kind]).bind(**arguments)
    bound.apply_defaults()
    network = kinds[kind](*bound.args, **bound.kwargs)
    network.config = {"type": kind, **bound.arguments}
    return network


class SinusoidalEmbedding(nn.Module):
    """``t (B,) -> (B, dim)``: sines, then cosines, of geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        steps = torch.arange(half) / max(half - 1, 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000.0) * steps), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times."""
        angles = t[:, None].to(self.frequencies) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


# -- residual MLP -----------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """``x + l2(mish(l1(mish(x))))``."""

    def __init__(self, width: int):
        super().__init__()
        self.l1 = nn.Linear(width, width)
        self.l2 = nn.Linear(width, width)
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width) -> (B, width)``."""
        return x + self.l2(self.act(self.l1(self.act(x))))


class MLPDenoiser(nn.Module):
    """Residual MLP over the flattened chunk; input order: chunk, time embedding, condition.

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition.
        hidden_dims: one input layer and two layers per residual block, so an odd number of equal widths;
            ``(512, 512, 512)`` is one block.
        time_dim: length of the time embedding.
    """

    config: dict[str, Any]

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        hidden_dims: Sequence[int] = (256, 256, 256, 256, 256),
        time_dim: int = 16,
    ):
        super().__init__()
        if len(set(hidden_dims)) != 1 or len(hidden_dims) % 2 == 0 or len(hidden_dims) < 3:
            raise ValueError(
                f"hidden_dims is {tuple(hidden_dims)}; a residual MLP needs an odd number of equal widths: "
                "the input layer and two per block, such as 256 256 256"
            )
        self.horizon, self.time_dim = horizon, time_dim
        width, chunk_dim = hidden_dims[0], horizon * action_dim
        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            nn.Mish(),
            nn.Linear(2 * time_dim, time_dim),
        )
        blocks = [ResidualBlock(width) for _ in range(len(hidden_dims) // 2)]
        self.layers = nn.Sequential(
            nn.Linear(chunk_dim + time_dim + cond_dim, width), *blocks, nn.Linear(width, chunk_dim)
        )

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        time = self.time_embedding(t.reshape(-1)).expand(len(x), -1)
        y = self.layers(torch.cat([rearrange(x, "b t d -> b (t d)"), time, cond], dim=-1))
        return rearrange(y, "b (t d) -> b t d", t=self.horizon)


# -- conditional 1-D U-Net (arXiv 2303.04137) -------------------------------------------------------------------------


class ConvBlock(nn.Module):
    """Convolution over time, group normalisation, Mish."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, channels_out),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, T) -> (B, channels_out, T)``."""
        return self.block(x)


class FiLMResidualBlock(nn.Module):
    """Two convolutions; the condition scales and shifts what the first one gives (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels_in: int, channels_out: int, cond_dim: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                ConvBlock(channels_in, channels_out, kernel_size, n_groups),
                ConvBlock(channels_out, channels_out, kernel_size, n_groups),
            ]
        )
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(cond_dim, 2 * channels_out), Rearrange("b (two c) -> two b c 1", two=2)
        )
        self.residual_conv = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """``(B, channels_in, T), (B, cond_dim) -> (B, channels_out, T)``."""
        scale, bias = self.cond_encoder(cond)
        return self.blocks[1](scale * self.blocks[0](x) + bias) + self.residual_conv(x)


class Resample(nn.Module):
    """Half or double the time steps."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        kind, kernel_size = (nn.ConvTranspose1d, 4) if up else (nn.Conv1d, 3)
        self.conv = kind(channels, channels, kernel_size, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T) -> (B, C, 2 T)`` or ``(B, C, T / 2)``."""
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """The conditional U-Net of Diffusion Policy; parameter names are those of its checkpoints.

    Args:
        action_dim, horizon: shape of a chunk; every level but the last halves the horizon.
        cond_dim: length of the condition.
        down_dims: channels per level.
        time_dim: length of the time embedding.
        kernel_size, n_groups: of every convolution block.
    """

    config: dict[str, Any]

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        down_dims: Sequence[int] = (64, 128),
        time_dim: int = 64,
        kernel_size: int = 5,
        n_groups: int = 8,
    ):
        super().__init__()
        halvings = len(down_dims) - 1
        if horizon % 2**halvings:
            raise ValueError(
                f"a U-Net of {len(down_dims)} levels halves the horizon {halvings} times; {horizon} does not allow it, "
                f"use a multiple of {2**halvings} or fewer down_dims"
            )
        if any(channels % n_groups for channels in down_dims):
            raise ValueError(f"down_dims {tuple(down_dims)} must be multiples of {n_groups}, the groups of GroupNorm")
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(time_dim),
            nn.Linear(time_dim, 4 * time_dim),
            nn.Mish(),
            nn.Linear(4 * time_dim, time_dim),
        )

        def block(channels_in: int, channels_out: int) -> FiLMResidualBlock:
            return FiLMResidualBlock(channels_in, channels_out, time_dim + cond_dim, kernel_size, n_groups)

        levels = list(zip((action_dim, *down_dims[:-1]), down_dims, strict=True))
        self.down_modules = nn.ModuleList()
        for i, (wide, deep) in enumerate(levels):
            shorten = Resample(deep, up=False) if i < halvings else nn.Identity()
            self.down_modules.append(nn.ModuleList([block(wide, deep), block(deep, deep), shorten]))
        self.mid_modules = nn.ModuleList([block(down_dims[-1], down_dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * deep, wide), block(wide, wide), Resample(wide, up=True)])
            for wide, deep in reversed(levels[1:])
        )
        self.final_conv = nn.Sequential(
            ConvBlock(down_dims[0], down_dims[0], kernel_size, n_groups), nn.Conv1d(down_dims[0], action_dim, 1)
        )

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        time = self.diffusion_step_encoder(t.reshape(-1)).expand(len(x), -1)
        cond = torch.cat([time, cond], dim=-1)
        y = rearrange(x, "b t d -> b d t")
        down_levels: Any = self.down_modules
        up_levels: Any = self.up_modules
        skips = []
        for first, second, shorten in down_levels:
            y = second(first(y, cond), cond)
            skips.append(y)
            y = shorten(y)
        for middle in self.mid_modules:
            y = middle(y, cond)
        for first, second, lengthen in up_levels:
            y = lengthen(second(first(torch.cat([y, skips.pop()], dim=1), cond), cond))
        return rearrange(self.final_conv(y), "b d t -> b t d")
