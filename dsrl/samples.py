"""Batches that steering agents learn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsrl.pools import Pool


class SteeringSamples(NamedTuple):
    """A batch. The first six fields are those that stock SAC reads."""

    observations: Tensor
    actions: Tensor
    """``(B, A)`` noise / bound; zeros where it is not known"""
    next_observations: Tensor
    dones: Tensor
    """``(B, 1)``: 1 where the episode terminated; a time limit is no termination"""
    rewards: Tensor
    discounts: Tensor
    """``(B, 1)``: gamma ** k for a chunk of k env steps"""
    chunks: Tensor
    """``(B, Ta * Da)`` as executed"""
    pool: Pool | None
    next_pool: Pool | None
    earned: Tensor
    """``(B, 1)``: discounted rewards from here to the end of the episode, as far as it has been played"""
    remaining: Tensor
    """``(B, 1)``: discount of what comes after that; 0 where the episode terminated, so ``earned`` is the return"""
    end_observations: Tensor | None = None
    """``(B, C)``: the last observation so far of each episode, where it was asked for"""
    end_pool: Pool | None = None


def join(one: SteeringSamples, other: SteeringSamples) -> SteeringSamples:
    """Two batches as one."""

    def both(a: Any, b: Any) -> Any:
        if a is None:
            return None
        return Pool(*map(both, a, b)) if isinstance(a, Pool) else torch.cat([a, b])

    return SteeringSamples(*map(both, one, other))
