"""What policies around another one share."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dsrl.policy import FrozenPolicy, Obs

Base = TypeVar("Base", bound=FrozenPolicy)


class WrappedPolicy(nn.Module, Generic[Base]):
    """A policy that sees what another one sees, on its device; how it acts is up to a subclass.

    Args:
        base: the policy inside.
    """

    def __init__(self, base: Base):
        super().__init__()
        self.base = base
        self.spec = base.spec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    @property
    def cond_dim(self) -> int:
        """Length of what the base policy's ``encode`` returns; what else a network is told is no part of it."""
        return self.base.cond_dim

    def encode(self, obs: Obs) -> Tensor:
        """``(B, To, Do)`` or a dict, environment units -> ``(B, cond_dim)``, as the base policy does."""
        return self.base.encode(obs)

    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, *noise_shape)`` -> the executed chunk ``(B, Ta, Da)``."""
        raise NotImplementedError

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)
