"""Demonstrations become the decisions that the policy would have taken, under the reward that is trained on."""

from dataclasses import replace
from io import StringIO

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console

from dsrl.data import Trajectories, Trajectory, read_hdf5, write_hdf5
from dsrl.demos import STREAM, decisions, fill, read_demos, replay_check
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec, concat_obs
from dsrl.pools import Pool
from dsrl.replay import SteeringReplayBuffer
from dsrl.wrappers import SteeredVecEnv, make_env, make_vec_env, resolve_env_spec, toy

GAMMA = 0.9
TA, TO = 3, 2
TOY = EnvSpec("gymnasium", toy.ENV_ID)
SIMULATOR = EnvSpec("metaworld", "reach-v3")  # success does not end its episodes


class Transparent:
    """A policy whose encoding is the history and whose chunk is its noise."""

    def __init__(self, keys=None, n_obs_steps=TO):
        self.spec = PolicySpec(keys or {"state": (4,)}, 2, TA, TA, n_obs_steps)
        self.device = torch.device("cpu")
        self.cond_dim = n_obs_steps * self.spec.obs_dim

    def encode(self, obs):
        return concat_obs(obs, self.spec).flatten(1)

    def decode(self, cond, noise):
        return noise


class Endless(gymnasium.Wrapper):
    """Arriving does not end the episode, as in the simulators."""

    def step(self, action):
        obs, reward, _, truncated, info = self.env.step(action)
        return obs, reward, False, truncated, info


def make_toy(endless):
    toy.register()
    env = gymnasium.make(toy.ENV_ID)
    return Endless(env) if endless else env


def made_up(rewards, terminated=None, env=SIMULATOR, **fields):
    """Action ``t`` is ``(t, -t)``, observation ``t`` is ``(t, t, t, t)``."""
    steps = np.arange(len(rewards) + 1, dtype=np.float32)
    states = np.stack([steps] * 4, 1)
    episode = Trajectory(
        obs={"state": states[:-1]},
        next_obs={"state": states[1:]},
        actions=np.stack([steps[:-1], -steps[:-1]], 1),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(np.zeros(len(rewards)) if terminated is None else terminated, bool),
        **{"success": max(rewards) >= 1, **fields},
    )
    return Trajectories((episode,), {"state": (4,)}, env)


def column(cut, name):
    return np.concatenate([decision[name] for decision in cut])


def test_a_decision_holds_the_actions_and_the_history_of_its_time():
    cut = decisions(made_up([0] * 7), Transparent(), GAMMA, "success")
    assert column(cut, "length").tolist() == [3, 3, 1]
    np.testing.assert_array_equal(cut[1]["chunk"], [[3, -3, 4, -4, 5, -5]])
    np.testing.assert_array_equal(cut[2]["chunk"], [[6, -6, 6, -6, 6, -6]])  # the last action is repeated
    assert [obs[::4].tolist() for obs in column(cut, "obs")] == [[0, 0], [2, 3], [5, 6]]
    assert [obs[::4].tolist() for obs in column(cut, "next_obs")] == [[2, 3], [5, 6], [6, 7]]
    assert column(cut, "ended").tolist() == [False, False, True]
    assert not column(cut, "terminated").any() and not column(cut, "noise_known").any()
    assert all(len(value) == 1 for decision in cut for value in decision.values())


def test_success_ends_the_episode_inside_a_chunk():
    data = made_up([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    cut = decisions(data, Transparent(), GAMMA, "success")
    assert column(cut, "length").tolist() == [3, 2] and column(cut, "terminated").tolist() == [False, True]
    np.testing.assert_allclose(column(cut, "reward"), [0.0, GAMMA])
    np.testing.assert_array_equal(cut[1]["chunk"], [[3, -3, 4, -4, 4, -4]])
    assert cut[1]["next_obs"][0, -1] == 5


def test_every_step_without_success_costs_and_nothing_ends():
    data = made_up([0, 0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1, 0, 1])
    cut = decisions(data, Transparent(), GAMMA, "step-cost")
    assert column(cut, "length").tolist() == [3, 3, 2] and not column(cut, "terminated").any()
    np.testing.assert_allclose(column(cut, "reward"), [-(1 + GAMMA + GAMMA**2), -1.0, -1.0])


def test_dense_rewards_and_ends_are_those_recorded():
    data = made_up([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 1, 0], env=TOY)
    cut = decisions(data, Transparent(), GAMMA, "dense")
    np.testing.assert_allclose(column(cut, "reward"), [1 + 2 * GAMMA + 3 * GAMMA**2, 4.0], rtol=1e-6)
    assert column(cut, "terminated").tolist() == [False, True]
    # a simulator's own episodes never end: what robomimic calls done is the end of the recording
    cut = decisions(replace(data, env=SIMULATOR), Transparent(), GAMMA, "dense")
    assert column(cut, "length").tolist() == [3, 2] and not column(cut, "terminated").any()


def test_auto_is_what_the_environment_is_trained_with():
    assert column(decisions(made_up([0, 1]), Transparent(), GAMMA, "auto"), "terminated").all()
    cut = decisions(made_up([0.5, 0.5], env=TOY), Transparent(), GAMMA, "auto")
    np.testing.assert_allclose(column(cut, "reward"), 0.5 + GAMMA * 0.5)


def test_where_rewards_do_not_say_it_the_end_of_a_success_does():
    data = made_up([3.0, 9.0, 10.0, 10.0], [0, 0, 1, 1], success=True)
    cut = decisions(data, Transparent(), 1.0, "success")
    assert column(cut, "length").tolist() == [3] and column(cut, "reward").tolist() == [1.0]
    with pytest.raises(DsrlError, match="demonstration 0 is marked as a success, but neither"):
        decisions(made_up([3.0, 9.0], success=True), Transparent(), 1.0, "success")
    # the last step of a failed demonstration of robomimic's is done, too
    cut = decisions(made_up([0, 0, 0], [0, 0, 1]), Transparent(), 1.0, "success")
    assert not column(cut, "terminated").any() and not column(cut, "reward").any()


def test_sparse_rewards_do_not_pass_for_dense_ones():
    with pytest.raises(DsrlError, match="--reward dense trains on the simulator's own"):
        decisions(made_up([0, 1]), Transparent(), GAMMA, "dense")
    with pytest.raises(DsrlError, match="Did you mean 'success'"):
        decisions(made_up([0, 1]), Transparent(), GAMMA, "sucess")


def test_actions_are_clipped_as_in_training():
    box = gymnasium.spaces.Box(-1.0, 1.0, (TA, 2))
    cut = decisions(made_up([0] * 4), Transparent(), GAMMA, "success", box)
    np.testing.assert_array_equal(cut[0]["chunk"], [[0, 0, 1, -1, 1, -1]])


@pytest.mark.parametrize(
    ("reward", "endless", "spec"),
    [("success", True, SIMULATOR), ("step-cost", True, SIMULATOR), ("success", False, TOY), ("dense", False, TOY)],
)
def test_a_cut_recording_is_what_the_chunked_environment_returned(reward, endless, spec):
    policy = Transparent()
    episodes, chunks, buffers = [], [], [make_buffer(policy) for _ in range(2)]
    for seed in range(6):
        episodes.append(record(make_toy(endless), seed))
        actions = episodes[-1].actions
        chunks.append(np.concatenate([actions, np.zeros((TA, 2), np.float32)]))
    data = Trajectories(tuple(episodes), {"state": (4,)}, spec)
    assert sum(episode.success for episode in episodes) > 1
    cut = decisions(data, policy, GAMMA, reward, gymnasium.spaces.Box(-1.0, 1.0, (2,)))
    fill(buffers[0], cut)
    envs = make_vec_env(lambda: make_toy(endless), policy.spec, reward=reward, gamma=GAMMA)
    play(SteeredVecEnv(envs, policy), chunks, buffers[1])
    ours, theirs = (buffer.at(torch.arange(buffer.rows)) for buffer in buffers)
    assert buffers[0].rows == buffers[1].rows > 12
    for name in ("observations", "next_observations", "dones", "rewards", "discounts", "earned", "remaining"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), msg=name)
    for row, length in enumerate(column(cut, "length")):
        torch.testing.assert_close(ours.chunks[row, : 2 * length], theirs.chunks[row, : 2 * length])
    end, their_end = (buffer.at(torch.arange(buffer.rows), ends=True).end_observations for buffer in buffers)
    torch.testing.assert_close(end, their_end)


def record(env, seed):
    """Play beyond the limits of the actions, in the rough direction of the goal, step by step."""
    rng = np.random.default_rng(seed)
    seen, actions, flags, ends, done = [env.reset(seed=seed)[0]], [], [], [], False
    while not done:
        actions.append((1.4 * seen[0][2:] + 0.5 * rng.standard_normal(2)).astype(np.float32))
        obs, reward, terminated, truncated, _ = env.step(np.clip(actions[-1], -1, 1))
        seen.append(obs)
        flags.append(reward)
        ends.append(terminated)
        done = terminated or truncated
    states, rewards = np.stack(seen), np.array(flags, np.float32)
    obs, next_obs = {"state": states[:-1]}, {"state": states[1:]}
    return Trajectory(obs, next_obs, np.stack(actions), rewards, np.array(ends), bool(rewards.any()), seed)


def play(envs, episodes, buffer):
    """The same actions, chunk by chunk, from the same starts."""
    envs.env_method("set_seeds", range(len(episodes)))
    obs = envs.reset()
    for actions in episodes:
        done, at = False, 0
        while not done:
            noise = actions[at : at + TA].reshape(1, -1)
            next_obs, rewards, dones, infos = envs.step(noise)
            done, at = bool(dones[0]), at + TA
            last = infos[0]["terminal_observation"][None] if done else next_obs
            buffer.add(obs, last, noise, rewards, dones, infos)
            obs = next_obs


def make_buffer(policy, **options):
    box = gymnasium.spaces.Box(-np.inf, np.inf, (policy.cond_dim,), np.float32)
    noise = gymnasium.spaces.Box(-1.5, 1.5, (TA * 2,), np.float32)
    return SteeringReplayBuffer(100, box, noise, "cpu", gamma=GAMMA, chunk_dim=TA * 2, **options)


def test_pools_are_decoded_at_once_and_shared_with_the_next_observation():
    policy, calls = Transparent(), []
    buffer = make_buffer(policy, pool_size=2)

    def decoder(cond):
        calls.append(len(cond))
        return Pool(torch.randn(len(cond), 2, 6), cond[:, None, :6].repeat(1, 2, 1))

    buffer.decoder = decoder
    data = replace(made_up([0] * 7), episodes=made_up([0] * 7).episodes + made_up([0, 0, 0, 1]).episodes)
    fill(buffer, decisions(data, policy, GAMMA, "success"))
    assert calls == [7] and buffer.rows == 5  # 5 decisions and the ends of 2 episodes
    batch = buffer.at(torch.arange(5))
    for row in (0, 1, 3):
        assert torch.equal(batch.next_pool.actions[row], batch.pool.actions[row + 1])
    assert torch.equal(batch.next_pool.chunks[:, 0], batch.next_observations[:, :6])
    assert torch.equal(batch.pool.chunks[:, 1], batch.observations[:, :6])
    assert not buffer._episodes[STREAM] and not batch.actions.any()
    with pytest.raises(DsrlError, match="no transition whose noise is known"):
        buffer.sample(1)


def test_a_buffer_that_cannot_take_demonstrations_says_so():
    policy = Transparent()
    cut = decisions(made_up([0] * 303), policy, GAMMA, "success")
    with pytest.raises(DsrlError, match="101 decisions of demonstrations do not fit into a replay buffer of 100"):
        fill(make_buffer(policy), cut)
    with pytest.raises(DsrlError, match="only noise-aliased SAC"):
        fill(SteeringReplayBuffer(10, *[gymnasium.spaces.Box(-1, 1, (8,))] * 2, "cpu"), cut)
    with pytest.raises(DsrlError, match="no decoder"):
        fill(make_buffer(policy, pool_size=2), cut[:3])
    fill(make_buffer(policy), [])


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_fits_is_read_in_the_order_of_the_policy(tmp_path):
    data = made_up([0, 0, 1])
    (episode,) = data.episodes
    parts = {"b": slice(2, 4), "more": slice(0, 1), "a": slice(0, 2)}
    obs, next_obs = (
        {key: values["state"][:, part] + ord(key[0]) for key, part in parts.items()}
        for values in (episode.obs, episode.next_obs)
    )
    data = Trajectories((replace(episode, obs=obs, next_obs=next_obs),), {"b": (2,), "more": (1,), "a": (2,)})
    write_hdf5(tmp_path / "demos.hdf5", data)
    policy = Transparent({"a": (2,), "b": (2,)}, n_obs_steps=1)
    back = read_demos(tmp_path / "demos.hdf5", policy, SIMULATOR)
    assert list(back.obs_shapes) == ["a", "b"] and back.env == SIMULATOR  # the file named no environment
    first = decisions(back, policy, GAMMA, "success")[0]["obs"]
    np.testing.assert_array_equal(first, [[ord("a"), ord("a"), ord("b"), ord("b")]])


def test_one_flat_vector_may_have_another_name(tmp_path, toy_policy):
    write_hdf5(tmp_path / "demos.hdf5", made_up([0, 1], env=TOY))
    data = read_demos(tmp_path / "demos.hdf5", toy_policy, resolve_env_spec(TOY))
    assert list(data.obs_shapes) == list(toy_policy.spec.obs_shapes)
    assert len(decisions(data, toy_policy, GAMMA, "auto")) == 1


@pytest.mark.parametrize(
    ("policy", "env", "message"),
    [
        (Transparent(), EnvSpec("metaworld", "push-v3"), "demonstrations of metaworld/reach-v3, this run is on"),
        (Transparent({"state": (5,)}), SIMULATOR, r"'state' has shape \[4\] .* the policy reads \[5\]"),
        (Transparent({"state": (4,), "goal": (3,)}), SIMULATOR, "no observation 'goal'.* They have state"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, policy, env, message):
    write_hdf5(tmp_path / "demos.hdf5", made_up([0, 1]))
    with pytest.raises(DsrlError, match=message):
        read_demos(tmp_path / "demos.hdf5", policy, env)


def test_another_action_dimension_is_refused(tmp_path):
    data = made_up([0, 1])
    (episode,) = data.episodes
    write_hdf5(tmp_path / "demos.hdf5", replace(data, episodes=(replace(episode, actions=np.zeros((2, 7))),)))
    with pytest.raises(DsrlError, match="actions of 7 numbers, the policy plays 2"):
        read_demos(tmp_path / "demos.hdf5", Transparent(), SIMULATOR)


# -- playing back -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    """Toy episodes that arrived, from the file."""
    episodes = [episode for seed in range(12) if (episode := record(make_env(TOY), seed)).success]
    write_hdf5(tmp_path / "toy.hdf5", Trajectories(tuple(episodes), {"state": (4,)}, resolve_env_spec(TOY)))
    return read_hdf5(tmp_path / "toy.hdf5")


def check(data, env=TOY, **options):
    out = StringIO()
    replay_check(data, resolve_env_spec(env), console=Console(file=out, width=300), **options)
    return out.getvalue()


def test_demonstrations_of_this_environment_succeed_again(recorded):
    assert "3 of 3 demonstrations succeed" in check(recorded)
    assert "1 of 1" in check(recorded, episodes=1)


def test_a_demonstration_may_be_slower_than_the_time_limit(recorded):
    assert "3 of 3" in check(recorded, replace(TOY, max_episode_steps=2))


def test_demonstrations_that_fail_are_refused(recorded):
    turned = [replace(episode, actions=-episode.actions) for episode in recorded.episodes]
    recorded_elsewhere = replace(recorded.env, kwargs={"lag": 3}, version="0.9")
    with pytest.raises(DsrlError, match=r"0 of 3 .* at least 2 must; they start where they should .*version \(0.9"):
        check(replace(recorded, episodes=tuple(turned), env=recorded_elsewhere))
    moved = [replace(episode, seed=episode.seed + 100) for episode in recorded.episodes]
    with pytest.raises(DsrlError, match="they do not even start where they should"):
        check(replace(recorded, episodes=tuple(moved)))


def test_files_without_starts_are_only_warned_about(recorded):
    old = replace(recorded, episodes=tuple(replace(episode, seed=None) for episode in recorded.episodes))
    assert "no start recorded: the replay check is skipped" in check(old)
    failed = replace(recorded, episodes=tuple(replace(episode, success=False) for episode in recorded.episodes))
    assert "no demonstration is marked as a success" in check(failed)
    with pytest.raises(DsrlError, match="none of the 1 demonstrations succeeded"):
        replay_check(made_up([0, 0]), SIMULATOR)
