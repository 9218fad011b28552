"""Noise-aliased SAC from outside: what it plays, what its files hold, whole configurations."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from na_agents import COND, NOISE, POLICY, agent, build, toy_envs
from rich.console import Console
from stable_baselines3.common.callbacks import ConvertCallback

from dsrl.actor_file import steered_from_state
from dsrl.algorithms import steering_facts
from dsrl.callbacks import EnvSteps, StopWatch, WarmUp
from dsrl.config import FinetuneConfig, NAConfig
from dsrl.errors import DsrlError, LossNotFinite
from dsrl.evaluate import evaluate_in_env
from dsrl.noise import NoiseSpace
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.noise_policy import NoiseAliasedPolicy
from dsrl.pilots import Pilots
from dsrl.presets import preset
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import ActionChunk, ObservationHistory, SteeredEnv, make_env

# -- acting -----------------------------------------------------------------------------------------------------------


def test_the_warm_up_plays_the_prior_inside_the_box():
    model = agent(bound=1.5, learning_starts=1000)
    model.learn(400)
    noise = 1.5 * model.replay_buffer.at(torch.arange(400)).actions
    assert noise.abs().max() == pytest.approx(1.5)
    assert (noise.abs() == 1.5).float().mean().item() == pytest.approx(0.134, abs=0.02)


def test_what_the_candidates_play_is_the_best_of_the_pool_that_is_stored():
    model = agent(learning_starts=40, fit_updates=20)
    model.pilots.TURNS = ("candidates",)
    model.pilots.trust = 10_000  # nobody else
    model.learn(400)
    batch = model.replay_buffer.at(torch.arange(model.replay_buffer.rows))
    played_from_pool = (batch.pool.actions == batch.actions[:, None]).all(dim=2)
    assert played_from_pool.any(dim=1).float().mean() > 0.7, "all but the warm-up and the episodes that it began"
    row, index = played_from_pool.nonzero()[-1]
    torch.testing.assert_close(batch.chunks[row], batch.pool.chunks[row, index])


def test_an_agent_that_has_flown_nothing_deploys_the_base_policy():
    model = agent()
    assert model.deployed == "base"
    assert [agent(deploy=deploy).deployed for deploy in ("actor", "candidates")] == ["actor", "candidates"]
    obs = model.env.reset()
    noise, _ = model.predict(obs, deterministic=True)
    one, _ = model.predict(obs[0], deterministic=True)
    assert noise.shape == (2, NOISE) and one.shape == (NOISE,)


def test_a_copy_of_the_actor_is_deployed_unless_its_episodes_are_worse():
    model = agent(average_decay=0.0, learning_rate=1e-2)
    model.learn(60)
    for reach, successes, deployed in ((1.0, 2, "candidates"), (1.5, 4, "actor"), (1.5, 2, "actor"), (1.0, 4, "actor")):
        before = moments(model, "deployed_actor")
        model.train(5, 16)
        average = moments(model, "average_actor")
        assert torch.equal(moments(model, "deployed_actor"), before), "the actor goes on, the copy does not"
        model.pilots = Pilots(trial=4)
        model.pilots.results = {"base": deque([0.0] * 20), "candidates": deque([1.0] * 4)}
        flown = [[reach, float(success < successes)] for success in range(4)]
        model.pilots.learners.restore({"flown": flown, "under_way": [], "fresh": 4})
        model.pilots.start(2, warming_up=True)
        finish_episodes(model)
        assert model.deployed == deployed
        now = moments(model, "deployed_actor")
        if successes == 4:
            torch.testing.assert_close(now[:8], reach * average[:8])
            assert torch.equal(now[8:], average[8:])
        else:
            assert torch.equal(now, before)


def test_the_learner_flies_its_mean_as_far_as_it_is_told():
    model = agent(learning_starts=40, fit_updates=20)
    model.learn(60)
    cond = torch.randn(3, model.observation_space.shape[0])
    mean, log_std = model.policy.average_actor.moments(cond)
    model.policy.average_actor.mean.bias.data += 0.1
    mean = mean + 0.1
    reach = torch.tensor([[1.0], [1.5], [2.0]])
    drawn = torch.stack([model.policy.rehearse(cond, reach) for _ in range(4_000)])
    inside = (reach * mean).abs() + log_std.exp() < model.policy.bound
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(drawn.mean(dim=0)[inside], (reach * mean)[inside], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(dim=0)[inside], 0.25 * log_std.exp()[inside], rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("candidates", "enough", "deployed"),
    [([], 99, "base"), ([], 0, "candidates"), ([1.0, 0.0] * 2, 99, "candidates"), ([0.0] * 4, 0, "base")],
)
def test_the_candidates_are_deployed_when_they_do_as_well_as_the_base_policy(candidates, enough, deployed):
    """Before they have flown, only where there were enough episodes to learn from."""
    model = agent()
    model.learn(60)
    model.pilots.enough = enough
    model.pilots.results = {"base": deque([0.5]), "candidates": deque(candidates)}
    model.pilots.start(2, warming_up=True)
    finish_episodes(model)
    assert model.deployed == deployed


def test_the_base_policy_that_is_deployed_is_the_base_policy():
    """The one of the same draw, whatever the critics think."""
    model = agent()
    model.learn(60)
    model.steering = steering_facts(FinetuneConfig(), model, model.policy.bound, POLICY)
    steered = steered_from_state(POLICY, model.policy.state_dict(), {**model.steering, "deployed": "base"})
    obs, noise = torch.randn(3, 1, 4), torch.randn(3, *steered.spec.noise_shape)
    torch.testing.assert_close(
        steered.sample(obs, noise), POLICY.sample(obs, noise.reshape(3, *POLICY.spec.noise_shape)), rtol=0, atol=0
    )


def test_the_base_policy_acts_again_when_the_actor_proves_worse():
    model = agent()
    model.learn(60)
    model.deployed, model.pilots.successions = "actor", 1
    model.pilots.results = {
        "base": deque([1.0, 0.0] * 9),
        "candidates": deque(),
        "proof": deque([1.0] * 6),
        "incumbent": deque([0.0] * 5),
    }
    model.pilots.start(2, warming_up=True)
    finish_episodes(model)
    assert model.deployed == "base"


def moments(model: NoiseAliasedSAC, actor: str) -> torch.Tensor:
    """What this actor says of a few observations."""
    cond = torch.randn(8, COND, generator=torch.Generator().manual_seed(0))
    return torch.cat(getattr(model.policy, actor).moments(cond)).detach()


def finish_episodes(model: NoiseAliasedSAC) -> None:
    """Both environments end their episode with a decision that the agent stores."""
    obs = np.zeros((2, COND), np.float32)
    info = {"chunk_length": 4, "chunk": np.zeros((4, 2)), "is_success": True, "terminal_observation": obs[0]}
    model._store_transition(
        model.replay_buffer, np.zeros((2, NOISE)), obs, np.zeros(2), np.ones(2, bool), [dict(info), dict(info)]
    )


# -- files ------------------------------------------------------------------------------------------------------------


def test_an_agent_is_saved_whole_and_goes_on_learning(tmp_path):
    model = agent(deploy="actor")
    model.learn(100)
    model.save(tmp_path / "agent.zip")
    model.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = NoiseAliasedSAC.load(tmp_path / "agent.zip", env=toy_envs(bound=10.0), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    obs = model.env.reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    for network in ("actor", "critic", "noise_critic"):
        mine, theirs = (getattr(m.policy, network).optimizer.state_dict()["state"] for m in (model, loaded))
        assert mine and all(torch.equal(mine[i]["exp_avg"], theirs[i]["exp_avg"]) for i in mine), network
    assert loaded.replay_buffer.rows == model.replay_buffer.rows
    updates = loaded._n_updates
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded._n_updates > updates and loaded.replay_buffer.rows == model.replay_buffer.rows + 20


def test_the_policy_alone_is_saved_as_that_of_stock_sac_is(tmp_path):
    model = agent(deploy="actor")
    model.learn(100)
    model.policy.save(tmp_path / "policy.pt")
    loaded = NoiseAliasedPolicy.load(tmp_path / "policy.pt", device="cpu")
    obs = model.env.reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_without_an_environment_the_actor_predicts_and_the_candidates_say_what_they_lack(tmp_path):
    obs = np.zeros((3, COND), np.float32)
    for deploy in ("actor", "candidates"):
        model = agent(deploy=deploy)
        model.save(tmp_path / f"{deploy}.zip")
        loaded = NoiseAliasedSAC.load(tmp_path / f"{deploy}.zip", device="cpu")
        if deploy == "actor":
            assert (loaded.predict(obs, deterministic=True)[0] == 0).all(), "an untrained actor's mean"
            continue
        with pytest.raises(DsrlError, match="give it its steered environment"):
            loaded.predict(obs)
        loaded.set_env(toy_envs(n_envs=model.n_envs, bound=10.0))
        assert loaded.predict(obs)[0].shape == (3, NOISE)


def test_a_replay_buffer_of_another_shape_is_refused(tmp_path):
    model, other = agent(pool_size=8), agent(pool_size=4, candidates=4)
    model.learn(20)
    model.save_replay_buffer(tmp_path / "replay.pkl")
    with pytest.raises(DsrlError, match="this replay buffer has pools of 8, the agent needs 4"):
        other.load_replay_buffer(tmp_path / "replay.pkl")
    other.learn(20)
    assert other.replay_buffer.pool_size == 4, "the refused buffer has not replaced its own"


def test_an_environment_of_another_base_policy_is_refused(tmp_path):
    other = ToyPolicy()
    other.spec = replace(other.spec, sha256="f" * 64)
    model = agent()
    with pytest.raises(DsrlError, match=r"this one is ffffffffffff; .* means nothing to another policy"):
        model.set_env(toy_envs(bound=10.0, policy=other))
    model.save(tmp_path / "agent.zip")
    with pytest.raises(DsrlError, match="means nothing to another policy"):
        NoiseAliasedSAC.load(tmp_path / "agent.zip", env=toy_envs(bound=10.0, policy=other), device="cpu")


def test_a_loss_that_is_not_finite_ends_the_training_by_name():
    model = agent()
    model.learn(60)
    with torch.no_grad():
        model.critic.weights[0][0, 0, 0] = float("nan")
    with pytest.raises(LossNotFinite, match=r"train/\w+ is nan after \d+ gradient steps"):
        model.train(1, 16)


def test_an_environment_that_is_not_steered_is_refused():
    with pytest.raises(DsrlError, match="wrap yours in SteeredVecEnv"):
        agent(envs=gymnasium.make("Pendulum-v1"))


def test_a_single_steered_environment_will_do():
    env = ActionChunk(ObservationHistory(make_env(POLICY.spec.env), POLICY.spec.n_obs_steps), 4)
    model = agent(envs=SteeredEnv(env, POLICY, NoiseSpace(POLICY.spec.noise_shape, 10.0)))
    model.learn(60)
    assert model.replay_buffer.rows == 60 and model._n_updates > 0


# -- whole configurations ---------------------------------------------------------------------------------------------


def test_the_reference_preset_trains():
    config = preset("reference")
    model = build(replace(config, na=replace(config.na, batch_size=16)))
    model.learning_starts = 20
    model.learn(40)
    assert model.gradient_steps == 20 and model._n_updates >= 60
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert not model.replay_buffer.pool_size and model.steering["squash"] and model.steering["activation"] == "tanh"
    assert model.policy.critic.n_critics == model.policy.noise_critic.n_critics == 2


@pytest.mark.parametrize(("episodes", "budget"), [(5, 10_000), (1000, 400)])
def test_the_warm_up_ends_after_its_episodes_or_with_half_of_the_budget(episodes: int, budget: int):
    model = agent(learning_starts=10**9)
    steps = EnvSteps(budget, StopWatch(), Console(quiet=True))
    ended, played = [], []

    def watch(local: dict, _: dict) -> bool:
        ended.append(int(local["dones"].sum()))
        played.append(steps.env_steps)
        return model.learning_starts == 10**9

    model.learn(2000, callback=[steps, WarmUp(episodes, steps), ConvertCallback(watch)])
    over_before, over = sum(ended[:-1]) >= episodes, sum(ended) >= episodes
    assert not over_before and over != (played[-1] * 2 >= budget) and played[-2] * 2 < budget


@pytest.mark.parametrize(
    ("results", "successes", "length"),
    [
        ([1, 0, 1, 0, 1], 2, 3),  # its episodes, no less
        ([0, 0, 0, 1, 1, 0], 2, 5),  # until there is something to learn from
        ([0] * 12, 2, 9),  # but not for ever
        ([0] * 12, 0, 3),
        ([None] * 5, 2, 3),  # an environment that does not know success
    ],
)
def test_the_warm_up_waits_for_successes(results: list[int | None], successes: int, length: int):
    warm_up = WarmUp(3, EnvSteps(10_000, StopWatch(), Console(quiet=True)), successes=successes)
    warm_up.model = SimpleNamespace(learning_starts=10**9)  # type: ignore[assignment]
    for now, result in enumerate(results, start=1):
        warm_up.num_timesteps = now
        warm_up.locals = {"dones": np.array([True]), "infos": [{} if result is None else {"is_success": bool(result)}]}
        warm_up._on_step()
    assert warm_up.model.learning_starts == length - 1


@pytest.mark.parametrize("layout", [{"rows": 1}, {"rows": 2, "rest": "repeat"}, {"basis": 2}])
def test_it_learns_in_smaller_noise_spaces(layout: dict):
    model = build(FinetuneConfig(hidden_dims=(16,), na=NAConfig(batch_size=16, updates_per_env_step=0.25)), **layout)
    model.learning_starts = 20
    model.learn(40)
    assert model._n_updates > 0 and np.isfinite(model.predict(model.env.reset())[0]).all()


@pytest.mark.parametrize(
    ("actor", "deploy"), [("gaussian", "auto"), ("gaussian", "actor"), ("gaussian", "candidates"), ("box", "actor")]
)
def test_it_beats_the_base_policy_after_a_few_hundred_decisions(actor: str, deploy: str):
    """Whatever is deployed, and it acts without the agent."""
    settings = NAConfig(
        actor=actor, deploy=deploy, learning_rate=2e-3, updates_per_env_step=0.25, n_critics=2, batch_size=64
    )
    model = build(FinetuneConfig(n_envs=4, hidden_dims=(32, 32), na=settings), n_envs=4)
    steps = EnvSteps(2400, StopWatch(), Console(quiet=True))
    model.learn(600, callback=[steps, WarmUp(30, steps)])
    base = evaluate_in_env(POLICY, episodes=60, seed=5).success_rate
    assert deploy in ("auto", model.deployed)
    steered = steered_from_state(POLICY, model.policy.state_dict(), {**model.steering, "deployed": model.deployed})
    result = evaluate_in_env(steered, episodes=60, seed=5, noise_scale=steered.acting_scale)
    assert result.success_rate >= base + 0.2
