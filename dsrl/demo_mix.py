"""Demonstrations among the batches of an agent's own transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dsrl.replay import SteeringReplayBuffer
from dsrl.samples import SteeringSamples, join

Mix = Literal["prefill", "ratio", "decay"]


@dataclass
class DemoMix:
    """Demonstrations to learn from beside the agent's own transitions; their noise need not be known."""

    buffer: SteeringReplayBuffer
    """holds nothing else"""
    mix: Mix = "prefill"
    """``prefill``: as if they stood in the replay buffer from the start, so their share falls as it fills. ``ratio``: a
    fixed :attr:`share` of every batch. ``decay``: a share that falls to zero"""
    share: float = 0.5
    """of a batch"""
    decisions: int = 1
    """after which the share has decayed"""
    beside: DemoMix | None = None
    """others, which share what is left of a batch with the agent's own"""

    def share_now(self, own: SteeringReplayBuffer, played: int) -> float:
        """Of the next batch, when the agent has played so many decisions."""
        if not self.buffer.rows:
            return 0.0
        if self.mix == "prefill":
            return self.buffer.rows / (self.buffer.rows + own.rows)
        if self.mix == "decay":
            return self.share * max(0.0, 1.0 - played / self.decisions)
        return self.share

    def sample(self, own: SteeringReplayBuffer, batch_size: int, played: int, **options: Any) -> SteeringSamples:
        """A batch of both; ``options`` are those of the buffers."""
        shown = round(batch_size * self.share_now(own, played))
        if not shown:
            return self._rest(own, batch_size, played, **options)
        demonstrated = self.buffer.sample(shown, **options)
        if shown == batch_size:
            return demonstrated
        return join(self._rest(own, batch_size - shown, played, **options), demonstrated)

    def _rest(self, own: SteeringReplayBuffer, size: int, played: int, **options: Any) -> SteeringSamples:
        return own.sample(size, **options) if self.beside is None else self.beside.sample(own, size, played, **options)
