"""A base policy that stays as it is, and what is learned beside it: nothing at first, then what good actions add."""

import pytest
import torch
from contract import SavedPolicyContract
from specimens import SPEC, inputs, own_policy
from test_cfgrl import POINT, learn, make_base, two_clusters
from test_policy_contract import make_steered

from dsrl.anchored import AnchoredPolicy
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.guidance import Guidance
from dsrl.pretrained import load_policy, save_policy

WEIGHTS = (0.0, 0.5, 1.0, 2.5, 30.0)
SMALL = {"type": "mlp", "hidden_dims": [32] * 5}
PLAIN = {"type": "plain_mlp", "hidden_dims": [32], "layer_norm": True}
STAGED = {"type": "staged", "network": {"type": "plain_mlp", "hidden_dims": [16]}, "switch": 10}


def make_staged():
    torch.manual_seed(0)
    return DiffusionPolicy(SPEC, DiffusionConfig(STAGED))


BASES = {
    **{case: lambda case=case: own_policy(case) for case in ("diffusion-mlp-epsilon", "diffusion-unet-sample")},
    **{case: lambda case=case: own_policy(case) for case in ("diffusion-transformer-epsilon", "flow-mlp", "flow-unet")},
    "plain": lambda: FlowPolicy(SPEC, FlowConfig(PLAIN)),
    "staged": make_staged,
    "takes labels": make_base,
}


def untrained(base, **guidance):
    return AnchoredPolicy(base, Guidance(**guidance))


def stirred(base, **guidance):
    """As after some training: a residual that is not zero."""
    policy = untrained(base, **guidance)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in policy.residual.outputs:
            layer.weight.normal_(std=0.1)
    return policy.freeze()


MAKERS = {
    **{name: lambda make=make: stirred(make(), weight=2.0) for name, make in BASES.items()},
    "interval": lambda: stirred(own_policy("flow-mlp"), weight=3.0, interval=(0.2, 0.8), clip_inside=False),
    "steered": lambda: make_steered(stirred(own_policy("flow-mlp"), weight=2.0)),
}


@pytest.fixture(params=MAKERS)
def policy(request):
    return MAKERS[request.param]()


class TestAnchored(SavedPolicyContract):
    """The same contract as that of any other."""


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_untrained_it_is_its_base_at_every_weight_to_the_bit(make):
    base, (obs, noise) = make().freeze(), inputs(SPEC)
    expected = base.sample(obs, noise)
    policy = untrained(base).freeze()
    for weight in (*WEIGHTS, torch.linspace(0, 4, 8)):
        assert torch.equal(policy.sample(obs, noise, weight), expected), weight


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_weight_0_is_the_base_to_the_bit_whatever_was_learned(make):
    base, (obs, noise) = make().freeze(), inputs(SPEC)
    expected = base.sample(obs, noise)
    policy = stirred(base, weight=2.0)
    assert torch.equal(policy.sample(obs, noise, 0.0), expected)
    assert torch.equal(policy.at_weight(0.0).sample(obs, noise), expected)
    assert not torch.allclose(policy.sample(obs, noise), expected, atol=1e-3)


@pytest.mark.parametrize("case", ["flow-mlp", "diffusion-unet-sample"])
def test_weight_1_is_the_base_with_the_residual_added_to_its_network(case):
    base, (obs, noise) = own_policy(case), inputs(SPEC)
    policy = stirred(base)
    cond = base.encode(obs)
    sampler = type(base.sampler)(base.sampler.steps, base.sampler.final_clip)
    with torch.no_grad():
        expected = base.executed(sampler(Sum(base.denoiser, policy.residual), cond, noise))
    torch.testing.assert_close(policy.sample(obs, noise, 1.0), expected, atol=1e-5, rtol=1e-5)


class Sum(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *inputs):
        return self.first(*inputs) + self.second(*inputs)


def test_a_chunk_costs_two_networks_and_at_weight_0_one():
    policy, (obs, noise) = stirred(own_policy("flow-unet"), weight=2.0), inputs(SPEC)
    asked = []
    for network in (policy.base.denoiser, policy.residual):
        network.register_forward_pre_hook(lambda network, _: asked.append(network))
    for weight, networks in ((2.0, 2), (1.0, 2), (0.0, 1)):
        asked.clear()
        policy.sample(obs, noise, weight)
        assert len(asked) == networks * len(policy.base.sampler.steps), weight


def test_it_is_another_policy_than_its_base(tmp_path):
    base = load_policy(save_policy(own_policy("flow-mlp"), tmp_path / "base.pt"), device="cpu")
    policy = untrained(base, weight=2.0)
    assert not policy.spec.sha256 and base.spec.sha256
    path = save_policy(policy.freeze(), tmp_path / "anchored.pt")
    hashes = {load_policy(path, guidance_weight=weight, device="cpu").spec.sha256 for weight in (0.0, 2.0)}
    assert len(hashes | {base.spec.sha256}) == 3
    with pytest.raises(DsrlError, match="--guidance-weight is -1"):
        policy.at_weight(-1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_it_learns_what_good_means_and_leaves_its_base_alone(kind, seed):
    torch.manual_seed(seed)
    base = FlowPolicy(POINT, FlowConfig(SMALL)) if kind == "flow" else DiffusionPolicy(POINT, DiffusionConfig(SMALL))
    obs, chunk, side = two_clusters()
    base.fit_normalizers(obs, chunk)
    learn(lambda generator: base.loss(obs, chunk, generator), base)
    base.freeze()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    policy = untrained(base)
    learn(lambda generator: policy.loss(obs, chunk, (side > 0).float(), generator), policy.residual, steps=150)
    noise = torch.randn(256, 2, 1, generator=torch.Generator().manual_seed(2))
    good = {weight: float((policy.sample(obs, noise, weight).mean(1) > 0).float().mean()) for weight in (0.0, 1.0, 2.0)}
    assert 0.3 < good[0.0] < 0.7
    assert good[1.0] > 0.9 and good[2.0] > 0.95
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_bad_chunks_have_no_say():
    base, (obs, _) = own_policy("flow-mlp"), inputs(SPEC)
    chunk, labels = torch.rand(8, 8, 3), torch.tensor([0.0, 1.0] * 4)
    grads = []
    for shift in (0.0, 5.0):
        policy = untrained(base)
        other = torch.where(labels[:, None, None] > 0, chunk, chunk + shift)
        policy.loss(obs, other, labels, torch.Generator().manual_seed(0)).backward()
        grads.append([p.grad for p in policy.residual.parameters() if p.grad is not None])
    assert len(grads[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
