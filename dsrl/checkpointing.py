"""When a run is written down, and how it is taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import Space
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dsrl.agent_state import agent_state, restore_agent
from dsrl.checkpoint import Checkpoints
from dsrl.errors import RunFailed
from dsrl.interruption import Interruption
from dsrl.pools import Pool
from dsrl.random_state import random_state, restore_random_state
from dsrl.replay import SteeringReplayBuffer
from dsrl.wrappers import SteeredVecEnv

_SHARE = 0.05
"""of the time, at most, that goes into checkpoints"""


class Part(Protocol):
    """Something beside the agent that has to go on as it was."""

    def state(self) -> Any:
        """Plain values."""

    def restore(self, state: Any) -> None:
        """Put them back."""


class Checkpointing(BaseCallback):
    """Writes checkpoints between two decisions, where everything is in one place: stored, learned, nothing under way.

    It writes one every ``interval`` seconds, after every evaluation, before the decision that may be the last, and when
    the run is interrupted, which it then ends with ``KeyboardInterrupt``. An agent that learns from whole roll-outs is
    written down before each of them, and only there. Of the time, 5 % are spent at most, unless ``interval`` is 0.

    Args:
        checkpoints: where they go.
        facts: what a resumed run is compared with.
        parts: counters, by name; among them ``evaluation`` with its ``scored_at``.
        steps: the count of env steps, with its ``budget``.
        interval: seconds.
        interruption: what to look at.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        facts: Mapping[str, Any],
        parts: Mapping[str, Part],
        *,
        steps: Any,
        interval: float,
        interruption: Interruption,
    ):
        super().__init__()
        self.checkpoints, self.facts, self.parts = checkpoints, facts, dict(parts)
        self.steps, self.interval, self.interruption = steps, interval, interruption
        self.seconds = 0.0
        """spent on writing"""
        self._due = 0.0
        self._saved_at = -1
        self._scored_at = -1
        self._at_rest: dict[str, Any] = {}

    def restore(self, checkpoint: Mapping[str, Any], seed: int) -> list[int]:
        """Bring an agent that was just built, and all parts, to where a checkpoint was taken.

        Args:
            checkpoint: of :meth:`Checkpoints.newest`; ``init_callback`` must have been called.
            seed: of episodes that are begun anew, where a simulator does not come to the same point again.

        Returns:
            the environments with such an episode. What was stored of the one before stays, as if a time limit had cut
            it short; it counts as no episode.

        Raises:
            DsrlError: when the agent was set up in another way.
        """
        state, buffer = checkpoint["state"], self._buffer
        restore_agent(self.model, state["agent"])
        for name, part in self.parts.items():
            part.restore(state["parts"][name])
        if buffer is not None:
            self.checkpoints.restore_buffer(checkpoint, buffer)
            buffer.streams = state["buffer"]["streams"]
            buffer.latest = _pool(state["buffer"], buffer.device)
        fresh = self._reopen(state, np.random.SeedSequence((seed, self.model.num_timesteps)))
        restore_random_state(state["random"], self._spaces, self._generators)
        self._saved_at, self._scored_at = self.model.num_timesteps, self.parts["evaluation"].scored_at  # type: ignore[attr-defined]
        self._due = time.monotonic() + self.interval
        return fresh

    def _reopen(self, state: Mapping[str, Any], seeds: np.random.SeedSequence) -> list[int]:
        """Bring the environments to where they were; returns those that had to begin an episode anew."""
        envs, buffer, last = self._envs, self._buffer, state["agent"]["arrays"]["_last_obs"]
        episodes, n_envs = state["open"], envs.num_envs
        if len(episodes) != n_envs:  # which was forced
            nothing = {"start": None, "first": None, "chunks": None}
            episodes, last = [nothing] * n_envs, np.full((n_envs, *last.shape[1:]), np.nan)
            self.model._last_episode_starts = np.ones(n_envs, dtype=bool)
            if buffer is not None:
                buffer.streams, buffer.latest = list(range(n_envs)), None
        self.model._last_obs, fresh = envs.reopen(episodes, last, seeds.generate_state(n_envs).tolist())
        for index in fresh:
            if buffer is not None:
                buffer.break_off(index)
            if self.model._last_episode_starts is not None:
                self.model._last_episode_starts[index] = True
        return fresh

    def save(self) -> None:
        """Write a checkpoint of the last moment at rest, if it is not yet written.

        Raises:
            RunFailed: when it cannot be written.
        """
        if self._saved_at == self.model.num_timesteps:
            return
        begin = time.monotonic()
        self.checkpoints.save(self._state(), self._buffer)
        self._saved_at = self.model.num_timesteps
        self._scored_at = self.parts["evaluation"].scored_at  # type: ignore[attr-defined]
        now = time.monotonic()
        self.seconds += now - begin
        self._due = now + max(self.interval, (now - begin) / _SHARE if self.interval else 0.0)

    def rescue(self) -> None:
        """After a failure: write what had been reached, if nothing but the environments has moved since."""
        if self._at_rest.get("num_timesteps") == self.model.num_timesteps:
            with suppress(RunFailed):  # the failure is what the user has to know
                self.save()

    def _on_rollout_start(self) -> None:
        buffer = self._buffer
        self._at_rest = {
            "num_timesteps": self.model.num_timesteps,
            "random": random_state(self._spaces, self._generators),
            "latest": None if buffer is None else buffer.latest,
        }
        if self._is_due():
            self.save()
        if self.interruption.requested:
            self.save()
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        if self.interruption.requested and self._whole_rollouts:
            raise KeyboardInterrupt
        return True

    def _is_due(self) -> bool:
        if self._saved_at < 0 or self._whole_rollouts or time.monotonic() >= self._due:
            return True
        if self._scored_at != self.parts["evaluation"].scored_at:  # type: ignore[attr-defined]
            return True
        decision = self.model.n_envs * self._envs.steering.policy.spec.n_action_steps
        return bool(self.steps.env_steps + decision >= self.steps.budget)

    def _state(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "agent": agent_state(self.model),
            "parts": {name: part.state() for name, part in self.parts.items()},
            "buffer": self._buffer_state(),
            "open": self._envs.open.state(),
            "random": self._at_rest["random"],
        }

    def _buffer_state(self) -> dict[str, Any] | None:
        if self._buffer is None:
            return None
        obs, pool = self._at_rest["latest"] or (None, None)
        return {"streams": self._buffer.streams, "obs": obs, "pool": None if pool is None else list(pool)}

    @property
    def _whole_rollouts(self) -> bool:
        return isinstance(self.model, OnPolicyAlgorithm)

    @property
    def _buffer(self) -> SteeringReplayBuffer | None:
        return getattr(self.model, "replay_buffer", None)

    @property
    def _envs(self) -> SteeredVecEnv:
        envs = self.model.env
        assert isinstance(envs, SteeredVecEnv)
        return envs

    @property
    def _spaces(self) -> dict[str, Space[Any]]:
        return {"action": self.model.action_space, "observation": self.model.observation_space}

    @property
    def _generators(self) -> dict[str, torch.Generator]:
        return {"rest": self._envs.steering.rest_generator}


def _pool(state: Mapping[str, Any], device: torch.device) -> tuple[np.ndarray, Pool] | None:
    parts: Sequence[torch.Tensor] | None = state["pool"]
    return None if parts is None else (state["obs"], Pool(*(part.to(device) for part in parts)))
