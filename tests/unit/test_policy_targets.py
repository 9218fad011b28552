"""Policies as targets: what they find likely, against torch's own distributions and closed forms."""

import math

import pytest
import torch

from dsrl.awr import GaussianConfig, GaussianPolicy
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.policy_targets import GaussianTarget, SampledTarget, ScoreTarget, histories, make_target, noise_level
from dsrl.pretrained.toy import ToyPolicy

SPEC = PolicySpec({"obs": (3,)}, action_dim=2, horizon=4, n_action_steps=2, n_obs_steps=2, action_start=1)
SMALL = {"type": "mlp", "hidden_dims": [16, 16, 16]}


def windows(count=3, steps=6, obs_dim=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, steps + 1, obs_dim, generator=generator), torch.rand(count, steps, 2, generator=generator)


def test_a_policy_sees_its_last_observations_at_every_decision():
    obs = torch.arange(7.0).reshape(1, 7, 1).expand(2, -1, 3)
    seen = histories(obs, SPEC)
    assert seen.shape == (6, 2, 3)
    assert seen[:3, :, 0].tolist() == [[0, 0], [1, 2], [3, 4]]
    with pytest.raises(DsrlError, match="--window is 5 env steps, the policy plays chunks of 2"):
        histories(obs[:, :6], SPEC)


def test_a_gaussian_policy_is_a_normal_distribution():
    torch.manual_seed(0)
    policy = GaussianPolicy(SPEC, GaussianConfig({"type": "gaussian", "hidden_dims": [8]}))
    policy.action_normalizer.scale.copy_(torch.tensor([2.0, 0.5]))
    policy.action_normalizer.offset.copy_(torch.tensor([0.3, -0.1]))
    policy.denoiser.log_std.data.copy_(torch.randn(4, 2) / 3)
    policy.freeze()
    obs, action = windows()
    target = make_target(policy, "auto", 0.1)
    assert isinstance(target, GaussianTarget)
    # what it plays with noise 0 is its mean; one more unit of noise is a standard deviation more
    seen = histories(obs, SPEC)
    policy.sampler.final_clip = None
    mean, above = (policy.sample(seen, torch.full((len(seen), 4, 2), v)).reshape(3, 6, 2) for v in (0.0, 1.0))
    normal = torch.distributions.Normal(mean, above - mean)
    wanted = action.clone().requires_grad_()
    log_prob = normal.log_prob(wanted).sum(-1)
    log_prob.sum().backward()
    torch.testing.assert_close(target.log_prob(obs, action), log_prob.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target.score(obs, action, 1.0), wanted.grad, rtol=1e-4, atol=1e-4)


def test_samples_of_any_policy_make_a_mixture_of_gaussians():
    policy = ToyPolicy()
    obs, action = windows(2, 8, 4)
    target = make_target(policy, "auto", std=0.2, samples=5)
    assert isinstance(target, SampledTarget)
    settled = target.drawn(2, torch.Generator().manual_seed(3))
    first, again = (settled.score(obs, action, sigma) for sigma in (1.0, 0.1))
    assert torch.equal(first, again), "the noise of a window stays while it is denoised"
    chunk = action + first * 0.2**2
    torch.testing.assert_close(chunk.norm(dim=-1), torch.ones(2, 8))  # the toy policy plays at full speed
    assert not torch.equal(first, target.drawn(2, torch.Generator().manual_seed(4)).score(obs, action, 1.0))
    # at the sampled chunks themselves the mixture is high, far from all of them it is low
    likely, unlikely = target.log_prob(obs, chunk), target.log_prob(obs, torch.zeros_like(chunk))
    assert likely.shape == (2, 8) and likely.mean() > unlikely.mean() + 1
    one = SampledTarget(policy, 0.2, samples=1).log_prob(obs, torch.zeros_like(chunk))
    expected = (-0.5 / 0.04 - 2 * math.log(0.2) - math.log(2 * math.pi)) * torch.ones(2, 8)
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(DsrlError, match="--target is score, which a policy of kind 'toy' cannot be"):
        make_target(policy, "score", 0.2)


class Exact(torch.nn.Module):
    """What a perfect network predicts for normalised chunks from ``N(mean, std^2)``."""

    def __init__(self, policy, mean, std):
        super().__init__()
        self.level = lambda t: (1 - t / 1000, t / 1000)
        if isinstance(policy, DiffusionPolicy):
            kept = policy.train_scheduler.alphas_cumprod
            self.level = lambda t: (kept[int(t)] ** 0.5, (1 - kept[int(t)]) ** 0.5)
        self.mean, self.std, self.flow = mean, std, isinstance(policy, FlowPolicy)

    def forward(self, x, t, cond):
        alpha, sigma = self.level(float(t.reshape(-1)[0]))
        var = self.std**2
        clean = (self.mean * sigma**2 + alpha * var * x) / (sigma**2 + alpha**2 * var)
        noise = (x - alpha * clean) / sigma
        return noise - clean if self.flow else noise


@pytest.mark.parametrize("kind", [FlowPolicy, DiffusionPolicy])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 3.0])
def test_the_score_of_a_policy_is_that_of_its_blurred_actions(kind, sigma):
    config = {FlowPolicy: FlowConfig(SMALL), DiffusionPolicy: DiffusionConfig(SMALL)}[kind]
    policy = kind(SPEC, config).freeze()
    policy.action_normalizer.scale.copy_(torch.tensor([2.0, 0.5]))
    policy.denoiser, policy.box = Exact(policy, 0.4, 0.3), None
    obs, action = windows()
    target = make_target(policy, "auto", 0.1)
    assert isinstance(target, ScoreTarget)
    alpha, noise, _ = noise_level(policy, max(sigma, target.least))
    blurred = 0.3**2 + (noise / alpha) ** 2
    assert noise / alpha == pytest.approx(max(sigma, 0.1), rel=0.35), "a diffusion policy has few levels"
    y = policy.action_normalizer.normalize(action)
    expected = (0.4 - y) / blurred / policy.action_normalizer.scale
    torch.testing.assert_close(target.score(obs, action, sigma), expected, rtol=1e-3, atol=1e-3)
