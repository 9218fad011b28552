"""A policy that knows what a good action is: what it is told, what its weight does, and how it is kept."""

import pytest
import test_vision
import torch
from contract import SavedPolicyContract
from specimens import NETWORKS, SPEC, inputs
from test_policy_contract import make_steered

from dsrl.awr import GaussianConfig, GaussianPolicy
from dsrl.cfgrl import LABEL_DIM, GuidedPolicy, draw_label
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.guidance import Guidance
from dsrl.policy import PolicySpec
from dsrl.pretrained import load_policy, save_policy
from dsrl.steered import best_of

POINT = PolicySpec({"at": (1,)}, action_dim=1, horizon=2, n_action_steps=2)


def make_base(kind="flow", network="mlp", spec=SPEC, label_dim=LABEL_DIM):
    torch.manual_seed(0)
    if kind == "flow":
        base = FlowPolicy(spec, FlowConfig(NETWORKS[network], label_dim=label_dim))
    else:
        base = DiffusionPolicy(
            spec, DiffusionConfig(NETWORKS[network], prediction_type="v_prediction", label_dim=label_dim)
        )
    if spec is SPEC:
        base.fit_normalizers(1 + 3 * torch.randn(64, 2, 7), 0.5 + 2 * torch.rand(64, 8, 3))
    return base


def make_guided(kind="flow", network="mlp", **guidance):
    return GuidedPolicy(make_base(kind, network), Guidance(**guidance)).freeze()


def make_gaussian(learn_std=True):
    torch.manual_seed(0)
    policy = GaussianPolicy(SPEC, GaussianConfig({"type": "gaussian", "hidden_dims": [32], "learn_std": learn_std}))
    policy.fit_normalizers(1 + 3 * torch.randn(64, 2, 7), 0.5 + 2 * torch.rand(64, 8, 3))
    with torch.no_grad():
        policy.denoiser.log_std -= 1
    return policy.freeze()


MAKERS = {
    "guided flow": lambda: make_guided(weight=2.0),
    "guided flow, unet": lambda: make_guided(network="unet", weight=2.0, interval=(0.1, 0.7)),
    "guided diffusion": lambda: make_guided("diffusion", weight=2.0, clip_inside=False),
    "conditional": make_guided,
    "gaussian": make_gaussian,
    "gaussian, std 1": lambda: make_gaussian(learn_std=False),
    "steered guided": lambda: make_steered(make_guided(weight=2.0)),
}


@pytest.fixture(params=MAKERS)
def policy(request):
    return MAKERS[request.param]()


class TestGuided(SavedPolicyContract):
    """The same contract as that of any other."""


# -- the weight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "unet"])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_weight_0_is_the_policy_that_is_told_nothing_to_the_bit(kind, network):
    guided = make_guided(kind, network, weight=3.0)
    obs, noise = inputs(SPEC)
    cond, base = guided.encode(obs), guided.base
    told_nothing = base.decode(cond, noise)
    told_good = base.executed(base.sampler(base.denoiser, base.tell(cond, torch.tensor([[0.0, 1.0]] * 8)), noise))
    assert torch.equal(guided.decode(cond, noise, 0.0), told_nothing)
    assert torch.equal(guided.decode(cond, noise, 1.0), told_good)
    strong = guided.decode(cond, noise)
    assert torch.equal(strong, guided.sample(obs, noise, 3.0))
    assert not torch.allclose(strong, told_good) and not torch.allclose(told_nothing, told_good)
    rows = torch.tensor([0.0] * 4 + [3.0] * 4)
    expected = torch.cat([told_nothing[:4], strong[4:]])
    torch.testing.assert_close(guided.decode(cond, noise, rows), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_actions_stay_inside_the_data_at_any_weight(kind, inside):
    guided = make_guided(kind, clip_inside=inside)
    obs, noise = inputs(SPEC)
    chunk = guided.sample(obs, 3 * noise, 300.0)
    reach = ((chunk - guided.base.action_normalizer.offset) / guided.base.action_normalizer.scale).abs()
    assert float(reach.max()) == pytest.approx(1.0, abs=1e-5)


def test_another_weight_is_another_policy_with_the_same_network():
    guided = make_guided(weight=3.0, interval=(0.1, 0.8))
    obs, noise = inputs(SPEC)
    mild = guided.at_weight(0.5)
    assert torch.equal(mild.sample(obs, noise), guided.sample(obs, noise, 0.5))
    assert mild.base is guided.base and mild.guidance == Guidance(0.5, (0.1, 0.8)) and guided.guidance.weight == 3.0
    assert not mild.training
    with pytest.raises(DsrlError, match="--guidance-weight is -1"):
        guided.at_weight(-1.0)


def test_the_weight_can_be_chosen_when_it_is_loaded(tmp_path):
    guided = make_guided(weight=3.0, interval=(0.2, 0.9), clip_inside=False)
    obs, noise = inputs(SPEC)
    path = save_policy(guided, tmp_path / "guided.pt")
    strong, mild = load_policy(path, device="cpu"), load_policy(path, guidance_weight=0.5, device="cpu")
    assert strong.guidance == Guidance(3.0, (0.2, 0.9), clip_inside=False), "all of it is recorded"
    assert mild.guidance == Guidance(0.5, (0.2, 0.9), clip_inside=False)
    assert torch.equal(mild.sample(obs, noise), guided.sample(obs, noise, 0.5))
    assert mild.spec.sha256 != strong.spec.sha256, "an agent that steers one must not steer the other"
    with pytest.raises(DsrlError, match=r"guided.pt: .*--guidance-weight is -1"):
        load_policy(path, guidance_weight=-1.0)
    plain = save_policy(guided.base, tmp_path / "plain.pt")
    with pytest.raises(DsrlError, match=r"--load.guidance-weight is 2.0, but .*plain.pt holds a policy of kind 'flow'"):
        load_policy(plain, guidance_weight=2.0)


def test_the_policy_that_is_told_nothing_can_be_kept_alone(tmp_path):
    base = make_base().freeze()
    obs, noise = inputs(SPEC)
    loaded = load_policy(save_policy(base, tmp_path / "base.pt"), device="cpu")
    assert loaded.label_dim == LABEL_DIM
    assert torch.equal(loaded.sample(obs, noise), GuidedPolicy(base, Guidance()).sample(obs, noise, 0.0))


def test_a_policy_that_sees_can_be_guided():
    base = FlowPolicy(test_vision.SPEC, FlowConfig(NETWORKS["mlp"], test_vision.TINY, label_dim=LABEL_DIM))
    guided, obs, noise = GuidedPolicy(base, Guidance(2.0)).freeze(), test_vision.make_obs(), test_vision.make_noise()
    assert guided.cond_dim == base.cond_dim == 2 * (2 + 5 + 5 + 3)
    assert guided.sample(obs, noise).shape == (3, 2, 2)
    assert torch.equal(guided.sample(obs, noise, 0.0), base.sample(obs, noise))
    chunk = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(3))
    guided.requires_grad_(True).loss(obs, chunk, torch.ones(3)).backward()
    assert all(parameter.grad is not None for parameter in base.vision.parameters())


def test_a_network_that_takes_no_label_is_refused():
    with pytest.raises(ValueError, match="takes labels of 0 numbers, guidance needs 2"):
        GuidedPolicy(make_base(label_dim=0), Guidance())
    with pytest.raises(ValueError, match=r"label has shape \(8, 2\), the network takes \(8, 0\)"):
        make_base(label_dim=0).tell(torch.zeros(8, 14), torch.zeros(8, 2))


# -- what it is told --------------------------------------------------------------------------------------------------


def test_the_label_stands_beside_every_observation():
    cond = torch.arange(28.0).reshape(2, 14)
    told = make_base().tell(cond, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert told[0].tolist() == [*range(7), 0, 1, *range(7, 14), 0, 1]
    assert told[1].tolist() == [*range(14, 21), 1, 0, *range(21, 28), 1, 0]
    assert make_base().tell(cond)[0].tolist() == [*range(7), 0, 0, *range(7, 14), 0, 0]


def test_labels_are_drawn_and_dropped_in_the_shares_that_were_asked_for():
    generator = torch.Generator().manual_seed(0)
    bad, good = (draw_label(torch.full((20_000,), value), generator, 0.1) for value in (0.0, 1.0))
    assert set(map(tuple, bad.tolist())) == {(0, 0), (1, 0)} and set(map(tuple, good.tolist())) == {(0, 0), (0, 1)}
    for told in (bad, good):
        assert float(told.sum(1).mean()) == pytest.approx(0.9, abs=0.01)
    soft = draw_label(torch.full((20_000,), 0.3), generator, 0.0)
    assert soft.mean(0).tolist() == pytest.approx([0.7, 0.3], abs=0.02)


def learn(loss, policy, steps=250):
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2, fused=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss(generator).backward()
        optimizer.step()


def two_clusters(n=256):
    """Chunks near -0.5 and near 0.5, in equal shares, whatever the observation."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.arange(n) % 2 == 0, -0.5, 0.5)[:, None, None]
    obs, chunk = torch.randn(n, 1, 1, generator=generator), side + 0.1 * torch.randn(n, 2, 1, generator=generator)
    return obs, chunk, side.flatten()


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_training_teaches_what_good_means(kind):
    policy = GuidedPolicy(make_base(kind, spec=POINT), Guidance())
    obs, chunk, side = two_clusters()
    policy.base.fit_normalizers(obs, chunk)
    learn(lambda generator: policy.loss(obs, chunk, (side > 0).float(), generator), policy)
    policy.freeze()
    noise = torch.randn(256, 2, 1, generator=torch.Generator().manual_seed(2))
    good = {weight: float((policy.sample(obs, noise, weight).mean(1) > 0).float().mean()) for weight in (0.0, 1.0, 2.0)}
    assert 0.3 < good[0.0] < 0.7, "told nothing, it does what the data do"
    assert good[1.0] > 0.9 and good[2.0] >= good[1.0]


# -- best of N --------------------------------------------------------------------------------------------------------


def test_the_best_of_n_is_the_favourite_of_the_critic(tmp_path):
    base, (obs, _) = make_base(label_dim=0).freeze(), inputs(SPEC)
    torch.manual_seed(1)
    critic = CriticEnsemble(base.cond_dim, 12, (16,)).requires_grad_(False)
    low, high = [-1.0] * 3, [0.8, 1.5, 9.0]
    noise = torch.randn(8, 5, 8 * 3, generator=torch.Generator().manual_seed(2))
    best = best_of(base, critic, 5, low, high)
    chosen = best.sample(obs, noise)
    loaded = load_policy(save_policy(best, tmp_path / "best.pt"), device="cpu")
    assert torch.equal(loaded.sample(obs, noise), chosen)
    cond = base.encode(obs)
    chunks = torch.stack([base.decode(cond, z.unflatten(1, (8, 3))) for z in noise.unbind(1)], dim=1)
    chunks = chunks.clamp(torch.tensor(low), torch.tensor(high))
    values = torch.stack([critic(cond, chunks[:, i].flatten(1)).amin(0) for i in range(5)])
    torch.testing.assert_close(chosen, chunks[torch.arange(8), values.argmax(0)], atol=1e-5, rtol=1e-5)
    assert len(set(values.argmax(0).tolist())) > 1


def test_the_best_of_two_costs_what_guidance_costs():
    guided, (obs, noise) = make_guided("flow", "unet", weight=2.0), inputs(SPEC)
    rows, base = [], guided.base
    base.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    guided.sample(obs, noise)
    asked_by_guidance = rows.copy()
    rows.clear()
    critic = CriticEnsemble(base.cond_dim, 12, (16,)).requires_grad_(False)
    best_of(base, critic, 2, [-1.0] * 3, [1.0] * 3).sample(obs, torch.stack([noise.flatten(1)] * 2, dim=1))
    assert asked_by_guidance == rows == [16] * 8
