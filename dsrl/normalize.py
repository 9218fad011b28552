"""Environment units to network units and back; the numbers travel with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """``normalize(x) = clip((x - offset) / scale)``, ``unnormalize(y) = y * scale + offset``, per dimension.

    Args:
        dim: length of the last dimension.
        clip: bound of the normalised value; None leaves it alone.
        dtype: of the numbers, and so of the arithmetic.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, dim: int, clip: float | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.clip = clip
        self.register_buffer("offset", torch.zeros(dim, dtype=dtype))
        self.register_buffer("scale", torch.ones(dim, dtype=dtype))

    def fit_standard(self, data: Tensor, min_std: float = 1e-3) -> Normalizer:
        """Zero mean, unit variance over ``(..., dim)``.

        ``min_std`` keeps a sensor that hardly moves in the data from exploding when it does move.
        """
        flat = data.reshape(-1, data.shape[-1]).double()
        self.offset.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0, correction=0).clamp_min(min_std))
        return self

    def fit_min_max(self, data: Tensor, min_range: float = 1e-4) -> Normalizer:
        """Minimum to -1, maximum to 1 over ``(..., dim)``; a dimension that never changes keeps scale 1."""
        flat = data.reshape(-1, data.shape[-1]).double()
        low, high = flat.amin(0), flat.amax(0)
        half = (high - low) / 2
        self.offset.copy_((low + high) / 2)
        self.scale.copy_(torch.where(half * 2 > min_range, half, torch.ones_like(half)))
        return self

    def normalize(self, x: Tensor) -> Tensor:
        """``(..., dim)`` in environment units -> network units."""
        y = (x - self.offset) / self.scale
        return y if self.clip is None else y.clamp_(-self.clip, self.clip)

    def unnormalize(self, y: Tensor) -> Tensor:
        """``(..., dim)`` in network units -> environment units."""
        return y * self.scale + self.offset
