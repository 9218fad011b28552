"""The layer between chunks and a robot: nothing beyond a limit is executed, and what was executed is learned."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dsrl import commands
from dsrl.config import FinetuneConfig, finetune_config, safety_config, to_dict
from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.evaluate import evaluate, evaluation_envs
from dsrl.evaluate_config import EvaluateConfig
from dsrl.pretrained import save_policy
from dsrl.replay import SteeringReplayBuffer
from dsrl.safety import SafetyConfig, SafetyTally
from dsrl.safety_log import TalliedEnvs
from dsrl.wrappers import SteeredEnv, SteeredVecEnv, SteeredVectorEnv, make_chunk_env, make_vec_env
from dsrl.wrappers.chunk import ActionChunk
from dsrl.wrappers.safety import MOST_EMPTY, Abort, Abortable, SafeChunks, blended, caught_up


class Arm(gym.Env):
    """Remembers what was executed; observes the last action; ends at ``limit`` steps by truncation."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, limit=100, on_step=None):
        self.limit, self.on_step, self.executed = limit, on_step, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.executed = []
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.executed.append(np.array(action))
        if self.on_step is not None:
            self.on_step(len(self.executed))
        return np.asarray(action), 1.0, False, len(self.executed) >= self.limit, {"success": False}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def safe(config, arm=None, steps=4, asked=None):
    arm, clock = arm or Arm(), Clock()
    abort = Abort(config, asked)
    return SafeChunks(ActionChunk(Abortable(arm, abort), steps), config, abort, clock), arm, clock


def rows(*values):
    return np.array([[value, -value] for value in values], np.float32)


def test_actions_are_clipped_and_counted():
    env, arm, _ = safe(SafetyConfig(low=(-0.5, -2.0), high=(0.5, 0.25)))
    assert env.action_space.low[0].tolist() == [-0.5, -1.0] and env.action_space.high[0].tolist() == [0.5, 0.25]
    env.reset()
    _, _, _, _, info = env.step(rows(0.1, 0.9, -0.3, -0.1))
    expected = np.array([[0.1, -0.1], [0.5, -0.9], [-0.3, 0.25], [-0.1, 0.1]], np.float32)
    np.testing.assert_allclose(arm.executed, expected)
    np.testing.assert_allclose(info["executed"], expected)
    assert info["safety"]["limited"] == 2 and info["safety"]["actions"] == 4


def test_a_refused_action_ends_the_episode_before_it():
    env, arm, _ = safe(SafetyConfig(low=(-0.5,), high=(0.5,), on_limit="refuse"))
    assert env.action_space == gym.spaces.Box(-1, 1, (4, 2), np.float32)  # clipping would hide what is refused
    env.reset()
    obs, reward, terminated, truncated, info = env.step(rows(0.1, 0.2, 0.9, 0.1))
    np.testing.assert_allclose(arm.executed, rows(0.1, 0.2))
    assert (reward, terminated, truncated, info["chunk_length"], info["safety"]["refused"]) == (2.0, False, True, 2, 1)
    assert info["is_success"] is False and obs.tolist() == pytest.approx([0.2, -0.2])
    env.reset()
    obs, reward, _, truncated, info = env.step(rows(0.9, 0, 0, 0))
    assert (reward, truncated, info["chunk_length"], arm.executed) == (0.0, True, 0, [])
    assert obs.tolist() == [0, 0]


def test_what_the_environment_clips_anyway_is_not_refused():
    env, arm, _ = safe(SafetyConfig(low=(-1.0,), high=(1.0,), on_limit="refuse"))
    env.reset()
    _, _, _, truncated, info = env.step(rows(0.1, 7, 0.1, 0.1))
    assert not truncated and info["safety"]["limited"] == 1 and info["safety"]["refused"] == 0
    np.testing.assert_allclose(arm.executed, rows(0.1, 1, 0.1, 0.1))


def test_episodes_that_never_begin_are_no_endless_loop():
    env, _, _ = safe(SafetyConfig(high=(0.5,), on_limit="refuse"))
    with pytest.raises(SimulatorFailed, match=r"ended before their first action.*--safety.low"):
        for _ in range(MOST_EMPTY):
            env.reset()
            env.step(rows(0.9, 0, 0, 0))


def test_a_jump_between_chunks_is_bounded_and_inside_a_chunk_is_not():
    env, arm, _ = safe(SafetyConfig(max_jump=(0.25, np.inf)))
    env.reset()
    _, _, _, _, info = env.step(rows(-0.5, 0.5, 0, 0))  # an episode begins wherever the policy likes
    assert info["safety"]["jumps"] == 0
    _, _, _, _, info = env.step(rows(0.8, 0.8, 0.8, 0.8))
    np.testing.assert_allclose(np.array(arm.executed)[4:, 0], [0.25, 0.5, 0.75, 0.8])
    np.testing.assert_allclose(np.array(arm.executed)[4:, 1], -0.8)  # a gripper is free
    assert info["safety"]["jumps"] == 1
    _, _, _, _, info = env.step(rows(0.7, -0.7, 0.7, 0))
    np.testing.assert_allclose(np.array(arm.executed)[8:], rows(0.7, -0.7, 0.7, 0))
    assert info["safety"]["jumps"] == 0


def test_bounds_hold_for_all_chunks():
    """Both ways begin within the bound; catching up never moves further than it; blending keeps the last action."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        chunk, last = generator.uniform(-1, 1, (6, 3)), generator.uniform(-1, 1, 3)
        jump = generator.uniform(0.05, 0.5, 3)
        slow, soft = caught_up(chunk, last, jump), blended(chunk, last, jump)
        assert (np.abs(slow[0] - last) <= jump + 1e-9).all() and (np.abs(soft[0] - last) <= jump + 1e-9).all()
        moved = np.abs(np.diff(np.vstack([last, slow]), axis=0))
        changed = slow != chunk
        assert (moved[changed] <= np.broadcast_to(jump, chunk.shape)[changed] + 1e-9).all()
        assert (np.diff(changed.astype(int), axis=0) <= 0).all()  # once reached, the chunk is played as it is
        shift = soft - chunk
        np.testing.assert_allclose(shift, shift[0] * (1 - np.arange(6) / 6)[:, None], atol=1e-6)
    near = np.full((6, 3), 0.1)
    np.testing.assert_array_equal(caught_up(near, near[0], jump), near)


@pytest.mark.parametrize(
    ("on_late", "expected", "length"),
    [("count", [0.2, 0.3], 2), ("hold", [0.1, 0.1], 2), ("abort", [], 0)],
)
def test_a_late_decision(on_late, expected, length):
    env, arm, clock = safe(SafetyConfig(latency=0.1, on_late=on_late), steps=2)
    env.reset()
    env.step(rows(0, 0.1))
    clock.now += 0.05
    _, _, _, _, info = env.step(rows(0, 0.1))
    assert info["safety"]["late"] == 0 and info["safety"]["latency"] == pytest.approx(0.05)
    clock.now += 0.2
    _, _, _, truncated, info = env.step(rows(0.2, 0.3))
    np.testing.assert_allclose(np.array(arm.executed[4:]).reshape(-1, 2), rows(*expected).reshape(-1, 2))
    assert (truncated, info["chunk_length"], info["safety"]["late"]) == (on_late == "abort", length, 1)
    if expected:
        np.testing.assert_allclose(info["executed"], rows(*expected))


def test_late_at_the_start_there_is_nothing_to_hold():
    env, arm, clock = safe(SafetyConfig(latency=0.1, on_late="hold"), steps=2)
    env.reset()
    clock.now += 9
    env.step(rows(0.2, 0.3))
    np.testing.assert_allclose(arm.executed, rows(0.2, 0.3))


def test_an_abort_keeps_what_was_played_and_the_next_episode_waits(tmp_path, monkeypatch, capsys):
    stop = tmp_path / "stop"
    arm = Arm(on_step=lambda n: stop.touch() if n == 6 else None)
    env, _, _ = safe(SafetyConfig(abort_file=stop), arm)
    env.reset()
    assert not env.step(rows(0, 0, 0, 0))[3]
    _, reward, terminated, truncated, info = env.step(rows(0.1, 0.2, 0.3, 0.4))
    assert (reward, terminated, truncated, info["chunk_length"]) == (2.0, False, True, 2)
    assert info["safety"]["aborted"] == 1 and len(arm.executed) == 6
    waited = []
    monkeypatch.setattr(
        "dsrl.wrappers.safety.time.sleep", lambda s: (waited.append(s), len(waited) > 2 and stop.unlink())
    )
    env.reset()
    assert len(waited) == 3 and "waits" in capsys.readouterr().err and arm.executed == []
    stop.touch()  # while the policy decides
    _, _, _, truncated, info = env.step(rows(0, 0, 0, 0))
    assert (truncated, info["chunk_length"], arm.executed) == (True, 0, [])


def test_a_function_aborts_too_and_a_key_needs_a_terminal(toy_policy, monkeypatch):
    asked = iter([False] * 6 + [True] + [False] * 100)
    env = make_chunk_env(toy_policy.spec.env, toy_policy.spec, abort=lambda: next(asked))
    env.reset(seed=0)
    lengths = [env.step(np.zeros((4, 2)))[4]["chunk_length"] for _ in range(2)]
    assert sum(lengths) < 8
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - closed with the test
    with pytest.raises(DsrlError, match=r"--safety.abort-key reads the terminal.*--safety.abort-file"):
        make_chunk_env(toy_policy.spec.env, toy_policy.spec, safety=SafetyConfig(abort_key=True))


def test_an_action_that_is_not_finite_is_never_executed():
    env, arm, _ = safe(SafetyConfig(high=(0.5,)))
    env.reset()
    with pytest.raises(SimulatorFailed, match="not finite"):
        env.step(rows(np.nan, 0, 0, 0))
    assert arm.executed == []


def test_learners_are_told_what_was_executed_in_every_shell(toy_policy):
    """``info["chunk"]`` is within the limits and the bound, and what was clipped before the robot is counted."""
    limits = SafetyConfig(low=(-0.4,), high=(0.4,), max_jump=(0.1,))
    noise = 3 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).numpy()

    def make():
        return make_chunk_env(toy_policy.spec.env, toy_policy.spec, safety=limits)

    vec = SteeredVecEnv(make_vec_env(toy_policy.spec.env, toy_policy.spec, safety=limits, seed=3), toy_policy)
    vec.reset()
    single, vector = (
        SteeredEnv(make(), toy_policy),
        SteeredVectorEnv(
            gym.vector.SyncVectorEnv([make], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP), toy_policy
        ),
    )
    single.reset(seed=3)
    vector.reset(seed=3)
    last, tally = None, SafetyTally()
    for action in noise:
        info = vec.step(action[None])[3][0]
        tally.add([info])
        chunk = info["chunk"]
        assert np.abs(chunk).max() <= 0.4 + 1e-6 and "executed" not in info
        assert last is None or np.abs(chunk[0] - last).max() <= 0.1 + 1e-6
        last = chunk[info["chunk_length"] - 1]
        np.testing.assert_array_equal(single.step(action)[4]["chunk"], chunk)
        np.testing.assert_array_equal(vector.step(action[None])[4]["chunk"][0], chunk)
    assert tally.counts["limited"] > 0 and tally.counts["jumps"] > 0 and tally.counts["decisions"] == len(noise)


def test_a_decision_that_was_not_begun_is_not_stored():
    buffer = SteeringReplayBuffer(
        10, gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-1, 1, (1,)), "cpu", n_envs=2, gamma=0.5, chunk_dim=1
    )
    column = np.array([[1.0], [2.0]], np.float32)

    def add(lengths, dones):
        infos = [{"chunk_length": n, "chunk": column[i], "TimeLimit.truncated": True} for i, n in enumerate(lengths)]
        buffer.add(column, column, column, np.array([1.0, 1.0]), np.array(dones), infos)

    add([1, 1], [False, False])
    add([0, 1], [True, False])  # the first environment is aborted before its second decision
    add([1, 1], [False, False])
    assert buffer.rows == 5
    # what another episode earns is not credited to the one that was aborted
    assert buffer._columns["earned"][:2].flatten().tolist() == [1.0, 1.75]
    assert buffer._columns["obs"][:5].flatten().tolist() == [1.0, 2.0, 2.0, 1.0, 2.0]


def test_a_run_is_scored_under_its_limits_and_they_are_shown(toy_policy, tmp_path, capsys, monkeypatch):
    path = save_policy(toy_policy, tmp_path / "toy.pt")
    limits = SafetyConfig(low=(-0.2,), high=(0.2,), max_jump=(0.1,))
    with evaluation_envs(toy_policy, n_envs=2, safety=limits) as envs:
        tallied = TalliedEnvs(envs)
        slow = evaluate(toy_policy, tallied, episodes=4, seed=0)
    assert not slow.success.any()  # at a fifth of the speed nothing arrives in time
    assert tallied.tally.counts["limited"] > 0 and tallied.tally.violations > tallied.tally.counts["limited"]
    commands.evaluate(EvaluateConfig(path, episodes=2, device="cpu", safety=limits))
    assert "actions limited" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text("safety: {low: [-0.2], latency: 2}")
    assert commands._safety(EvaluateConfig(tmp_path)) == SafetyConfig(low=(-0.2,), latency=2.0)
    assert commands._safety(EvaluateConfig(tmp_path, safety=limits)) == limits


def test_limits_survive_a_config_file():
    config = FinetuneConfig(safety=SafetyConfig(low=(-1.0,), max_jump=(0.1, float("inf"))))
    assert finetune_config(to_dict(config)) == config
    assert not safety_config({}).active and replace(config.safety, latency=0.1).active


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_jump": (0.0,)}, "--safety.max-jump is"),
        ({"latency": 0.0}, "--safety.latency is 0"),
        ({"low": (float("nan"),)}, "--safety.low is"),
        ({"on_late": "hold"}, "give --safety.latency too"),
        ({"on_limit": "refuse"}, "give --safety.low and --safety.high too"),
    ],
)
def test_limits_that_mean_nothing_are_refused(values, message):
    with pytest.raises(DsrlError, match=message):
        SafetyConfig(**values)


def test_limits_must_fit_the_actions(toy_policy):
    for values, message in (
        ({"low": (0.0, 0.0, 0.0)}, "--safety.low has 3 numbers, the environment's actions have 2"),
        ({"low": (2.0,)}, "leave nothing of the actions of dimension 0"),
    ):
        with pytest.raises(DsrlError, match=message):
            make_vec_env(toy_policy.spec.env, toy_policy.spec, safety=SafetyConfig(**values))
