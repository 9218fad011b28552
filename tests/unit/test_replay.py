"""What a replay buffer for steering gives back is what was put in, with the right discounts, returns and pools."""

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pools import Pool
from dsrl.pretrained.toy import ToyPolicy
from dsrl.replay import SteeringReplayBuffer
from dsrl.samples import join

POLICY = ToyPolicy()
GAMMA, BOUND, COND, NOISE = 0.9, 1.5, 4, 8
SHAPES = {"obs_dim": COND, "noise_dim": NOISE, "chunk_dim": NOISE}


class Decoder:
    """Draws noises of the prior and decodes them with the toy policy; remembers how many observations it was shown."""

    def __init__(self, pool_size: int):
        self.pool_size, self.shown = pool_size, []

    def __call__(self, obs: Tensor) -> Pool:
        self.shown.append(len(obs))
        actions = torch.randn(len(obs), self.pool_size, NOISE).clamp(-BOUND, BOUND) / BOUND
        return Pool(actions, decode(obs, actions))


def decode(obs: Tensor, actions: Tensor) -> Tensor:
    """``(B, 4), (B, M, 8)`` -> the chunks ``(B, M, 8)``."""
    noise = (BOUND * actions).flatten(0, 1).view(-1, 4, 2)
    chunks = POLICY.decode(obs.repeat_interleave(actions.shape[1], dim=0), noise)
    return chunks.flatten(1).unflatten(0, actions.shape[:2])


def make(capacity: int = 1000, obs_dim: int = COND, noise_dim: int = NOISE, **options) -> SteeringReplayBuffer:
    observed, noise = (spaces.Box(-BOUND, BOUND, (size,), np.float32) for size in (obs_dim, noise_dim))
    buffer = SteeringReplayBuffer(capacity, observed, noise, device="cpu", gamma=GAMMA, **options)
    buffer.decoder = Decoder(buffer.pool_size)
    return buffer


def stream(decisions: int, n_envs: int, seed: int = 0, end_rate: float = 0.2) -> list[dict]:
    """Decisions of several environments whose episodes terminate, are cut off, or go on at the end."""
    rng = np.random.default_rng(seed)
    obs, told = rng.normal(size=(n_envs, COND)).astype(np.float32), []
    for _ in range(decisions):
        after, draw = rng.normal(size=(n_envs, COND)).astype(np.float32), rng.uniform(size=n_envs)
        ended, timeout = draw < end_rate, draw < end_rate / 2
        infos = [
            {"chunk_length": int(rng.integers(1, 5)), "chunk": rng.normal(size=(4, 2)), "TimeLimit.truncated": bool(t)}
            for t in timeout
        ]
        action, reward = rng.uniform(-1, 1, (n_envs, NOISE)), rng.normal(size=n_envs).astype(np.float32)
        told.append({"obs": obs, "next_obs": after, "action": action, "reward": reward, "done": ended, "infos": infos})
        # where an episode has ended, another one begins
        begun = rng.normal(size=(n_envs, COND)).astype(np.float32)
        obs = np.where(ended[:, None], begun, after)
    return told


def fill(buffer: SteeringReplayBuffer, told: Sequence[dict]) -> SteeringReplayBuffer:
    for decision in told:
        buffer.add(**decision)
    return buffer


def rows_of(buffer: SteeringReplayBuffer):
    return buffer.at(torch.arange(buffer.rows), ends=True)


def by_hand(told: Sequence[dict], env: int) -> dict[str, np.ndarray]:
    """Returns, what comes after them, and last observations of one environment, from the end backwards."""
    earned, remaining, end_obs, following = [], [], [], None
    for decision in reversed(told):
        info, ended = decision["infos"][env], decision["done"][env]
        discount = GAMMA ** info["chunk_length"]
        if ended and not info["TimeLimit.truncated"]:
            following = (decision["reward"][env], 0.0, decision["next_obs"][env])
        elif ended or following is None:
            following = (decision["reward"][env], discount, decision["next_obs"][env])
        else:
            following = (decision["reward"][env] + discount * following[0], discount * following[1], following[2])
        for values, value in zip((earned, remaining, end_obs), following, strict=True):
            values.insert(0, value)
    return {"earned": np.array(earned), "remaining": np.array(remaining), "end_obs": np.array(end_obs)}


def test_what_was_played_is_what_is_stored():
    told = stream(12, n_envs=3)
    batch = rows_of(fill(make(chunk_dim=NOISE), told))
    for stored, name in ((batch.observations, "obs"), (batch.next_observations, "next_obs"), (batch.actions, "action")):
        np.testing.assert_allclose(stored.numpy(), np.concatenate([d[name] for d in told]), atol=1e-6)
    chunks = np.concatenate([[info["chunk"].reshape(-1) for info in d["infos"]] for d in told])
    np.testing.assert_allclose(batch.chunks.numpy(), chunks, atol=1e-6)
    assert batch.pool is None and batch.rewards.shape == batch.dones.shape == batch.discounts.shape == (36, 1)


def test_the_bootstrap_is_discounted_by_the_env_steps_that_were_played_or_once_per_chunk_as_published():
    told = stream(20, n_envs=2)
    lengths = torch.tensor([[info["chunk_length"]] for d in told for info in d["infos"]])
    torch.testing.assert_close(rows_of(fill(make(), told)).discounts, GAMMA**lengths)
    published = rows_of(fill(make(discount_per_chunk=True), told)).discounts
    torch.testing.assert_close(published, torch.full((40, 1), GAMMA))


def test_a_time_limit_is_no_termination_unless_it_is_meant_to_be_one():
    told = stream(40, n_envs=2)
    ended = np.concatenate([d["done"] for d in told])
    timeout = np.array([info["TimeLimit.truncated"] for d in told for info in d["infos"]])
    assert (ended & timeout).any() and (ended & ~timeout).any()
    np.testing.assert_array_equal(rows_of(fill(make(), told)).dones[:, 0], ended & ~timeout)
    cut = rows_of(fill(make(time_limit_terminates=True), told))
    np.testing.assert_array_equal(cut.dones[:, 0], ended)
    assert (cut.remaining[torch.from_numpy(ended)] == 0).all()


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_returns_and_ends_are_those_of_a_recursion_from_the_end(n_envs: int, seed: int):
    told = stream(50, n_envs, seed)
    batch = rows_of(fill(make(), told))
    for env in range(n_envs):
        expected = by_hand(told, env)
        np.testing.assert_allclose(batch.earned[env::n_envs, 0], expected["earned"], atol=1e-5)
        np.testing.assert_allclose(batch.remaining[env::n_envs, 0], expected["remaining"], atol=1e-6)
        np.testing.assert_allclose(batch.end_observations[env::n_envs], expected["end_obs"], atol=1e-6)


@pytest.mark.parametrize("end_rate", [0.2, 0.0])
def test_a_full_buffer_overwrites_the_oldest_decisions(end_rate: float):
    """Also within one endless episode: what is left has the returns of what is left."""
    told = stream(31, n_envs=2, end_rate=end_rate)
    buffer = fill(make(capacity=20), told)
    assert buffer.size() == 20
    stored, kept = rows_of(buffer), told[-10:]
    position = {tuple(d["obs"][env]): (index, env) for index, d in enumerate(kept) for env in range(2)}
    expected = [by_hand(kept, env) for env in range(2)]
    seen = set()
    for row in range(20):
        index, env = position[tuple(stored.observations[row].numpy())]
        seen.add((index, env))
        assert stored.earned[row].item() == pytest.approx(expected[env]["earned"][index], abs=1e-5)
        assert stored.remaining[row].item() == pytest.approx(expected[env]["remaining"][index], abs=1e-6)
        np.testing.assert_allclose(stored.end_observations[row], expected[env]["end_obs"][index], atol=1e-6)
    assert len(seen) == 20


def test_it_grows_as_it_fills_and_keeps_what_it_has():
    buffer, count = make(capacity=10**9), 3000
    for part in range(3):
        one = np.full(count, part, np.float32)
        wide = {"obs": np.tile(one[:, None], COND), "next_obs": np.tile(one[:, None], COND)}
        flags = {"terminated": np.ones(count), "length": np.ones(count), "noise_known": np.ones(count)}
        buffer.extend(
            range(count),
            ended=np.ones(count, bool),
            **wide,
            **flags,
            action=np.zeros((count, NOISE)),
            reward=one,
            chunk=np.zeros((count, 0)),
        )
    assert buffer.size() == 9000
    assert torch.equal(rows_of(buffer).rewards[:, 0], torch.arange(3.0).repeat_interleave(count))


def test_every_stored_observation_carries_noises_that_were_decoded_for_it():
    batch = rows_of(fill(make(chunk_dim=NOISE, pool_size=5), stream(30, n_envs=3)))
    assert batch.pool.actions.shape == (90, 5, NOISE)
    for obs, pool in (
        (batch.observations, batch.pool),
        (batch.next_observations, batch.next_pool),
        (batch.end_observations, batch.end_pool),
    ):
        torch.testing.assert_close(pool.chunks, decode(obs, pool.actions))


def test_a_pool_serves_as_the_next_one_and_then_as_the_current_one():
    told = stream(30, n_envs=3)
    buffer = make(pool_size=2)
    fill(buffer, told)
    batch = rows_of(buffer)
    for before, after in zip(range(29), range(1, 30), strict=True):
        for env in range(3):
            same = torch.equal(batch.next_pool.actions[3 * before + env], batch.pool.actions[3 * after + env])
            assert same != told[before]["done"][env]
    # every decision decodes its 3 next observations, and at first those that it starts from; else only fresh ones
    fresh = [int(d["done"].sum()) for d in told[:-1] if d["done"].any()]
    assert sorted(buffer.decoder.shown) == sorted([3] * 31 + fresh)


def test_the_pool_that_was_looked_at_is_the_pool_that_is_stored():
    buffer, told = make(pool_size=4), stream(2, n_envs=2)
    fill(buffer, told[:1])
    looked_at = buffer.pool_for(told[1]["obs"])
    fill(buffer, told[1:])
    assert torch.equal(rows_of(buffer).pool.actions[2:], looked_at.actions)


def test_a_refresh_draws_and_decodes_anew():
    buffer = fill(make(pool_size=3), stream(20, n_envs=2))
    before, untouched = rows_of(buffer), make(pool_size=3)
    buffer.refresh(500)
    after = rows_of(buffer)
    assert (after.pool.actions != before.pool.actions).any(dim=2).all()
    for obs, pool in ((after.observations, after.pool), (after.next_observations, after.next_pool)):
        torch.testing.assert_close(pool.chunks, decode(obs, pool.actions))
    buffer.refresh(4)
    moved = (rows_of(buffer).pool.actions != after.pool.actions).flatten(1).any(dim=1)
    assert 1 <= moved.sum() <= 4
    untouched.refresh(10)  # nothing is there yet


def demonstrate(buffer: SteeringReplayBuffer, reward: float) -> None:
    row = {name: np.ones((1, size)) for name, size in (("obs", COND), ("next_obs", COND), ("action", NOISE))}
    flags = {"terminated": np.zeros(1), "length": np.ones(1), "noise_known": np.zeros(1)}
    chunk = np.ones((1, buffer.chunk_dim))
    buffer.extend([7], ended=np.zeros(1, bool), **row, **flags, reward=np.array([reward]), chunk=chunk)


def test_noise_that_is_not_known_is_only_given_to_those_who_ask_for_it():
    buffer = make()
    demonstrate(buffer, 99.0)
    with pytest.raises(DsrlError, match="no transition whose noise is known"):
        buffer.sample(4)
    fill(buffer, stream(5, n_envs=1))
    demonstrate(buffer, 99.0)
    assert (buffer.sample(200).rewards < 50).all()
    shown = buffer.sample(200, unknown_noise=True).rewards
    assert (shown == 99).any() and (shown < 50).any()
    with pytest.raises(DsrlError, match="no transition"):
        make().sample(1)


def test_two_batches_become_one():
    buffer = fill(make(chunk_dim=NOISE, pool_size=2), stream(10, n_envs=1))
    halves = [buffer.at(torch.arange(start, start + 5), ends=True) for start in (0, 5)]
    whole, joined = rows_of(buffer), join(*halves)
    for one, other in zip(whole, joined, strict=True):
        for a, b in zip(*((v if isinstance(v, Pool) else (v,)) for v in (one, other)), strict=True):
            assert torch.equal(a, b)


def test_a_buffer_is_saved_without_what_decodes():
    buffer = fill(make(pool_size=2), stream(10, n_envs=2))
    loaded = pickle.loads(pickle.dumps(buffer))
    assert loaded.decoder is None and buffer.decoder is not None
    assert torch.equal(rows_of(loaded).pool.chunks, rows_of(buffer).pool.chunks)
    told = stream(11, n_envs=2)[10:]
    with pytest.raises(DsrlError, match="has no decoder; give the agent its environment"):
        fill(loaded, told)
    loaded.decoder = Decoder(2)
    assert fill(loaded, told).size() == 22


@pytest.mark.parametrize(
    ("other", "word"),
    [({"obs_dim": 5}, "observations"), ({"noise_dim": 6}, "noises"), ({"chunk_dim": 6}, "chunks"), ({}, "pools")],
)
def test_a_buffer_of_another_shape_does_not_fit(other: dict, word: str):
    mine = make(**SHAPES, pool_size=2)
    mine.fits(make(**SHAPES, pool_size=2))
    theirs = make(**{**SHAPES, **other}, pool_size=2 if other else 3)
    with pytest.raises(DsrlError, match=f"has {word} of .* it belongs to another run"):
        mine.fits(theirs)
