"""A policy that sees, steered in an environment that shows: pixels are encoded once, the agent never gets one."""

import csv
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console
from stable_baselines3 import SAC

from dsrl.commands import load_run
from dsrl.config import FinetuneConfig, NAConfig, SACConfig
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.finetune import finetune
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.policy import PolicySpec
from dsrl.pretrained import load_policy, save_policy
from dsrl.wrappers import SteeredVecEnv, make_vec_env
from dsrl.wrappers.make import make_env

pytestmark = [pytest.mark.integration]

SIDE = 24
STATE, IMAGE = "observation.state", "observation.image"
SPEC = PolicySpec(
    {STATE: (2,), IMAGE: (3, SIDE, SIDE)}, action_dim=2, horizon=4, n_action_steps=2, n_obs_steps=2, action_start=1
)


class Spot(gymnasium.Env):
    """Reach the spot that only the image shows."""

    observation_space = spaces.Dict(
        {"agent_pos": spaces.Box(-1, 1, (2,)), "pixels": spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)}
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.spot = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {"success": False}

    def step(self, action):
        self.at = np.clip(self.at + 0.2 * np.asarray(action), -1, 1)
        success = bool(np.abs(self.at - self.spot).max() < 0.3)
        return self._observe(), float(success), success, False, {"success": success}

    def _observe(self):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        row, column = ((self.spot + 1) / 2 * (SIDE - 1)).astype(int)
        pixels[row, column] = 255, 100, 50
        return {"agent_pos": self.at.astype(np.float32), "pixels": pixels}


class Camera(Spot):
    """The same with nothing but the image."""

    observation_space = Spot.observation_space["pixels"]

    def _observe(self):
        return super()._observe()["pixels"]


@pytest.fixture(autouse=True)
def registered():
    names = {"dsrl-test/Spot-v0": Spot, "dsrl-test/Camera-v0": Camera}
    for name, env in names.items():
        gymnasium.register(name, env, max_episode_steps=12)
    yield
    for name in names:
        del gymnasium.registry[name]


def make_policy(spec=SPEC):
    torch.manual_seed(0)
    vision = {"blocks": [1, 1], "width": 16, "keypoints": 4, "feature_dim": 6}
    network = {"type": "mlp", "hidden_dims": [32] * 3}
    config = DiffusionConfig(network, vision, train_steps=10, sampling_steps=4, prediction_type="sample")
    return DiffusionPolicy(spec, config).freeze()


def test_images_come_in_the_unit_range_channels_first():
    env = make_env(EnvSpec("gymnasium", "dsrl-test/Spot-v0", obs_keys=("pixels", "agent_pos")))
    obs, _ = env.reset(seed=0)
    raw = env.unwrapped.simulator.unwrapped._observe()
    assert env.unwrapped.obs_shapes == {"pixels": (3, SIDE, SIDE), "agent_pos": (2,)}
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    pixels = obs[:-2].reshape(3, SIDE, SIDE)
    np.testing.assert_array_equal(pixels, (raw["pixels"] / np.float32(255)).transpose(2, 0, 1))
    assert pixels.max() == 1 and np.array_equal(obs[-2:], raw["agent_pos"])


def test_images_are_read_only_when_they_are_asked_for():
    assert make_env("dsrl-test/Spot-v0").unwrapped.obs_shapes == {"agent_pos": (2,)}
    with pytest.raises(DsrlError, match=r"images \['pixels'\] are read when obs_keys names them"):
        make_env("dsrl-test/Camera-v0")
    env = make_env(EnvSpec("gymnasium", "dsrl-test/Camera-v0", obs_keys=("pixels",)))
    assert env.unwrapped.obs_shapes == {"pixels": (3, SIDE, SIDE)}
    assert env.reset(seed=0)[0].shape == (3 * SIDE * SIDE,)


def test_the_steered_environment_shows_what_the_policy_encodes():
    policy = make_policy()
    envs = SteeredVecEnv(make_vec_env("dsrl-test/Spot-v0", policy.spec, 2, seed=0), policy)
    encoded = envs.reset()
    assert envs.observation_space.shape == (policy.cond_dim,) == (2 * (2 + 6),)
    simulators = [env.unwrapped.simulator.unwrapped for env in envs.venv.envs]
    raw = [simulator._observe() for simulator in simulators]
    obs = {
        STATE: torch.stack([torch.from_numpy(each["agent_pos"]) for each in raw]),
        IMAGE: torch.stack([torch.from_numpy(each["pixels"]).permute(2, 0, 1) / 255 for each in raw]),
    }
    history = {key: torch.stack([value, value], dim=1) for key, value in obs.items()}
    torch.testing.assert_close(torch.from_numpy(encoded), policy.encode(history))
    before = [simulator.at.copy() for simulator in simulators]
    noise = np.zeros((2, envs.action_space.shape[0]), np.float32)
    expected = policy.sample(history, torch.zeros(2, *policy.spec.noise_shape)).clamp(-1, 1).numpy()
    encoded, _, dones, _ = envs.step(noise)
    assert encoded.shape == (2, policy.cond_dim) and not dones.any()
    for simulator, start, chunk in zip(simulators, before, expected, strict=True):
        after = start
        for action in chunk:
            after = np.clip(after + 0.2 * action, -1, 1)
        np.testing.assert_allclose(simulator.at, after, atol=1e-5)


@pytest.mark.parametrize("algo", ["sac", "na"])
def test_a_policy_that_sees_can_be_steered(algo, tmp_path):
    path = save_policy(make_policy(), tmp_path / "base.pt")
    config = FinetuneConfig(
        base_policy=path,
        env="dsrl-test/Spot-v0",
        run_dir=tmp_path / "run",
        algo=algo,
        total_env_steps=300,
        warmup_episodes=4,
        eval_interval=200,
        eval_episodes=4,
        final_episodes=4,
        final_repeats=1,
        probe_episodes=0,
        hidden_dims=(32, 32),
        device="cpu",
        na=NAConfig(n_critics=2, batch_size=16, updates_per_env_step=0.2),
        sac=SACConfig(updates_per_env_step=0.2),
    )
    finetune(config, console=Console(quiet=True))
    agent = {"sac": SAC, "na": NoiseAliasedSAC}[algo].load(tmp_path / "run" / "final.zip", device="cpu")
    assert agent.observation_space.shape == (2 * (2 + 6),)
    with (tmp_path / "run" / "evaluations.csv").open() as rows:
        assert {"base", "steered"} <= {row["policy"] for row in csv.DictReader(rows)}
    # exported, it is one policy from pixels to actions
    steered, _ = load_run(tmp_path / "run", "final", "cpu")
    exported = load_policy(save_policy(steered, tmp_path / "steered.pt"), device="cpu")
    obs = {STATE: torch.rand(3, 2, 2), IMAGE: torch.rand(3, 2, 3, SIDE, SIDE)}
    noise = torch.randn(3, *exported.spec.noise_shape)
    assert torch.equal(exported.sample(obs, noise), steered.sample(obs, noise))


def test_an_image_of_another_size_names_both():
    larger = replace(SPEC, obs_shapes={STATE: (2,), IMAGE: (3, 32, 32)})
    message = rf"reads '{IMAGE}' with the shape \[3, 32, 32\], dsrl-test/Spot-v0 gives \[3, {SIDE}, {SIDE}\]"
    with pytest.raises(DsrlError, match=message):
        make_vec_env("dsrl-test/Spot-v0", larger)


class Odd(Spot):
    """An image of floats."""

    observation_space = spaces.Dict({"agent_pos": spaces.Box(-1, 1, (2,)), "pixels": spaces.Box(0, 1, (3, 8, 8))})


def test_other_images_are_refused_by_name():
    gymnasium.register("dsrl-test/Odd-v0", Odd, max_episode_steps=12)
    try:
        with pytest.raises(DsrlError, match=r"the observation 'pixels' of dsrl-test/Odd-v0 is Box\(.*uint8 of the"):
            make_env(EnvSpec("gymnasium", "dsrl-test/Odd-v0", obs_keys=("pixels",)))
    finally:
        del gymnasium.registry["dsrl-test/Odd-v0"]
