"""Denoisers: what predicts the noise, the clean chunk or the velocity from a noisy chunk.

All are called as ``denoiser(x, t, cond)``: noisy chunks ``(B, Tp, Da)``, times ``(B,)`` or a scalar, condition
``(B, C)`` -> prediction ``(B, Tp, Da)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from dsrl.errors import nearest
from dsrl.mlp import GaussianActor, MLPDenoiser, PlainMLPDenoiser, make_activation, residual_mlp, time_embedding
from dsrl.mlp import SinusoidalEmbedding as SinusoidalEmbedding
from dsrl.transformer import TransformerDenoiser


def build_denoiser(config: Mapping[str, Any]) -> Denoiser:
    """``{"type": "mlp", **constructor arguments}`` -> a network; the other types are the keys below.

    Its attribute ``config`` holds every argument, so that a file does not depend on today's defaults.

    Raises:
        ValueError: for an unknown type.
    """
    kinds: dict[str, Any] = {
        "mlp": MLPDenoiser,
        "plain_mlp": PlainMLPDenoiser,
        "unet": ConditionalUnet1D,
        "transformer": TransformerDenoiser,
        "staged": StagedDenoiser,
        "gaussian": GaussianActor,
    }
    arguments = dict(config)
    kind = arguments.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"unknown network type {kind!r}; known are {sorted(kinds)}.{nearest(str(kind), list(kinds))}")
    bound = inspect.signature(kinds[kind]).bind(**arguments)
    bound.apply_defaults()
    network = kinds[kind](*bound.args, **bound.kwargs)
    network.config = {"type": kind, **bound.arguments}
    if isinstance(network, StagedDenoiser):
        network.config["network"] = network.late.config
    return network


class StagedDenoiser(nn.Module):
    """Two networks of one shape: ``late`` for times below ``switch``, ``early`` for those above.

    So are policies of which only the last denoising steps were fine-tuned (DPPO, arXiv 2409.00588).

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition.
        network: arguments of :func:`build_denoiser` for each of the two.
        switch: the first time that is early.
    """

    config: dict[str, Any]

    def __init__(self, action_dim: int, horizon: int, cond_dim: int, network: Mapping[str, Any], switch: float):
        super().__init__()
        sizes = {"action_dim": action_dim, "horizon": horizon, "cond_dim": cond_dim}
        self.early: Any = build_denoiser({**network, **sizes})
        self.late: Any = build_denoiser({**network, **sizes})
        self.switch = switch

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """The layers that the prediction comes out of."""
        return (*self.early.outputs, *self.late.outputs)

    def at(self, time: float) -> nn.Module:
        """The network for one time, where that is known without asking the device."""
        return self.late if time < self.switch else self.early

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        is_late = t.reshape(-1, 1, 1) < self.switch
        return torch.where(is_late, self.late(x, t, cond), self.early(x, t, cond))


# -- conditional 1-D U-Net (arXiv 2303.04137) -------------------------------------------------------------------------


class ConvBlock(nn.Module):
    """Convolution over time, group normalisation (none without ``n_groups``), activation."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        n_groups: int | None,
        eps: float = 1e-5,
        activation: str = "Mish",
    ):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, channels_out, eps=eps) if n_groups else nn.Identity(),
            make_activation(activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, T) -> (B, channels_out, T)``."""
        return self.block(x)


class FiLMResidualBlock(nn.Module):
    """Two convolutions; the condition scales and shifts what the first one gives (FiLM, arXiv 1709.07871).

    Args:
        channels_in, channels_out: of the chunk.
        cond_dim: length of time embedding and condition.
        predict_scale: scale and shift; False only shifts.
        large_encoder: three linear layers for the condition instead of one.
        conv: the other arguments of :class:`ConvBlock`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        cond_dim: int,
        conv: Mapping[str, Any],
        predict_scale: bool = True,
        large_encoder: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            [ConvBlock(channels_in, channels_out, **conv), ConvBlock(channels_out, channels_out, **conv)]
        )
        act = make_activation(conv["activation"])
        width = 2 * channels_out if predict_scale else channels_out
        layers = [act, nn.Linear(cond_dim, width)]
        if large_encoder:
            layers = [nn.Linear(cond_dim, width), act, nn.Linear(width, width), act, nn.Linear(width, width)]
        self.predict_scale = predict_scale
        self.cond_encoder = nn.Sequential(*layers, Rearrange("b (two c) -> two b c 1", two=1 + predict_scale))
        self.residual_conv = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """``(B, channels_in, T), (B, cond_dim) -> (B, channels_out, T)``."""
        y = self.blocks[0](x)
        *scale, bias = self.cond_encoder(cond)
        y = scale[0] * y + bias if self.predict_scale else y + bias
        return self.blocks[1](y) + self.residual_conv(x)


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
        kernel_size, n_groups, group_norm_eps, activation: of every convolution block; without ``n_groups`` there is no
            group normalisation.
        cond_predict_scale, large_encoder: of every :class:`FiLMResidualBlock`.
        cond_mlp_dims: layers of a residual encoder of the condition, an even number; none, when left out.
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
        n_groups: int | None = 8,
        group_norm_eps: float = 1e-5,
        activation: str = "Mish",
        cond_predict_scale: bool = True,
        large_encoder: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
    ):
        super().__init__()
        halvings = len(down_dims) - 1
        if horizon % 2**halvings:
            raise ValueError(
                f"a U-Net of {len(down_dims)} levels halves the horizon {halvings} times; {horizon} does not allow it, "
                f"use a multiple of {2**halvings} or fewer down_dims"
            )
        if n_groups and any(channels % n_groups for channels in down_dims):
            raise ValueError(f"down_dims {tuple(down_dims)} must be multiples of {n_groups}, the groups of GroupNorm")
        self.diffusion_step_encoder = time_embedding(time_dim, 4 * time_dim)
        self.cond_mlp: nn.Module = nn.Identity()
        encoded_dim = cond_dim
        if cond_mlp_dims:
            if len(cond_mlp_dims) % 2:
                raise ValueError(
                    f"cond_mlp_dims is {tuple(cond_mlp_dims)}; a residual encoder has an even number of layers"
                )
            n_blocks, encoded_dim = len(cond_mlp_dims) // 2 - 1, cond_mlp_dims[-1]
            self.cond_mlp = residual_mlp(cond_dim, cond_mlp_dims[0], n_blocks, encoded_dim, activation)
        conv: dict[str, Any] = {
            "kernel_size": kernel_size,
            "n_groups": n_groups,
            "eps": group_norm_eps,
            "activation": activation,
        }

        def block(channels_in: int, channels_out: int) -> FiLMResidualBlock:
            cond_channels = time_dim + encoded_dim
            return FiLMResidualBlock(channels_in, channels_out, cond_channels, conv, cond_predict_scale, large_encoder)

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
            ConvBlock(down_dims[0], down_dims[0], **conv), nn.Conv1d(down_dims[0], action_dim, 1)
        )

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """The layer that the prediction comes out of."""
        return (self.final_conv[-1],)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        time = self.diffusion_step_encoder(t.reshape(-1)).expand(len(x), -1)
        cond = torch.cat([time, self.cond_mlp(cond)], dim=-1)
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


Denoiser = MLPDenoiser | PlainMLPDenoiser | ConditionalUnet1D | TransformerDenoiser | StagedDenoiser | GaussianActor
