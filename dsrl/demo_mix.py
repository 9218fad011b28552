"""Demonstrations among the batches of an agent's own transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dsrl.replay import SteeringReplayBuffer, SteeringSamples, join

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
            return own.sample(batch_size, **options)
        demonstrated = self.buffer.sample(shown, **options)
        if shown == batch_size:
            return demonstrated
        return join(own.sample(batch_size - shown, **options), demonstrated)
