"""What every frozen policy promises, wherever it comes from; test modules inherit it and give a ``policy``."""

from copy import deepcopy

import pytest
import torch
from specimens import inputs

from dsrl.policy import FrozenPolicy
from dsrl.pretrained import describe, load_policy, save_policy

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROUNDING = 2e-5
"""environment units between a batch of 8 and its singles, whose sums run in another order; 1.2e-5 was seen"""


def check_a_move(policy, obs, noise):
    """The meta device stands for a GPU: a tensor that was made on the CPU does not mix with its tensors."""
    policy = deepcopy(policy)
    cond = policy.encode(obs)
    policy.decode(cond, noise)  # what is remembered from before the move must not be used after it
    chunk = policy.to("meta").decode(cond.to("meta"), noise.to("meta"))
    assert policy.device.type == chunk.device.type == "meta"


class FrozenPolicyContract:
    @pytest.fixture
    def given(self, policy):
        """Observations and noise for it."""
        return inputs(policy.spec)

    def test_it_is_a_frozen_policy(self, policy):
        assert isinstance(policy, FrozenPolicy)
        assert not [name for name, parameter in policy.named_parameters() if parameter.requires_grad]

    def test_declared_shapes(self, policy, given):
        obs, noise = given
        cond = policy.encode(obs)
        chunk = policy.decode(cond, noise)
        assert cond.shape == (8, policy.cond_dim) and cond.dtype == torch.float32
        assert chunk.shape == (8, policy.spec.n_action_steps, policy.spec.action_dim)
        assert chunk.dtype == torch.float32 and chunk.device == policy.device and torch.isfinite(chunk).all()
        assert not chunk.requires_grad

    @CUDA
    def test_a_gpu_plays_the_same(self, policy, given):
        moved, (obs, noise) = deepcopy(policy).to("cuda"), given
        chunk = moved.sample(obs.to("cuda"), noise.to("cuda"))
        assert chunk.device.type == "cuda" and chunk.dtype == torch.float32
        torch.testing.assert_close(chunk.cpu(), policy.sample(obs, noise), atol=1e-4, rtol=1e-4)

    def test_same_noise_same_chunk(self, policy, given):
        obs, noise = given
        first = policy.sample(obs, noise)
        torch.randn(100)  # the global generator plays no part
        assert torch.equal(first, policy.sample(obs, noise))
        assert torch.equal(first, policy.decode(policy.encode(obs), noise))

    def test_different_noise_different_chunk(self, policy, given):
        obs, noise = given
        # a constant shift: white noise averages out over the horizon of an untrained network
        assert not torch.allclose(policy.sample(obs, noise), policy.sample(obs, noise + 1), atol=1e-3)

    def test_a_batch_is_its_singles(self, policy, given):
        obs, noise = given
        singles = torch.cat([policy.sample(obs[i : i + 1], noise[i : i + 1]) for i in range(len(obs))])
        torch.testing.assert_close(policy.sample(obs, noise), singles, atol=ROUNDING, rtol=0)

    def test_a_dict_is_its_concatenation(self, policy, given):
        obs, noise = given
        shapes = policy.spec.obs_shapes
        parts = obs.split([torch.Size(shape).numel() for shape in shapes.values()], dim=-1)
        named = {key: part.unflatten(-1, shapes[key]) for key, part in zip(shapes, parts, strict=True)}
        named = dict(reversed(named.items()))
        assert torch.equal(policy.sample(obs, noise), policy.sample(named, noise))

    def test_inputs_are_left_alone(self, policy, given):
        obs, noise = given
        kept = obs.clone(), noise.clone()
        policy.sample(obs, noise)
        assert torch.equal(obs, kept[0]) and torch.equal(noise, kept[1])

    def test_a_critic_can_learn_on_what_it_returns(self, policy, given):
        obs, noise = given
        cond = policy.encode(obs)
        chunk = policy.decode(cond, noise)
        critic = torch.nn.Linear(policy.cond_dim + policy.spec.action_dim, 1)
        critic(torch.cat([cond, chunk[:, 0]], dim=-1)).sum().backward()
        assert torch.isfinite(critic.weight.grad).all()

    def test_wrong_noise_is_explained(self, policy, given):
        obs, noise = given
        with pytest.raises(ValueError, match=r"noise has shape .*this policy denoises"):
            policy.sample(obs, noise[:, :-1])
        with pytest.raises(ValueError, match="observation has shape"):
            policy.sample(obs[..., :-1], noise)

    def test_nan_is_named(self, policy, given):
        obs, noise = given
        last, (key, shape) = policy.spec.n_obs_steps - 1, next(iter(policy.spec.obs_shapes.items()))
        index = torch.Size(shape).numel() - 1
        obs[3, -1, index] = float("nan")
        with pytest.raises(ValueError, match=rf"observation '{key}'\[{index}\] is nan \(row 3, step {last}\)"):
            policy.sample(obs, noise)


class SavedPolicyContract(FrozenPolicyContract):
    """Of policies in our own format."""

    def test_it_works_where_it_is_moved(self, policy, given):
        check_a_move(policy, *given)

    def test_save_and_load_change_nothing(self, policy, given, tmp_path):
        obs, noise = given
        loaded = load_policy(save_policy(policy, tmp_path / "ckpt.pt"), device="cpu")
        assert torch.equal(policy.sample(obs, noise), loaded.sample(obs, noise))
        assert loaded.kind == policy.kind and loaded.config_dict() == policy.config_dict()
        assert loaded.spec.noise_shape == policy.spec.noise_shape
        assert list(loaded.spec.obs_shapes.items()) == list(policy.spec.obs_shapes.items())
        assert len(loaded.spec.sha256) == 64
        rows = dict(describe(tmp_path / "ckpt.pt"))
        assert rows["kind"] == policy.kind and "parameters" in rows["network"]
