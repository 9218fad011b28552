"""The environment whose action is noise, in its three shells."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import SteeredEnv, SteeredVecEnv, SteeredVectorEnv, chunked, make_env, make_vec_env

POLICY = ToyPolicy()
SPACE = NoiseSpace(POLICY.spec.noise_shape, 1.5)


def single() -> gym.Env:
    return chunked(make_env(POLICY.spec.env), POLICY.spec)


def vec(n_envs: int = 2) -> SteeredVecEnv:
    return SteeredVecEnv(make_vec_env(POLICY.spec.env, POLICY.spec, n_envs, seed=0), POLICY, SPACE)


def noises(steps: int, n_envs: int, space: NoiseSpace = SPACE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, n_envs, space.size)).clip(-1.5, 1.5).astype(np.float32)


@pytest.mark.parametrize("space", [SPACE, *reduced_spaces(POLICY.spec.noise_shape, 1.5)], ids=NoiseSpace.describe)
def test_the_three_shells_give_the_same_trajectory(space: NoiseSpace):
    steps = 6
    actions = noises(steps, 1, space)
    one = SteeredEnv(single(), POLICY, space)
    many = SteeredVecEnv(DummyVecEnv([single]), POLICY, space)
    vector = SteeredVectorEnv(SyncVectorEnv([single], autoreset_mode=AutoresetMode.SAME_STEP), POLICY, space)
    many.seed(7)
    starts = [one.reset(seed=7)[0], many.reset()[0], vector.reset(seed=7)[0][0]]
    trajectories = [[obs] for obs in starts]
    for action in actions:
        obs, _, terminated, *_ = one.step(action[0])
        if terminated:  # the other two begin a new episode
            break
        trajectories[0].append(obs)
        trajectories[1].append(many.step(action)[0][0])
        trajectories[2].append(vector.step(action)[0][0])
    assert len(trajectories[0]) > 2
    np.testing.assert_array_equal(trajectories[0], trajectories[1])
    np.testing.assert_array_equal(trajectories[0], trajectories[2])


def test_the_chunk_that_is_played_is_the_denoised_noise():
    env = SteeredEnv(single(), POLICY, SPACE)
    obs, _ = env.reset(seed=3)
    action = noises(1, 1)[0]
    expected = POLICY.decode(torch.as_tensor(obs)[None], SPACE.to_noise(torch.as_tensor(action)))
    np.testing.assert_allclose(env.steering.act(action), expected.numpy())


def prior_env(n_envs: int = 2) -> SteeredVecEnv:
    """The agent chooses the first row, the others are drawn."""
    space = NoiseSpace(POLICY.spec.noise_shape, rows=1, rest="prior")
    return SteeredVecEnv(make_vec_env(POLICY.spec.env, POLICY.spec, n_envs, seed=0), POLICY, space)


def played(env: SteeredVecEnv, seed: int) -> np.ndarray:
    env.seed(seed)
    env.reset()
    return np.stack([env.steering.act(np.zeros((env.num_envs, 2), np.float32)) for _ in range(3)])


def test_what_is_drawn_from_the_prior_follows_the_seed():
    env = prior_env()
    first = played(env, 3)
    assert env.steering.rest_seed == 3
    torch.randn(7)  # the global generator plays no part
    np.testing.assert_array_equal(first, played(env, 3))
    assert (first != played(env, 4)).any() and (first[0] != first[1]).any(), "every decision draws anew"


def test_environments_side_by_side_draw_noise_of_their_own():
    env = prior_env()
    seen: list[torch.Tensor] = []
    to_noise = env.steering.noise_space.to_noise
    object.__setattr__(env.steering.noise_space, "to_noise", lambda *args: seen.append(to_noise(*args)) or seen[-1])
    played(env, 0)
    rest = torch.stack(seen)[..., 1:, :]
    assert rest.shape == (3, 2, 3, 2) and len(rest.unique()) == rest.numel()


def test_terminal_observations_are_encoded_and_time_limits_survive():
    env = vec(1)
    env.reset()
    idle = np.zeros((1, SPACE.size), np.float32)  # zero noise does not solve the toy task
    for _ in range(8):
        obs, _, dones, infos = env.step(idle)
    assert dones[0] and infos[0]["TimeLimit.truncated"]
    last = infos[0]["terminal_observation"]
    assert last.shape == env.observation_space.shape
    assert not np.allclose(last, obs[0]), "the next episode's first observation is not the terminal one"


def test_final_observations_of_the_vector_shell_are_encoded():
    env = SteeredVectorEnv(SyncVectorEnv([single] * 2, autoreset_mode=AutoresetMode.SAME_STEP), POLICY, SPACE)
    env.reset(seed=0)
    for _ in range(8):
        *_, info = env.step(np.zeros((2, SPACE.size), np.float32))
    assert info["_final_obs"].all()
    assert info["final_obs"][0].shape == env.single_observation_space.shape


def test_next_step_autoreset_is_refused():
    with pytest.raises(ValueError, match="SAME_STEP"):
        SteeredVectorEnv(SyncVectorEnv([single]), POLICY, SPACE)


def test_warm_up_is_the_base_policy():
    space = SPACE.action_space(seed=0)
    draws = np.stack([space.sample() for _ in range(4000)])
    inside = np.abs(draws) < 1.5
    assert inside.mean() == pytest.approx(0.8664, abs=0.01), "N(0, 1) clipped at 1.5 keeps 86.6 % inside"
    assert draws[inside].std() == pytest.approx(0.7426, abs=0.01), "a truncated normal, not a uniform"
    assert all(space.contains(draw) for draw in draws[:20])


def test_warm_up_of_the_vector_shell_is_the_base_policy_too():
    env = SteeredVectorEnv(SyncVectorEnv([single] * 2, autoreset_mode=AutoresetMode.SAME_STEP), POLICY, SPACE)
    env.action_space.seed(0)
    draws = np.stack([env.action_space.sample() for _ in range(2000)])
    assert draws.shape == (2000, 2, SPACE.size) and env.action_space.contains(draws[0])
    assert (np.abs(draws) == 1.5).mean() == pytest.approx(0.134, abs=0.01), "clipped to the box, not uniform in it"


def test_environments_of_one_vec_env_do_not_share_starts():
    obs = vec(4).reset()
    assert len(np.unique(obs.round(6), axis=0)) == 4


def test_a_policy_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 4\).*make_vec_env"):
        SteeredEnv(chunked(make_env("Pendulum-v1"), POLICY.spec), POLICY, SPACE)


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
def test_an_impossible_bound_is_refused(bound: float):
    with pytest.raises(ValueError, match="must be positive"):
        NoiseSpace(POLICY.spec.noise_shape, bound)


def test_stable_baselines_accepts_the_steered_environment():
    check_env(SteeredEnv(single(), POLICY, SPACE))


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_stable_baselines_callbacks_and_wrappers_work_unchanged(tmp_path):
    env = VecNormalize(VecMonitor(vec()), norm_obs=True, norm_reward=False)
    evaluation = VecNormalize(VecMonitor(vec()), norm_obs=True, norm_reward=False, training=False)
    model = SAC("MlpPolicy", env, learning_starts=20, policy_kwargs={"net_arch": [16]}, seed=0)
    callbacks = [
        EvalCallback(evaluation, eval_freq=20, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0),
        CheckpointCallback(20, str(tmp_path)),
    ]
    model.learn(60, callback=callbacks, progress_bar=True)
    assert (tmp_path / "best_model.zip").exists() and list(tmp_path.glob("rl_model_*.zip"))
    model.save(tmp_path / "agent.zip")
    again = SAC.load(tmp_path / "agent.zip", env=env)
    obs = env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])
    mean, _ = evaluate_policy(again, evaluation, n_eval_episodes=2)
    assert np.isfinite(mean)


def test_stock_ppo_steers_too():
    PPO("MlpPolicy", vec(), n_steps=8, batch_size=16, n_epochs=1, policy_kwargs={"net_arch": [16]}, seed=0).learn(16)
