"""Multi-layer perceptrons, and the denoisers that are one: the chunk is flattened, time and condition are appended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dsrl.errors import nearest

ACTIVATIONS = ("ELU", "GELU", "Identity", "Mish", "ReLU", "Softplus", "Tanh")
"""by torch's names"""


def make_activation(name: str) -> nn.Module:
    """One of :data:`ACTIVATIONS`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known are {ACTIVATIONS}.{nearest(str(name), ACTIVATIONS)}")
    return getattr(nn, name)()


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


def time_embedding(dim: int, width: int) -> nn.Sequential:
    """``t (B,) -> (B, dim)``, with one hidden layer."""
    return nn.Sequential(SinusoidalEmbedding(dim), nn.Linear(dim, width), nn.Mish(), nn.Linear(width, dim))


class PlainMLP(nn.Module):
    """Linear layers with an activation, and if wanted a LayerNorm before it, between them.

    Args:
        dims: input, hidden layers, output.
        activation: one of :data:`ACTIVATIONS`.
        layer_norm: normalise every hidden layer.
    """

    def __init__(self, dims: Sequence[int], activation: str = "Mish", layer_norm: bool = False):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if layer_norm else nn.Identity() for dim in dims[1:-1])
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dims[0]) -> (B, dims[-1])``."""
        *hidden, last = self.linears
        for linear, norm in zip(hidden, self.norms, strict=True):
            x = self.act(norm(linear(x)))
        return last(x)


class ResidualBlock(nn.Module):
    """``x + l2(act(norm2(l1(act(norm1(x))))))``; the norms only where ``layer_norm`` asks for them."""

    def __init__(self, width: int, activation: str = "Mish", layer_norm: bool = False):
        super().__init__()
        self.l1 = nn.Linear(width, width)
        self.l2 = nn.Linear(width, width)
        self.act = make_activation(activation)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width) -> (B, width)``."""
        return x + self.l2(self.act(self.norm2(self.l1(self.act(self.norm1(x))))))


def residual_mlp(
    dim_in: int, width: int, n_blocks: int, dim_out: int, activation: str = "Mish", layer_norm: bool = False
) -> nn.Sequential:
    """A linear layer, residual blocks, a linear layer."""
    blocks = [ResidualBlock(width, activation, layer_norm) for _ in range(n_blocks)]
    return nn.Sequential(nn.Linear(dim_in, width), *blocks, nn.Linear(width, dim_out))


# -- denoisers --------------------------------------------------------------------------------------------------------


class _FlatDenoiser(nn.Module):
    """What both kinds share; input order: chunk, time embedding, condition."""

    config: dict[str, Any]
    layers: nn.Module

    def __init__(
        self, horizon: int, cond_dim: int, time_dim: int, activation: str, cond_mlp_dims: Sequence[int] | None
    ):
        super().__init__()
        self.horizon, self.time_dim = horizon, time_dim
        self.time_embedding = time_embedding(time_dim, 2 * time_dim)
        self.cond_mlp: nn.Module = nn.Identity()
        self.encoded_dim = cond_dim
        if cond_mlp_dims:
            self.cond_mlp = PlainMLP([cond_dim, *cond_mlp_dims], activation)
            self.encoded_dim = cond_mlp_dims[-1]

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        time = self.time_embedding(t.reshape(-1)).expand(len(x), -1)
        y = self.layers(torch.cat([rearrange(x, "b t d -> b (t d)"), time, self.cond_mlp(cond)], dim=-1))
        return rearrange(y, "b (t d) -> b t d", t=self.horizon)


class MLPDenoiser(_FlatDenoiser):
    """Residual MLP over the flattened chunk; input order: chunk, time embedding, condition.

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition.
        hidden_dims: one input layer and two layers per residual block, so an odd number of equal widths;
            ``(512, 512, 512)`` is one block.
        time_dim: length of the time embedding.
        activation: one of :data:`ACTIVATIONS`.
        layer_norm: in the residual blocks.
        cond_mlp_dims: layers of an encoder of the condition; none, when left out.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        hidden_dims: Sequence[int] = (256, 256, 256, 256, 256),
        time_dim: int = 16,
        activation: str = "Mish",
        layer_norm: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
    ):
        if len(set(hidden_dims)) != 1 or len(hidden_dims) % 2 == 0 or len(hidden_dims) < 3:
            raise ValueError(
                f"hidden_dims is {tuple(hidden_dims)}; a residual MLP needs an odd number of equal widths: "
                "the input layer and two per block, such as 256 256 256"
            )
        super().__init__(horizon, cond_dim, time_dim, activation, cond_mlp_dims)
        width, chunk_dim = hidden_dims[0], horizon * action_dim
        dim_in = chunk_dim + time_dim + self.encoded_dim
        self.layers: nn.Sequential = residual_mlp(
            dim_in, width, len(hidden_dims) // 2, chunk_dim, activation, layer_norm
        )
        self.is_foldable = activation == "Mish" and not layer_norm
        """whether nothing but Mish stands between the linear layers; see :mod:`dsrl.sampler`"""

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """The layer that the prediction comes out of."""
        return (self.layers[-1],)


class PlainMLPDenoiser(_FlatDenoiser):
    """MLP without residual connections over the flattened chunk.

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition.
        hidden_dims: width of every hidden layer.
        time_dim, activation, cond_mlp_dims: as in :class:`MLPDenoiser`.
        layer_norm: in the hidden layers.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        time_dim: int = 16,
        activation: str = "Mish",
        layer_norm: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
    ):
        super().__init__(horizon, cond_dim, time_dim, activation, cond_mlp_dims)
        chunk_dim = horizon * action_dim
        dims = [chunk_dim + time_dim + self.encoded_dim, *hidden_dims, chunk_dim]
        self.layers: PlainMLP = PlainMLP(dims, activation, layer_norm)

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """The layer that the prediction comes out of."""
        return (self.layers.linears[-1],)


class GaussianActor(nn.Module):
    """``mean(cond) + std * x``: the same call as a denoiser's, with the noise for ``x`` and no time.

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition.
        hidden_dims: width of every hidden layer.
        activation, layer_norm: of the hidden layers.
        learn_std: one standard deviation per number of the chunk, whatever the condition; False: all of them are 1.
        squash: the mean passes through tanh.
    """

    config: dict[str, Any]

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512),
        activation: str = "Mish",
        layer_norm: bool = True,
        learn_std: bool = True,
        squash: bool = False,
    ):
        super().__init__()
        self.horizon, self.squash = horizon, squash
        self.layers = PlainMLP([cond_dim, *hidden_dims, horizon * action_dim], activation, layer_norm)
        log_std = torch.zeros(horizon, action_dim)
        self.log_std: Tensor
        if learn_std:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def moments(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C)`` -> mean ``(B, Tp, Da)``, log of the standard deviation ``(Tp, Da)``."""
        mean = rearrange(self.layers(cond), "b (t d) -> b t d", t=self.horizon)
        return torch.tanh(mean) if self.squash else mean, self.log_std.clamp(-5.0, 2.0)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), any, (B, C)`` -> ``(B, Tp, Da)``."""
        mean, log_std = self.moments(cond)
        return mean + log_std.exp() * x
