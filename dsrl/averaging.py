"""The moving average of weights: of target critics (Polyak), of an actor, of a policy in training."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def follow(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """``average <- decay * average + (1 - decay) * weights``, in place and without gradients."""
    get_ema_multi_avg_fn(decay)(list(average), list(weights), 0)
