"""The episodes in progress: what brings an environment back to where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from dsrl.wrappers.seeds import START


@dataclass
class OpenEpisode:
    """An episode that has begun: a deterministic simulator comes to the same point by playing it again."""

    start: Mapping[str, Any] | None = None
    """a seed or the states of generators, see :class:`~dsrl.wrappers.seeds.SeededEpisodes`"""
    first: np.ndarray | None = None
    """observation: where the start is another one, on a robot for one, nothing is played blindly"""
    chunks: list[np.ndarray] = field(default_factory=list)
    """what was executed since, each ``(Ta, Da)``"""


class OpenEpisodes:
    """One for each environment, kept outside of the simulators: they may die."""

    def __init__(self, n_envs: int):
        self.episodes = [OpenEpisode() for _ in range(n_envs)]

    def began(self, obs: np.ndarray, infos: Sequence[Mapping[str, Any] | None]) -> None:
        """All environments were reset."""
        self.episodes = [
            OpenEpisode((info or {}).get(START), first.copy()) for first, info in zip(obs, infos, strict=True)
        ]

    def played(
        self, chunks: np.ndarray, dones: np.ndarray, obs: np.ndarray, infos: Sequence[Mapping[str, Any] | None]
    ) -> None:
        """A decision of every environment; ``infos`` are those of the last resets."""
        for index, (chunk, done) in enumerate(zip(chunks, dones, strict=True)):
            if done:
                self.episodes[index] = OpenEpisode((infos[index] or {}).get(START), obs[index].copy())
            else:
                self.episodes[index].chunks.append(chunk.copy())

    def state(self) -> list[dict[str, Any]]:
        """Plain values and arrays."""
        return [
            {
                "start": episode.start,
                "first": episode.first,
                "chunks": np.stack(episode.chunks) if episode.chunks else None,
            }
            for episode in self.episodes
        ]

    def play_again(self, envs: VecEnv, state: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Bring every environment to where it was; returns the last observations, None where it went otherwise."""
        self.episodes = [OpenEpisode(kept["start"], kept["first"], list(_chunks(kept))) for kept in state]
        return [self._play(envs, index, episode) for index, episode in enumerate(self.episodes)]

    def begin_anew(self, envs: VecEnv, index: int, seed: int) -> Any:
        """Leave the open episode of one environment for another one; returns its first observation."""
        obs, info = envs.env_method("reset", seed=seed, indices=[index])[0]
        self.episodes[index] = OpenEpisode(info.get(START), np.array(obs))
        return obs

    @staticmethod
    def _play(envs: VecEnv, index: int, episode: OpenEpisode) -> Any:
        if episode.start is None or episode.first is None:
            return None
        (seed,) = envs.env_method("set_start", episode.start, indices=[index])
        ((obs, _),) = envs.env_method("reset", seed=seed, indices=[index])
        if not np.array_equal(obs, episode.first):
            return None
        for chunk in episode.chunks:
            ((obs, _, terminated, truncated, _),) = envs.env_method("step", chunk, indices=[index])
            if terminated or truncated:
                return None
        return obs


def _chunks(kept: Mapping[str, Any]) -> Sequence[np.ndarray]:
    return () if kept["chunks"] is None else kept["chunks"]
