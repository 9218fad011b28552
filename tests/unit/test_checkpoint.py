"""A checkpoint comes back as it went in, or is known to be damaged."""

import json
import random
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dsrl.checkpoint import Checkpoints
from dsrl.errors import DsrlError, RunFailed
from dsrl.interruption import Interruption
from dsrl.pilots import BASE, Pilots
from dsrl.pools import Pool
from dsrl.random_state import random_state, restore_random_state
from dsrl.replay import SteeringReplayBuffer
from dsrl.replay_log import ReplayLog
from dsrl.resume import differences
from dsrl.run_lock import LOCK, locked
from dsrl.tree_file import from_bytes, to_bytes
from dsrl.wrappers.seeds import START, SeededEpisodes
from dsrl.wrappers.toy import PointReach


def test_a_tree_comes_back_as_it_went_in():
    tree = {
        "numbers": [1, 2.5, 2**100, True, None, "word", float("-inf")],
        "tensors": {"a": torch.randn(3, 2), "b": torch.tensor([True, False]), "bytes": torch.get_rng_state()},
        "arrays": [np.arange(4, dtype=np.uint32), np.zeros((0, 3), np.float32), np.float64(0.1)],
        "tuple": (1, (2, 3)),
    }
    back = from_bytes(to_bytes(tree))
    assert back["numbers"] == tree["numbers"] and back["tuple"] == [1, [2, 3]]
    for name, tensor in tree["tensors"].items():
        assert back["tensors"][name].dtype == tensor.dtype and torch.equal(back["tensors"][name], tensor)
    for array, original in zip(back["arrays"][:2], tree["arrays"][:2], strict=True):
        assert array.dtype == original.dtype and array.shape == original.shape and (array == original).all()
    assert back["arrays"][2] == 0.1


def test_a_tree_takes_plain_values_only():
    with pytest.raises(TypeError, match="Random cannot be written"):
        to_bytes({"object": random.Random()})
    with pytest.raises(TypeError, match="a key is 3"):
        to_bytes({"inner": {3: 1}})


def test_all_generators_go_on_as_if_nothing_had_happened():
    space, generator = spaces.Box(-1, 1, (3,), seed=5), torch.Generator().manual_seed(7)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)

    def draw():
        numbers = [random.gauss(0, 1), np.random.standard_normal(), torch.randn(3).tolist(), random.random()]
        return [*numbers, space.sample().tolist(), torch.randn(2, generator=generator).tolist()]

    draw()
    state = from_bytes(to_bytes(random_state({"space": space}, {"rest": generator})))
    expected = [draw(), draw()]
    restore_random_state(state, {"space": space}, {"rest": generator})
    assert [draw(), draw()] == expected


def buffer_of(capacity: int, n_envs: int = 2, pool_size: int = 2) -> SteeringReplayBuffer:
    box = spaces.Box(-1, 1, (3,), np.float32)
    buffer = SteeringReplayBuffer(
        capacity, box, spaces.Box(-1, 1, (4,), np.float32), "cpu", n_envs, gamma=0.9, chunk_dim=5, pool_size=pool_size
    )
    generator = torch.Generator().manual_seed(0)
    buffer.decoder = lambda obs: Pool(
        torch.randn(len(obs), pool_size, 4, generator=generator),
        torch.randn(len(obs), pool_size, 5, generator=generator),
    )
    return buffer


def play(buffer: SteeringReplayBuffer, decisions: int, rng: np.random.Generator, n_envs: int = 2) -> None:
    """Episodes of random lengths, of which some terminate."""
    for _ in range(decisions):
        done = rng.random(n_envs) < 0.2
        infos = [
            {"TimeLimit.truncated": bool(end and rng.random() < 0.5), "chunk_length": int(rng.integers(1, 5))}
            | {"chunk": rng.standard_normal(5)}
            for end in done
        ]
        obs, after = rng.standard_normal((2, n_envs, 3)).astype(np.float32)
        buffer.add(obs, after, rng.standard_normal((n_envs, 4)), rng.standard_normal(n_envs), done, infos)


def everything(buffer: SteeringReplayBuffer) -> list[torch.Tensor]:
    batch = buffer.at(torch.arange(buffer.rows), ends=True)
    fields = [part for field in batch if field is not None for part in (field if isinstance(field, Pool) else [field])]
    return [*fields, buffer.record(buffer.written - buffer.rows, buffer.written)["stream"]]


@pytest.mark.parametrize(("capacity", "decisions"), [(1000, 60), (50, 60), (40, 20), (10, 25)])
def test_a_buffer_comes_back_to_the_bit_and_goes_on_alike(tmp_path, capacity, decisions):
    """Also one that has overwritten its oldest rows, and one that is smaller than an episode."""
    original, rng = buffer_of(capacity), np.random.default_rng(capacity)
    log = ReplayLog(tmp_path, rows_per_file=16)
    for part in (decisions // 3, 0, decisions // 3, decisions - 2 * (decisions // 3)):
        play(original, part, rng)
        state = log.append(original)
        log.forget(original.written - original.rows)
    restored = buffer_of(capacity)
    again = ReplayLog(tmp_path, rows_per_file=16)
    again.check(json.loads(json.dumps(state)))
    again.restore(state, restored)
    restored.latest = original.latest
    assert (restored.rows, restored.written) == (original.rows, original.written)
    for mine, theirs in zip(everything(restored), everything(original), strict=True):
        assert torch.equal(mine, theirs)
    for buffer in (original, restored):
        buffer.decoder = buffer_of(1).decoder  # the same draws
        play(buffer, 15, np.random.default_rng(3))
    for mine, theirs in zip(everything(restored), everything(original), strict=True):
        assert torch.equal(mine, theirs)


def test_a_log_grows_with_what_is_new_and_drops_what_was_overwritten(tmp_path):
    buffer, rng = buffer_of(100), np.random.default_rng(0)
    log, sizes = ReplayLog(tmp_path, rows_per_file=32), []
    for _ in range(10):
        play(buffer, 20, rng)
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
        log.append(buffer)
        for path, (content, _) in before.items():
            assert path.read_bytes().startswith(content), "what was written is not rewritten"
        log.forget(buffer.written - buffer.rows)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) <= sizes[2] * 1.4
    assert len(list(tmp_path.iterdir())) <= 5


def test_what_a_kill_left_behind_a_checkpoint_is_written_over(tmp_path):
    buffer, rng = buffer_of(1000), np.random.default_rng(0)
    log = ReplayLog(tmp_path)
    play(buffer, 5, rng)
    state = log.append(buffer)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"half a row")
    restored, again = buffer_of(1000), ReplayLog(tmp_path)
    again.check(state)
    again.restore(state, restored)
    play(restored, 5, rng)
    last = again.append(restored)
    again.check(last)
    assert last["files"][0][1] == 20


def test_a_log_of_another_agent_or_a_damaged_one_is_refused(tmp_path):
    buffer = buffer_of(100)
    play(buffer, 5, np.random.default_rng(0))
    log = ReplayLog(tmp_path)
    state = log.append(buffer)
    with pytest.raises(DsrlError, match="'next_pool_actions' has the shape"):
        ReplayLog(tmp_path).restore(state, buffer_of(100, pool_size=3))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DsrlError, match=r"\.rows is damaged"):
        log.check(state)
    path.write_bytes(content[:-40])
    with pytest.raises(DsrlError, match="bytes, the checkpoint needs"):
        log.check(state)
    path.unlink()
    with pytest.raises(DsrlError, match=r"\.rows is missing"):
        log.check(state)


def test_what_follows_a_break_is_another_episode():
    buffer, rng = buffer_of(100), np.random.default_rng(0)
    steps = {"obs": np.zeros((2, 3), np.float32), "next_obs": np.zeros((2, 3), np.float32)}
    infos = [{"chunk": np.zeros(5), "chunk_length": 1}] * 2
    for reward in (1.0, 2.0, 4.0):
        buffer.add(*steps.values(), rng.standard_normal((2, 4)), np.full(2, reward), np.zeros(2, bool), infos)
        if reward == 2.0:
            buffer.break_off(1)
    earned = buffer.at(torch.arange(6)).earned.squeeze(1)
    assert torch.allclose(earned[0], torch.tensor(1 + 0.9 * 2 + 0.81 * 4)) and torch.allclose(
        earned[1], torch.tensor(1 + 0.9 * 2)
    )
    assert earned[5] == 4.0


def test_the_newest_sound_checkpoint_is_taken_and_damage_is_said(run_folder):
    checkpoints, buffer, said = Checkpoints(run_folder), buffer_of(100), []
    assert checkpoints.newest(said.append) is None and not said
    for number in range(4):
        play(buffer, 3, np.random.default_rng(number))
        checkpoints.save({"number": number}, buffer)
    assert len(checkpoints.paths()) == 2
    assert Checkpoints(run_folder).newest(said.append)["state"] == {"number": 3} and not said
    _, newest = checkpoints.paths()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = Checkpoints(run_folder)
    found = again.newest(said.append)
    assert found["state"] == {"number": 2} and len(said) == 1
    assert "is damaged" in said[0] and "the checkpoint before it is used" in said[0]
    restored = buffer_of(100)
    again.restore_buffer(found, restored)
    assert restored.written == 18
    again.save({"number": 9}, restored)
    assert again.newest(said.append)["state"] == {"number": 9} and newest not in again.paths()
    for path in again.paths():
        path.write_bytes(b"")
    with pytest.raises(DsrlError, match="all of them are damaged"):
        again.newest(said.append)


def test_a_checkpoint_of_a_newer_version_is_not_called_damaged(run_folder, monkeypatch):
    monkeypatch.setattr("dsrl.checkpoint.FORMAT", 2)
    Checkpoints(run_folder).save({}, None)
    monkeypatch.undo()
    with pytest.raises(DsrlError, match="has format 2, this dsrl reads up to 1; install a newer dsrl"):
        Checkpoints(run_folder).newest(print)


def test_a_checkpoint_whose_table_was_cut_is_not_sound(run_folder):
    run_folder.append_metrics({"step": 1.0})
    checkpoints, said = Checkpoints(run_folder), []
    checkpoints.save({"number": 0}, None)
    run_folder.append_metrics({"step": 2.0, "late": 1.0})
    checkpoints.save({"number": 1}, None)
    found = checkpoints.newest(said.append)
    run_folder.keep_rows({**found["rows"], "metrics": {"rows": 1, "columns": ["step"]}})
    assert run_folder.metrics_path.read_text() == "step\n1.0\n"
    assert checkpoints.newest(said.append)["state"]["number"] == 0 and "had 2 rows, now it has 1" in said[0]


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(DsrlError, match=r"run is being written by process \d+ on \S+ since"), locked(folder):
            pass
        (folder / "config.yaml").write_text("")
    assert not (folder / LOCK).exists()
    with locked(folder):
        pass
    with locked(tmp_path / "nothing-written"):
        pass
    assert not (tmp_path / "nothing-written").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="could not be written"), locked(tmp_path / "file"):
        pass


def test_the_first_interruption_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested and not interruption.insisted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.insisted
    assert signal.getsignal(signal.SIGTERM) is before


def test_pilots_go_on_where_they_were():
    rng, one = np.random.default_rng(0), Pilots()
    for step in range(60):
        one.start(3, warming_up=step < 10)
        one.landed(step % 3, float(rng.random() < 0.5))
    other = Pilots()
    other.restore(from_bytes(to_bytes(one.state())))
    for pilots in (one, other):
        rng = np.random.default_rng(1)
        for step in range(40):
            pilots.start(3, warming_up=False)
            pilots.landed(step % 3, float(rng.random() < 0.5))
    assert one.state() == other.state()
    assert {name: flown.maxlen for name, flown in one.results.items()} == {
        name: flown.maxlen for name, flown in other.results.items()
    }
    assert other.results[BASE].maxlen is None


def test_what_has_changed_is_said_with_both_values():
    before = {"--na.tau": 0.005, "package torch": "2.8.0", "device": "cuda", "gone": 1}
    now = {"--na.tau": 0.01, "package torch": "2.8.0", "device": "cpu"}
    assert differences(before, now) == ["--na.tau was 0.005, is 0.01", "device was cuda, is cpu", "gone was 1, is None"]


class Noisy(gymnasium.Wrapper):
    """Draws in every step too."""

    def step(self, action):
        obs, *rest = self.env.step(action)
        return (obs + self.env.unwrapped.np_random.normal(size=4), *rest)


@pytest.mark.parametrize("wrap", [lambda env: env, Noisy])
def test_an_episode_begins_again_in_another_process(wrap):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2))

    def rest_of(env):
        seen = [env.step(action)[0] for action in actions]
        return np.stack([*seen, env.reset()[0], env.step(actions[0])[0]])  # the next episode too

    for seed in (None, 8):
        original = SeededEpisodes(wrap(PointReach()))
        original.reset(seed=3)
        start = original.reset(seed=seed)[1][START]
        fresh = SeededEpisodes(wrap(PointReach()))
        fresh.reset(seed=fresh.set_start(json.loads(json.dumps(start))))
        np.testing.assert_array_equal(rest_of(fresh), rest_of(original))
