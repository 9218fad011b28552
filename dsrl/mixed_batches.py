"""Recorded and synthetic decisions in one batch, for agents that learn from data alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor

from dsrl.errors import DsrlError, LossNotFinite
from dsrl.transitions import Transitions


class MixedBatches:
    """Batches of which a share is synthetic, the rest recorded.

    Args:
        real: what was recorded.
        synthetic: what was made; None: batches are all recorded.
        share: of a batch that is synthetic; arXiv 2404.06356 takes 240 of 256.
        batch_size: decisions.
        seed: of the draws.
    """

    def __init__(
        self,
        real: Transitions,
        synthetic: Transitions | None = None,
        share: float = 240 / 256,
        batch_size: int = 256,
        seed: int = 0,
    ):
        if not 0 <= share <= 1:
            raise DsrlError(f"the synthetic share of a batch is {share}; it must lie in [0, 1]")
        self.real, self.synthetic, self.share, self.batch_size = real, synthetic, share, batch_size
        self.generator = torch.Generator(device=real.cond.device).manual_seed(seed)

    def draw(self) -> Transitions:
        """A batch, the recorded decisions first."""
        made = 0 if self.synthetic is None else round(self.share * self.batch_size)
        real = self._rows(self.real, self.batch_size - made)
        return real if self.synthetic is None or not made else join(real, self._rows(self.synthetic, made))

    def _rows(self, data: Transitions, count: int) -> Transitions:
        device = self.generator.device
        return data.at(torch.randint(len(data), (count,), generator=self.generator, device=device))


def join(one: Transitions, other: Transitions) -> Transitions:
    """Two batches as one.

    Raises:
        DsrlError: when they were cut with another discount.
    """
    if one.gamma != other.gamma:
        raise DsrlError(f"{one.source} is discounted by {one.gamma} per env step, {other.source} by {other.gamma}")
    names = [entry.name for entry in fields(one) if isinstance(getattr(one, entry.name), Tensor)]
    columns = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names}
    return Transitions(**columns, gamma=one.gamma, source=f"{one.source} and {other.source}")


class Agent(Protocol):
    """What learns: :class:`~dsrl.td3bc.TD3BC` or :class:`~dsrl.td3bc.IQL`."""

    def update(self, batch: Transitions) -> Mapping[str, Tensor]:
        """One gradient step."""
        ...


def train_offline(
    agent: Agent,
    batches: MixedBatches,
    steps: int,
    refresh: Callable[[], Transitions] | None = None,
    refresh_every: int = 10_000,
) -> dict[str, float]:
    """Gradient steps on batches; the synthetic part is made anew now and then, for the agent as it is by then.

    Args:
        agent: what learns.
        batches: what from.
        steps: gradient steps; recorded data alone are compared with at as many of them.
        refresh: makes synthetic decisions. It is not called at the start: the first ones are those of ``batches``.
        refresh_every: steps in between.

    Returns:
        the last losses.

    Raises:
        LossNotFinite: when one has diverged.
    """
    metrics: dict[str, float] = {}
    for step in range(1, steps + 1):
        losses = agent.update(batches.draw())
        if step % min(1_000, steps) == 0:
            # reading waits for the device, so it is done now and then only
            metrics |= {name: float(value) for name, value in losses.items()}
            if not all(map(math.isfinite, metrics.values())):
                raise LossNotFinite(f"a loss is not finite after {step} gradient steps: {metrics}; try a smaller lr")
        if refresh is not None and step % refresh_every == 0 and step < steps:
            batches.synthetic = refresh()
    return metrics
