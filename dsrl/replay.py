"""Replay for steering: one buffer for SAC, for noise-aliased SAC and for demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from dsrl import credit
from dsrl.errors import DsrlError
from dsrl.pools import Pool, named
from dsrl.samples import SteeringSamples

_BOOKKEEPING = ("discount", "stream", "ended")
"""columns that no learner reads"""


class SteeringReplayBuffer(ReplayBuffer):
    """Keeps noise, executed chunk, true next observation, number of env steps, and whether the noise is known.

    The columns are tensors on the agent's device; they grow as they fill, so a large ``buffer_size`` costs nothing by
    itself. With a ``pool_size`` every stored observation carries noises that were decoded once, when it was recorded.

    Args:
        gamma: discount per env step.
        chunk_dim: ``Ta * Da``; 0 keeps no chunks (an environment that does not report them).
        pool_size: noises per observation; needs a :attr:`decoder`.
        discount_per_chunk: one discount per decision however many env steps it took, as published.
        time_limit_terminates: no value after a time limit, as in the public code of the paper.
    """

    _GROW_FROM = 4096

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        gamma: float = 0.99,
        chunk_dim: int = 0,
        pool_size: int = 0,
        discount_per_chunk: bool = False,
        time_limit_terminates: bool = False,
    ):
        # the parent's columns are not used: one row is enough for them
        super().__init__(n_envs, observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is not supported: next observations are the true last ones")
        self.capacity = buffer_size
        self.gamma, self.pool_size, self.chunk_dim = gamma, pool_size, chunk_dim
        self.discount_per_chunk, self.time_limit_terminates = discount_per_chunk, time_limit_terminates
        self.decoder: Callable[[Tensor], Pool] | None = None
        """encoded observations ``(B, C)`` -> noises drawn for each of them, decoded: a :class:`~dsrl.pools.Decoder`"""
        self.rows = 0
        """transitions stored"""
        self.written = 0
        """transitions ever stored, also those that were overwritten"""
        self.streams: list[int] = []
        """which sequence of decisions each environment continues"""
        self._columns: dict[str, Tensor] = {}
        self._known: Tensor | None = None
        self._latest: tuple[np.ndarray, Pool] | None = None
        self._episodes: dict[int, list[int]] = {}

    # -- writing --------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one decision of every environment; one that was refused before it began teaches nothing."""
        timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        chunks = np.zeros((len(infos), 0))
        if self.chunk_dim:
            chunks = np.stack([np.asarray(info["chunk"]).reshape(-1) for info in infos])
        pools = None
        if self.pool_size:
            pools = (self.pool_for(obs), self._decode(self._tensor(next_obs)))
            self._latest = (next_obs.copy(), pools[1])
        columns = {
            "ended": done,
            "obs": obs,
            "next_obs": next_obs,
            "action": np.asarray(action).reshape(len(infos), -1),
            "reward": reward,
            "terminated": done if self.time_limit_terminates else done & ~timeouts,
            "length": np.array([info.get("chunk_length", 1) for info in infos]),
            "chunk": chunks,
            "noise_known": np.ones(len(infos)),
        }
        if len(self.streams) != len(infos):
            self.streams = list(range(len(infos)))
        begun = columns["length"] > 0
        streams = [self.streams[env] for env in np.flatnonzero(begun)]
        if not begun.all():
            for env in np.flatnonzero(~begun & np.asarray(done, bool)):
                self.break_off(int(env))
            columns = {name: values[begun] for name, values in columns.items()}
            rows = torch.as_tensor(begun, device=self.device)
            pools = None if pools is None else (pools[0].of(rows), pools[1].of(rows))
        if begun.any():
            self.extend(streams, pools, **columns)

    def extend(
        self, streams: Sequence[int], pools: tuple[Pool, Pool] | None = None, *, ended: np.ndarray, **columns: Any
    ) -> None:
        """Store one decision of every stream: ``obs next_obs action reward terminated length chunk noise_known``.

        Demonstrations come this way, decision after decision on a stream of their own, with ``noise_known`` zero. What
        does not fit overwrites the oldest rows.

        Args:
            streams: which sequence of decisions each row continues; ``0 .. n_envs - 1`` are the environments.
            pools: of ``obs`` and ``next_obs``; left out, they are decoded here.
            ended: whether the episode ended with this decision, by termination or by a time limit.
            columns: arrays with one row per stream.
        """
        new = {name: self._tensor(values) for name, values in columns.items()}
        if self.pool_size:
            new |= named(pools or (self._decode(new["obs"]), self._decode(new["next_obs"])))
        new["discount"] = (1 - new["terminated"]) * self._discounts(new["length"])
        new |= {"stream": self._tensor(streams), "ended": self._tensor(ended)}
        new |= credit.fresh(new)
        count = len(streams)
        self._reserve(self.rows + count, new)
        rows = [(self.written + i) % self.capacity for i in range(count)]
        where = torch.tensor(rows, device=self.device)
        for name, values in new.items():
            self._columns[name][where] = values
        self._account(rows, streams, ended)
        self.written += count
        self.rows = min(self.written, self.capacity)
        self._known = None

    def _account(self, rows: Sequence[int], streams: Sequence[int], ended: np.ndarray) -> None:
        """Credit what was earned now to all earlier decisions of the same episodes."""
        overwritten, earlier, now = set(rows), [], []
        for episode in self._episodes.values():
            while episode and episode[0] in overwritten:  # longer than the buffer: its first decisions are gone
                episode.pop(0)
        for row, stream, end in zip(rows, streams, ended, strict=True):
            episode = self._episodes.setdefault(stream, [])
            earlier += episode
            now += [row] * len(episode)
            self._columns["last"][row] = row
            self._episodes[stream] = [] if end else [*episode, row]
        if not earlier:
            return
        before, after = (torch.tensor(index, device=self.device) for index in (earlier, now))
        credit.spread(self._columns, before, after)

    def pool_for(self, obs: np.ndarray) -> Pool:
        """The pools of the current observations ``(n_envs, C)``; they will be stored with them."""
        if self._latest is None or self._latest[0].shape != obs.shape:
            pool = self._decode(self._tensor(obs))
        else:
            before, pool = self._latest
            fresh = (before != obs).any(axis=1)  # an episode has ended there, and another one begun
            if fresh.any():
                rows = torch.as_tensor(fresh.nonzero()[0], device=self.device)
                decoded = self._decode(self._tensor(obs[fresh]))
                pool = Pool(*(old.index_copy(0, rows, new) for old, new in zip(pool, decoded, strict=True)))
        self._latest = (obs.copy(), pool)
        return pool

    def refresh(self, count: int) -> None:
        """Draw and decode the pools of ``count`` random rows anew."""
        if not self.rows or not count:
            return
        # no row twice: its noises and its chunks would be those of different draws
        rows = torch.randint(self.rows, (count,), device=self.device).unique()
        pools = (self._decode(self._columns["obs"][rows]), self._decode(self._columns["next_obs"][rows]))
        for name, values in named(pools).items():
            self._columns[name][rows] = values

    # -- keeping ----------------------------------------------------------------------------------------------------

    def record(self, first: int, last: int) -> dict[str, Tensor]:
        """What was stored as number ``first`` to ``last - 1`` since the beginning, as far as it is still here."""
        where = torch.arange(first, last, device=self.device) % self.capacity
        return {name: v[where] for name, v in self._columns.items() if name not in credit.COLUMNS}

    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row of a record."""
        obs, action = (self.obs_shape[0],), (self.action_dim,)
        shapes: dict[str, tuple[int, ...]] = {"obs": obs, "next_obs": obs, "action": action, "chunk": (self.chunk_dim,)}
        shapes |= dict.fromkeys(("reward", "terminated", "length", "noise_known", *_BOOKKEEPING), ())
        if self.pool_size:
            for pool in ("pool", "next_pool"):
                shapes[f"{pool}_actions"] = (self.pool_size, self.action_dim)
                shapes[f"{pool}_chunks"] = (self.pool_size, self.chunk_dim)
        return dict(sorted(shapes.items()))

    def restore(self, written: int, records: Iterable[Mapping[str, Tensor]]) -> None:
        """Become the buffer that :meth:`record` was called on: ``written``, and the records that are left, in order."""
        kept = min(written, self.capacity)
        self._columns, self._episodes, self._known, self._latest = {}, {}, None, None
        at = written - kept
        for part in records:
            new = {name: values.to(self.device) for name, values in part.items()}
            new |= credit.fresh(new)
            self._reserve(kept, new)
            where = torch.arange(at, at + len(new["reward"]), device=self.device) % self.capacity
            for name, values in new.items():
                self._columns[name][where] = values
            at += len(where)
        self.written, self.rows = written, kept
        if kept:
            order = torch.arange(written - kept, written, device=self.device) % self.capacity
            self._episodes = credit.spread_anew(self._columns, order)

    @property
    def latest(self) -> tuple[np.ndarray, Pool] | None:
        """The current observations and their pools, which will be stored with the coming decision."""
        return self._latest

    @latest.setter
    def latest(self, value: tuple[np.ndarray, Pool] | None) -> None:
        self._latest = value

    def break_off(self, env: int) -> None:
        """What comes next in this environment does not continue what came before."""
        before, self.streams[env] = self.streams[env], 1 + max([*self.streams, *self._episodes])
        self._episodes.pop(before, None)

    # -- reading --------------------------------------------------------------------------------------------------

    def size(self) -> int:
        """Transitions stored."""
        return self.rows

    def sample(  # type: ignore[override]  # the fields of ReplayBufferSamples, and more
        self, batch_size: int, env: VecNormalize | None = None, *, unknown_noise: bool = False, ends: bool = False
    ) -> SteeringSamples:
        """Draw transitions; only those whose noise is known, unless told otherwise; ``ends`` adds their episodes' ends.

        Raises:
            DsrlError: when there is none.
        """
        if unknown_noise:
            rows = torch.randint(self.rows, (batch_size,), device=self.device)
        else:
            if self._known is None:
                self._known = self._columns["noise_known"][: self.rows].nonzero().squeeze(1) if self.rows else None
            if self._known is None or not len(self._known):
                raise DsrlError("the replay buffer holds no transition whose noise is known; play some decisions first")
            rows = self._known[torch.randint(len(self._known), (batch_size,), device=self.device)]
        return self.at(rows, env, ends=ends)

    def at(self, rows: Tensor, env: VecNormalize | None = None, *, ends: bool = False) -> SteeringSamples:
        """These transitions."""
        column = {name: v.index_select(0, rows) for name, v in self._columns.items() if name not in _BOOKKEEPING}
        at_end: dict[str, Tensor] = {}
        if ends:
            last = column["last"].long()
            at_end = {name: v.index_select(0, last) for name, v in self._columns.items() if name.startswith("next_")}
        obs, next_obs, reward = column["obs"], column["next_obs"], column["reward"]
        end_obs = at_end.get("next_obs")
        if env is not None:
            obs, next_obs = (self._normal(env.normalize_obs, values) for values in (obs, next_obs))
            reward = self._normal(env.normalize_reward, reward)
            end_obs = None if end_obs is None else self._normal(env.normalize_obs, end_obs)
        return SteeringSamples(
            observations=obs,
            actions=column["action"],
            next_observations=next_obs,
            dones=column["terminated"][:, None],
            rewards=reward[:, None],
            discounts=self._discounts(column["length"])[:, None],
            chunks=column["chunk"],
            pool=self._pool_of(column, "pool"),
            next_pool=self._pool_of(column, "next_pool"),
            earned=column["earned"][:, None],
            remaining=column["remaining"][:, None],
            end_observations=end_obs,
            end_pool=self._pool_of(at_end, "next_pool") if ends else None,
        )

    def fits(self, other: SteeringReplayBuffer) -> None:
        """Check that a buffer read from a file can stand in for this one.

        Raises:
            DsrlError: when a shape differs.
        """
        for name, words in (
            ("obs_shape", "observations"),
            ("action_dim", "noises"),
            ("chunk_dim", "chunks"),
            ("pool_size", "pools"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise DsrlError(
                    f"this replay buffer has {words} of {theirs}, the agent needs {mine}; it belongs to another run"
                )

    # -- inside ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoder, which holds the frozen policy."""
        return {**self.__dict__, "decoder": None, "_latest": None}

    def _reserve(self, rows: int, like: Mapping[str, Tensor]) -> None:
        have = len(self._columns["obs"]) if self._columns else 0
        if have >= min(rows, self.capacity):
            return
        length = min(max(2 * have, rows, self._GROW_FROM), self.capacity)
        for name, values in like.items():
            grown = torch.zeros(length, *values.shape[1:], device=self.device)
            if have:
                grown[:have] = self._columns[name]
            self._columns[name] = grown

    def _decode(self, obs: Tensor) -> Pool:
        if self.decoder is None:
            raise DsrlError("the replay buffer keeps pools but has no decoder; give the agent its environment first")
        return self.decoder(obs)

    def _discounts(self, lengths: Tensor) -> Tensor:
        return self.gamma ** (torch.ones_like(lengths) if self.discount_per_chunk else lengths)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32).to(self.device)

    def _pool_of(self, column: Mapping[str, Tensor], name: str) -> Pool | None:
        return Pool(column[f"{name}_actions"], column[f"{name}_chunks"]) if self.pool_size else None

    def _normal(self, normalize: Callable[[Any], Any], values: Tensor) -> Tensor:
        return torch.as_tensor(normalize(values.cpu().numpy()), dtype=torch.float32, device=self.device)
