"""The guidance weight as a part of the noise, and weights that a policy is not meant for."""

import pytest
import torch
from contract import FrozenPolicyContract, check_a_move
from specimens import SPEC, inputs

from dsrl.cfgrl import GuidedPolicy
from dsrl.diffusion import FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.guidance import Guidance
from dsrl.pretrained import load_policy, save_policy
from dsrl.weighted import WeightedPolicy


def guided(weight=1.0):
    torch.manual_seed(0)
    base = FlowPolicy(SPEC, FlowConfig({"type": "mlp", "hidden_dims": [32, 32, 32]}, label_dim=2))
    return GuidedPolicy(base, Guidance(weight)).freeze()


@pytest.fixture
def policy():
    return WeightedPolicy(guided(), 3.0)


class TestWeighted(FrozenPolicyContract):
    """One number more in the noise."""

    def test_it_works_where_it_is_moved(self, policy, given):
        check_a_move(policy, *given)


def test_the_last_number_of_the_noise_is_the_weight(policy):
    obs, noise = inputs(policy.spec)
    inner = noise[:, :-1].unflatten(1, policy.base.spec.noise_shape)
    for chosen, weight in ((-9.0, 0.0), (-1.5, 0.0), (-0.75, 0.5), (0.0, 1.0), (0.75, 2.0), (1.5, 3.0), (9.0, 3.0)):
        noise[:, -1] = chosen
        assert torch.allclose(policy.weight(noise[:, -1]), torch.tensor(weight))
        torch.testing.assert_close(
            policy.sample(obs, noise), policy.base.sample(obs, inner, weight), atol=2e-5, rtol=0, msg=f"weight {weight}"
        )


def test_it_is_loaded_from_the_file_of_the_guided_policy(policy, tmp_path):
    path = save_policy(policy.base, tmp_path / "guided.pt")
    loaded = load_policy(path, steer_guidance=3.0, device="cpu")
    obs, noise = inputs(policy.spec)
    assert torch.equal(loaded.sample(obs, noise), policy.sample(obs, noise))
    hashes = {load_policy(path, steer_guidance=most, device="cpu").spec.sha256 for most in (None, 2.0, 3.0)}
    assert len(hashes) == 3, "an agent must not take one for another"
    again = load_policy(save_policy(loaded, tmp_path / "weighted.pt"), device="cpu")
    assert torch.equal(again.sample(obs, noise), loaded.sample(obs, noise))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"steer_guidance": -1.0}, "--steer-guidance is -1.0; it must be finite and not negative"),
        ({"steer_guidance": 0.5}, "--steer-guidance is 0.5, less than 1, the weight of .*guided.pt itself"),
    ],
)
def test_weights_that_cannot_be_are_refused(load, message, tmp_path):
    path = save_policy(guided(), tmp_path / "guided.pt")
    with pytest.raises(DsrlError, match=message):
        load_policy(path, device="cpu", **load)


def test_a_policy_that_is_not_guided_has_no_weight_to_steer(policy, tmp_path):
    path = save_policy(policy.base.base, tmp_path / "flow.pt")
    with pytest.raises(DsrlError, match=r"--steer-guidance is 3.0, but .*flow.pt holds a policy of kind 'flow'"):
        load_policy(path, device="cpu", steer_guidance=3.0)


def test_a_weight_beyond_what_it_is_meant_for_is_warned_of(tmp_path):
    path = save_policy(guided(), tmp_path / "guided.pt")
    with pytest.warns(UserWarning, match="guidance weight 3.5 lies above 3"):
        load_policy(path, device="cpu", guidance_weight=3.5)
    with pytest.warns(UserWarning, match="guidance weight 4 lies above 3"):
        load_policy(path, device="cpu", steer_guidance=4.0)
