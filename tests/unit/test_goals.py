"""Goal-conditioned policies: goals of hindsight, one network or two, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import SavedPolicyContract
from specimens import inputs

from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.extract import ExtractConfig, extract
from dsrl.goals import GoalPolicy, HierarchicalPolicy, high_spec
from dsrl.guidance import Guidance
from dsrl.hindsight import FutureGoals
from dsrl.policy import PolicySpec
from dsrl.pretrain import PretrainConfig, pretrain
from dsrl.pretrained import load_policy, save_policy

SPEC = PolicySpec({"arm": (3,), "at": (2,)}, action_dim=2, horizon=4, n_action_steps=3, n_obs_steps=2, action_start=1)
NETWORK = {"type": "mlp", "hidden_dims": [32, 32, 32]}
POINT = EnvSpec("gymnasium", "dsrl/PointReach-v0")


def network(spec, kind="flow"):
    if kind == "diffusion":
        return DiffusionPolicy(spec, DiffusionConfig(NETWORK, label_dim=3))
    return FlowPolicy(spec, FlowConfig(NETWORK, label_dim=3))


def make_policy(name, weight=2.0):
    torch.manual_seed(0)
    kind, guidance = name.split()[0], Guidance(weight)
    low = network(SPEC, kind)
    if name.endswith("hierarchical"):
        high = GoalPolicy(network(high_spec(SPEC, 2), kind), guidance)
        policy = HierarchicalPolicy(low, guidance, high=high)
    else:
        policy = GoalPolicy(low, guidance)
    policy.fit_normalizers(torch.randn(64, 2, 5) * 3, torch.rand(64, 4, 2), torch.randn(64, 2) * 3)
    return policy.freeze()


NAMES = ["flow goal", "diffusion goal", "flow hierarchical"]


@pytest.fixture(params=NAMES)
def policy(request):
    return make_policy(request.param)


class TestGoals(SavedPolicyContract):
    """With the goal as the last part of the observation."""


def test_a_weight_of_its_own_when_it_is_loaded(policy, tmp_path):
    obs, noise = inputs(policy.spec)
    loaded, other = (
        load_policy(save_policy(policy, tmp_path / "goal.pt"), device="cpu", **weight)
        for weight in ({}, {"guidance_weight": 1.0})
    )
    assert list(loaded.spec.obs_shapes.items()) == [("arm", (3,)), ("at", (2,)), ("goal", (2,))]
    assert torch.equal(other.sample(obs, noise), policy.sample(obs, noise, 1.0))
    assert other.spec.sha256 != loaded.spec.sha256


def test_weight_0_knows_no_goal_and_weight_1_no_other_policy(policy):
    obs, noise = inputs(policy.spec)
    elsewhere = obs.clone()
    elsewhere[..., -2:] += 1
    assert torch.equal(policy.sample(obs, noise, 0.0), policy.sample(elsewhere, noise, 0.0))
    for weight in (1.0, 2.0):
        assert not torch.allclose(policy.sample(obs, noise, weight), policy.sample(elsewhere, noise, weight), atol=1e-4)
    own = policy.sample(obs, noise)
    assert torch.equal(own, policy.sample(obs, noise, 2.0))
    per_row = policy.sample(obs, noise, torch.tensor([2.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(per_row[:4], own[:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(per_row[4:], policy.sample(obs, noise, 0.0)[4:], atol=1e-5, rtol=0)
    assert torch.equal(policy.at_weight(0.0).sample(obs, noise), policy.sample(obs, noise, 0.0))


def test_the_last_goal_of_a_history_counts(policy):
    obs, noise = inputs(policy.spec)
    before = obs.clone()
    before[:, 0, -2:] = 7.0
    assert torch.equal(policy.sample(obs, noise), policy.sample(before, noise))


def test_what_cannot_be_told_a_goal_is_refused():
    with pytest.raises(ValueError, match="labels of 0 numbers"):
        GoalPolicy(FlowPolicy(SPEC, FlowConfig(NETWORK)), Guidance())
    with pytest.raises(ValueError, match="no 'at' among"):
        GoalPolicy(network(SPEC), Guidance(), "at")
    with pytest.raises(ValueError, match=r"a subgoal has \(1, 2\)"):
        HierarchicalPolicy(network(SPEC), Guidance(), high=GoalPolicy(network(SPEC), Guidance()))


# -- hindsight --------------------------------------------------------------------------------------------------------


def numbered(*lengths):
    """``at`` is 100 * the number of the episode + the env step."""
    episodes = []
    for number, steps in enumerate(lengths):
        at = 100.0 * number + np.arange(steps + 1, dtype=np.float32)[:, None]
        zeros = np.zeros(steps)
        episodes.append(Trajectory({"at": at[:-1]}, {"at": at[1:]}, np.zeros((steps, 1)), zeros, zeros > 0))
    return Trajectories(tuple(episodes), {"at": (1,)})


def test_goals_are_uniform_over_the_future_of_the_same_episode():
    goals = FutureGoals(numbered(4, 50), "at", ahead=10)
    assert len(goals) == 54
    drawn = goals[torch.full((20_000,), 1)].goal.flatten()
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [2, 3, 4]
    assert (counts / 20_000 - 1 / 3).abs().max() < 0.02
    last = goals[torch.full((100,), 53)]
    assert (last.goal == 150).all(), "the last row knows the true last observation only"


def test_subgoals_stop_at_the_goal_and_waypoints_at_the_end():
    goals = FutureGoals(numbered(4, 50), "at", ahead=10)
    rows = torch.arange(4, 54).repeat(50)
    now = (rows - 4).float()[:, None] + 100
    goal, subgoal, waypoint = goals[rows]
    assert ((goal > now) & (goal <= 150)).all()
    assert torch.equal(subgoal, torch.minimum(now + 10, goal)) and (subgoal < now + 10).any()
    assert torch.equal(waypoint, (now + 10).clamp(max=150))


def test_training_draws_anew_and_validation_does_not():
    goals = FutureGoals(numbered(50), "at")
    rows = torch.arange(50)
    assert not torch.equal(goals[rows].goal, goals[rows].goal)
    assert torch.equal(goals[:50].goal, goals[:50].goal)


# -- extraction -------------------------------------------------------------------------------------------------------


def wander(path, env, episodes=30, steps=40, goal=True, seed=0):
    """Steps of 0.5 to the left or to the right, mostly as the last one."""
    rng = np.random.default_rng(seed)
    recorded = []
    for _ in range(episodes):
        sign = np.where(rng.random(steps) < 0.05, -1.0, 1.0).cumprod() * rng.choice([-1.0, 1.0])
        actions = (0.5 * sign + 0.1 * rng.standard_normal(steps)).astype(np.float32)[:, None]
        at = np.concatenate([np.zeros((1, 1)), actions.cumsum(0)]).astype(np.float32)
        goals = np.zeros_like(at)
        parts = ({"at": at[cut], **({"goal": goals[cut]} if goal else {})} for cut in (slice(-1), slice(1, None)))
        zeros = np.zeros(steps, np.float32)
        recorded.append(Trajectory(*parts, actions, zeros, zeros > 0))
    shapes = {"at": (1,), **({"goal": (1,)} if goal else {})}
    write_hdf5(path, Trajectories(tuple(recorded), shapes, env))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("goals")
    data = wander(folder / "data.hdf5", None)
    settings = {"hidden_dims": (32,) * 3, "horizon": 1, "n_action_steps": 1, "sampling_steps": 4, "device": "cpu"}
    base = pretrain(PretrainConfig(data, folder / "base.pt", kind="flow", steps=10, eval_episodes=0, **settings))
    training = {"steps": 400, "batch_size": 64, "lr": 3e-3, "device": "cpu", "overwrite": True}
    return ExtractConfig(base, data, folder / "out.pt", mode="goal", run_dir=folder / "run", **training)


@pytest.mark.parametrize("mode", ["goal", "hierarchical"])
def test_the_goal_decides_and_a_larger_weight_more_so(config, mode):
    policy = load_policy(extract(replace(config, mode=mode)), device="cpu")
    obs = torch.tensor([[[0.0, 6.0]], [[0.0, -6.0]]]).repeat(300, 1, 1)
    noise = torch.randn(600, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(0))
    toward = {w: policy.sample(obs, noise, w).flatten() * obs[:, 0, 1].sign() for w in (0.0, 1.0, 3.0)}
    rate = {weight: float((step > 0).float().mean()) for weight, step in toward.items()}
    assert abs(rate[0.0] - 0.5) < 0.12 and rate[1.0] > 0.65 and rate[3.0] > rate[1.0] + 0.05, rate
    assert policy.guidance.weight == 1.0 and policy.spec.provenance["data"].startswith("data.hdf5, 30 episodes")


def test_a_goal_that_the_environment_does_not_give_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dsrl.extract.Trainer", lambda *_: pytest.fail("training began"))
    data = wander(tmp_path / "point.hdf5", EnvSpec("gymnasium", "gymnasium_dict_v0"))
    import gymnasium
    from gymnasium import spaces

    class Blind(gymnasium.Env):
        observation_space = spaces.Dict({"at": spaces.Box(-1, 1, (1,), np.float32)})
        action_space = spaces.Box(-1, 1, (1,), np.float32)

    monkeypatch.setitem(
        gymnasium.registry,
        "gymnasium_dict_v0",
        gymnasium.envs.registration.EnvSpec("gymnasium_dict_v0", lambda: Blind()),
    )
    with pytest.raises(DsrlError, match="--goal-key is 'goal', but gymnasium_dict_v0 has no observation 'goal'"):
        extract(replace(config, dataset=data, run_dir=tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reached_key": "att"}, "--reached-key is 'att'.*Did you mean 'at'.*There are at"),
        ({"goal_key": "aim"}, "--reached-key is left out; it must name.*There are at, goal"),
        ({"labels": "critic", "agent": "run"}, "--mode goal needs no labels"),
        ({"subgoal_steps": 0}, "subgoal-steps is 0"),
        ({"max_guidance_weight": -1.0}, "--max-guidance-weight is -1"),
    ],
)
def test_settings_that_do_not_fit_are_explained(config, settings, message, monkeypatch):
    monkeypatch.setattr("dsrl.extract.Trainer", lambda *_: pytest.fail("training began"))
    with pytest.raises(DsrlError, match=message):
        extract(replace(config, **settings))
