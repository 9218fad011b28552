"""Stock agents that steer: what they store, what they bootstrap, what their magnitude means."""

import base64
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from traps import Evil

from dsrl.actor_file import actor_from_state, read_actor
from dsrl.agents import NEVER, build_sac
from dsrl.algorithms import ALGORITHMS, steering_facts
from dsrl.config import FinetuneConfig, NAConfig, SACConfig
from dsrl.errors import DsrlError
from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.pretrained.toy import ToyPolicy
from dsrl.replay import SteeringReplayBuffer
from dsrl.steered import SteeredPolicy
from dsrl.wrappers import SteeredVecEnv, make_vec_env

POLICY = ToyPolicy()


def steered_env(bound: float = 1.5, n_envs: int = 2, **layout) -> SteeredVecEnv:
    envs = make_vec_env(POLICY.spec.env, POLICY.spec, n_envs, seed=0)
    return SteeredVecEnv(envs, POLICY, NoiseSpace(POLICY.spec.noise_shape, bound, **layout))


def agent(algo: str = "sac", bound: float = 1.5, **layout):
    config = FinetuneConfig(algo=algo, n_envs=2, hidden_dims=(16, 16), na=NAConfig(deploy="actor"))
    envs = steered_env(bound, **layout)
    model = ALGORITHMS[algo].build(config, envs, POLICY.spec.n_action_steps, seed=0, device="cpu")
    model.learning_starts = 100  # decisions; what WarmUp sets once its episodes are over
    model.steering = steering_facts(config, model, bound, POLICY, layout)
    return model


def filled_buffer(info: dict, done: bool) -> SteeringReplayBuffer:
    box = spaces.Box(-1, 1, (3,), np.float32)
    buffer = SteeringReplayBuffer(8, box, box, device="cpu", n_envs=1, gamma=0.9)
    one = np.ones((1, 3), np.float32)
    buffer.add(one, one, one, np.ones(1), np.array([done]), [info])
    return buffer


@pytest.mark.parametrize("length", [1, 3, 4])
def test_the_bootstrap_is_discounted_by_the_env_steps_that_were_played(length: int):
    sample = filled_buffer({"chunk_length": length}, done=False).sample(5)
    torch.testing.assert_close(sample.discounts, torch.full((5, 1), 0.9**length))


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    limit = filled_buffer({"chunk_length": 2, "TimeLimit.truncated": True}, done=True).sample(3)
    end = filled_buffer({"chunk_length": 2}, done=True).sample(3)
    assert (limit.dones == 0).all() and (end.dones == 1).all()


def test_sac_bootstraps_with_the_discount_of_the_buffer(monkeypatch):
    """With critics that always say 1, the target of stock SAC shows which discount it used."""
    model = agent()
    model.learn(120)
    targets = []
    monkeypatch.setattr(
        "stable_baselines3.sac.sac.F.mse_loss",
        lambda q, target: (targets.append(target.clone()), (q - target).pow(2).mean())[1],
    )
    model.ent_coef_tensor = torch.tensor(0.0)
    ones = torch.ones
    monkeypatch.setattr(model.critic_target, "forward", lambda obs, actions: (ones(len(obs), 1), ones(len(obs), 1)))
    sample = model.replay_buffer.sample
    batches = []
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *a, **k: batches.append(sample(*a, **k)) or batches[-1])
    model.train(1, batch_size=64)
    expected = batches[0].rewards + (1 - batches[0].dones) * batches[0].discounts
    torch.testing.assert_close(targets[0], expected)
    torch.testing.assert_close(batches[0].discounts.min(), torch.tensor(0.99**4))


def test_warm_up_plays_the_prior_and_stores_what_was_played(monkeypatch):
    model = agent(bound=1.5)
    played = []
    act = model.env.steering.act
    monkeypatch.setattr(model.env.steering, "act", lambda action: played.append(action.copy()) or act(action))
    model.learn(80)  # 80 decisions of 2 environments, all of them warm-up
    stored = model.replay_buffer.at(torch.arange(80)).actions.view(40, 2, 8).numpy() * 1.5
    np.testing.assert_allclose(stored, np.stack(played), atol=1e-6)
    noise = np.stack(played)
    assert np.abs(noise).max() == pytest.approx(1.5)
    # clip(N(0, 1), -1.5, 1.5) has a standard deviation of 0.88, the uniform distribution 0.87: the ends tell them apart
    assert (np.abs(noise) == 1.5).mean() == pytest.approx(0.134, abs=0.03)


@pytest.mark.parametrize("bound", [0.5, 1.5, 3.0])
def test_noise_is_the_bound_times_the_agents_action(bound: float):
    """Same networks, another bound: SAC's noise scales with it, and never leaves it."""
    model, unit = agent("sac", bound), agent("sac", 1.0)
    unit.policy.load_state_dict(model.policy.state_dict())
    obs = model.env.reset()
    noise = model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(noise, bound * unit.predict(obs, deterministic=True)[0], atol=1e-6)
    assert np.abs(model.predict(obs)[0]).max() <= bound


@pytest.mark.parametrize("algo", ["na", "sac", "ppo"])
def test_the_copied_actor_is_the_agents_actor(algo: str):
    model = agent(algo)
    with torch.no_grad():
        for parameter in model.policy.parameters():  # so that the actor says something
            parameter.add_(0.1 * torch.randn_like(parameter))
    actor = actor_from_state(model.policy.state_dict(), model.steering)
    obs = model.env.reset()
    copied = actor(torch.as_tensor(obs), torch.zeros(2, 8)).numpy()
    np.testing.assert_allclose(copied, model.predict(obs, deterministic=True)[0], atol=1e-6)


@pytest.mark.parametrize(("algo", "std"), [("na", 1.0), ("sac", 0.94), ("ppo", 1.0)])
def test_an_untrained_agent_is_close_to_the_base_policy(algo: str, std: float):
    model = agent(algo, ALGORITHMS[algo].bound(FinetuneConfig(algo=algo)))
    actor = actor_from_state(model.policy.state_dict(), model.steering)
    cond = torch.as_tensor(model.env.reset())[:1].expand(4000, -1)
    noise = actor(cond, torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)))
    assert noise.mean().abs() < 0.05 and noise.std().item() == pytest.approx(std, abs=0.03)


def test_an_agent_is_read_back_without_unpickling_and_only_for_its_own_base(tmp_path):
    model = agent()
    model.save(tmp_path / "agent.zip")
    actor = read_actor(tmp_path / "agent.zip", POLICY)
    cond, eps = torch.as_tensor(model.env.reset()), torch.randn(2, 8)
    torch.testing.assert_close(actor(cond, eps), actor_from_state(model.policy.state_dict(), model.steering)(cond, eps))
    other = ToyPolicy()
    object.__setattr__(other.spec, "sha256", "f" * 64)
    with pytest.raises(DsrlError, match="another policy"):
        read_actor(tmp_path / "agent.zip", other)


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_damaged_agent_is_named(tmp_path, damage: str):
    path = tmp_path / "agent.zip"
    if damage == "truncated":
        agent().save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "foreign":
        SAC("MlpPolicy", steered_env(), policy_kwargs={"net_arch": [8]}).save(path)
    with pytest.raises(DsrlError, match=r"agent\.zip"):
        read_actor(path, POLICY)


def rewritten(path, member: str, content: bytes):
    """The same zip with one member exchanged."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in {**members, member: content}.items():
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize("member", ["policy.pth", "data"])
def test_an_agent_that_would_run_code_runs_nothing(tmp_path, member: str):
    model, trap = agent(), tmp_path / "created"
    model.save(tmp_path / "agent.zip")
    if member == "data":  # stable-baselines3 itself unpickles what stands here
        payload = base64.b64encode(pickle.dumps(Evil(trap))).decode()
        with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
            content = {**json.loads(archive.read("data")), "lr_schedule": {":serialized:": payload}}
        path = rewritten(tmp_path / "agent.zip", member, json.dumps(content).encode())
        read_actor(path, POLICY)
    else:
        path = rewritten(tmp_path / "agent.zip", member, pickle.dumps(Evil(trap)))
        with pytest.raises(DsrlError, match=r"agent\.zip is not an agent that dsrl saved"):
            read_actor(path, POLICY)
    assert not trap.exists()


@pytest.mark.parametrize("facts", [None, {}, {"algo": "sac", "bound": 1.5}, {"algo": "dqn", "bound": 1.5}, [1]])
def test_an_agent_without_its_facts_is_refused(tmp_path, facts):
    agent().save(tmp_path / "agent.zip")
    path = rewritten(tmp_path / "agent.zip", "data", json.dumps({"steering": facts}).encode())
    with pytest.raises(DsrlError, match="is not an agent that dsrl saved"):
        read_actor(path, POLICY)


@pytest.mark.parametrize("algo", ["na", "sac", "ppo"])
@pytest.mark.parametrize("space", reduced_spaces(POLICY.spec.noise_shape, 1.5), ids=NoiseSpace.describe)
def test_an_agent_file_remembers_its_noise_space(tmp_path, algo: str, space: NoiseSpace):
    model = agent(algo, **space.layout())
    model.save(tmp_path / "agent.zip")
    steered = SteeredPolicy(POLICY, read_actor(tmp_path / "agent.zip", POLICY))
    assert steered.noise_space == space
    envs = model.get_env()
    obs = envs.reset()
    action, _ = model.predict(obs, deterministic=True)
    rest = torch.randn(2, space.rest_size, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([torch.zeros(2, space.size), rest], dim=1)
    expected = POLICY.decode(torch.as_tensor(obs), space.to_noise(torch.as_tensor(action), rest))
    torch.testing.assert_close(steered.decode(torch.as_tensor(obs), noise), expected)


def test_an_agent_file_of_the_full_noise_says_nothing_about_it(tmp_path):
    model = agent()
    model.save(tmp_path / "agent.zip")
    assert "noise" not in model.steering
    steered = SteeredPolicy(POLICY, read_actor(tmp_path / "agent.zip", POLICY))
    assert steered.noise_space == NoiseSpace(POLICY.spec.noise_shape)


@pytest.mark.parametrize("noise", [{}, {"rows": 2}, {"rows": 9}, {"row": 1}])
def test_an_agent_with_the_noise_space_of_another_is_refused(tmp_path, noise: dict):
    model = agent(rows=1, rest="zero")
    model.steering["noise"] = noise
    model.save(tmp_path / "agent.zip")
    with pytest.raises(DsrlError, match="does not say which noise it chooses"):
        read_actor(tmp_path / "agent.zip", POLICY)


def test_an_agent_with_nan_is_refused(tmp_path):
    model = agent()
    with torch.no_grad():
        model.policy.actor.mu.bias[0] = float("nan")
    model.save(tmp_path / "agent.zip")
    with pytest.raises(DsrlError, match="holds NaN"):
        read_actor(tmp_path / "agent.zip", POLICY)


def test_a_steered_policy_can_be_steered_in_turn():
    model = agent()
    steered = SteeredPolicy(POLICY, actor_from_state(model.policy.state_dict(), model.steering))
    env = SteeredVecEnv(make_vec_env(POLICY.spec.env, POLICY.spec, 1, seed=0), steered)
    env.reset()
    obs, *_ = env.step(np.zeros((1, 8), np.float32))
    assert np.isfinite(obs).all()


def test_updates_follow_the_env_steps():
    config = FinetuneConfig(algo="sac", n_envs=4, sac=SACConfig(updates_per_env_step=1.25))
    model = build_sac(config, steered_env(n_envs=4), POLICY.spec.n_action_steps, seed=0, device="cpu")
    assert model.gradient_steps == 20, "1.25 per env step, four env steps per decision, four environments"
    assert model.learning_starts == NEVER, "the end of the warm-up is counted in episodes"
