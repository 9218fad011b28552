"""Policy guidance: its schedule, what it leaves alone, and the mean that it leads Gaussian data to."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from dsrl.edm import EDMConfig
from dsrl.errors import DsrlError
from dsrl.policy_guidance import PolicyGuidance, drift
from dsrl.trajectory_diffusion import (
    PRESETS,
    TrajectoryConfig,
    TrajectoryDiffusion,
    load_model,
    save_model,
    wide_enough,
)
from dsrl.trajectory_windows import Layout

N = 12


class Quadratic:
    """``log pi = -(u - mean)^2 / 2`` in ``u = arctanh(action)``, so that everything stays linear."""

    def __init__(self, mean):
        self.mean = mean

    def drawn(self, n_windows, generator):
        torch.rand(3, generator=generator)  # as a target that needs random numbers would
        return self

    def score(self, obs, action, sigma):
        return (self.mean - torch.atanh(action)) / (1 - action.square())

    def log_prob(self, obs, action):
        return -(torch.atanh(action) - self.mean).square().sum(dim=-1) / 2


def gaussian_model(churn=0.0, seed=0):
    """A network that says nothing is the exact denoiser of ``N(0, I)``."""
    torch.manual_seed(seed)
    config = TrajectoryConfig(Layout(2, 1, 4), PRESETS["tiny"], EDMConfig(sampling_steps=N, churn=churn))
    model = TrajectoryDiffusion(config, -torch.ones(1), torch.ones(1))
    for output in model.network.outputs:
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.zeros_(output.bias)
    return model.freeze()


def sample(model, target=None, guidance=None, count=64):
    return model.sample(count, torch.Generator().manual_seed(1), target, guidance)


def guided_mean(target, guidance, sigmas, start=0.0):
    """Mean of the action channel at the end: all steps are affine, so the mean follows them by itself."""
    x = estimate = start
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        if 0 < k < N - 1:
            bump = 1 - k / N + guidance.cosine * math.sin(math.pi * (k + 1) / N)
            if guidance.schedule == "noise":
                bump = sigma - after
            x += guidance.weight * bump * (target - (estimate if guidance.at_denoised else x))
        slope = (x - x / (1 + sigma**2)) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0:
            estimate = ahead / (1 + after**2)
            ahead = x + (after - sigma) * (slope + (ahead - estimate) / after) / 2
        x = ahead
    return x


def test_the_schedules_are_that_of_the_paper_and_the_steps_of_the_noise_and_end_in_zero():
    sigmas = [80.0, 8.0, 1.0, 0.1, 0.0]
    half = math.sin(math.pi / 4)
    paper = PolicyGuidance(2.0, "cosine", cosine=0.3)
    expected = [2 * (1 + 0.3 * half), 2 * (0.75 + 0.3), 2 * (0.5 + 0.3 * half), 0.0]
    assert [paper.weight_at(k, sigmas) for k in range(4)] == pytest.approx(expected)
    assert [PolicyGuidance(0.5).weight_at(k, sigmas) for k in range(4)] == pytest.approx([36.0, 3.5, 0.45, 0.0])


def test_a_normalised_drift_is_as_long_as_its_weight_and_nothing_moves_without_a_gradient():
    x, gradient = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    gradient[1] = 0
    moved = drift(x, gradient, 0.7, normalize=True) - x
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.tensor([0.7, 0.0, 0.7]))
    assert drift(x, gradient / 0, 0.0, normalize=True) is x
    torch.testing.assert_close(drift(x, gradient, 0.7, normalize=False), x + 0.7 * gradient)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(DsrlError, match=r"--guidance.weight"):
        PolicyGuidance(weight=weight)


def test_weight_zero_is_unguided_sampling_to_the_bit():
    model = gaussian_model(churn=10.0)
    plain = sample(model)
    for schedule, normalize in product(("noise", "cosine"), (True, False)):
        guided = sample(model, Quadratic(1.0), PolicyGuidance(0.0, schedule, normalize=normalize))
        assert all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
    moved = sample(model, Quadratic(1.0), PolicyGuidance(0.1))
    assert not torch.equal(plain.action, moved.action)
    assert torch.equal(plain.obs, moved.obs), "this denoiser knows no other channel than each for itself"


@pytest.mark.parametrize("schedule", ["noise", "cosine"])
@pytest.mark.parametrize("at_denoised", [True, False])
def test_gaussian_data_and_a_quadratic_target_give_the_mean_in_closed_form(at_denoised, schedule):
    model = gaussian_model()
    # small angles: arctanh is finite even where there is nothing but noise. A gradient with respect to the channel has
    # two factors of the scale, which the weight makes up for
    scale = 0.01
    model.codec.scale[2] = scale

    def mean(guidance=None):
        action = sample(model, Quadratic(scale * 0.8), guidance).action.double()
        return float(torch.atanh(action).mean()) / scale

    plain, means = mean(), [0.0]
    for weight in (0.02, 0.05, 0.1):
        guidance = PolicyGuidance(weight, schedule, normalize=False, at_denoised=at_denoised)
        expected, swing = (guided_mean(0.8, guidance, model.edm.sigmas, start) for start in (0.0, 1.0))
        # what was not zero in the mean of the noise fades as everything else does
        noise = 80 * plain / guided_mean(0.0, replace(guidance, weight=0.0), model.edm.sigmas, 80.0)
        expected += (swing - expected) * noise
        assert mean(replace(guidance, weight=weight / scale**2)) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        means.append(guided_mean(0.8, guidance, model.edm.sigmas))
    assert means == sorted(means) and 0.15 < means[-1] < 0.8, "from the mean of the data towards that of the target"


def test_the_gradient_is_that_of_the_log_probability_and_only_of_actions():
    model = gaussian_model()
    model.codec.scale.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0]))
    x = torch.randn(2, 5, 5, requires_grad=True)
    target = Quadratic(0.3)
    target.log_prob(None, model.codec.actions(x)).sum().backward()
    gradient = model.policy_gradient(x.detach(), target, 1.0)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)
    assert not gradient[:, -1].any() and not gradient[..., [0, 1, 3, 4]].any()


def test_a_model_comes_back_from_its_files(tmp_path):
    model = gaussian_model(churn=10.0)
    save_model(model, tmp_path / "m.model")
    assert {path.name for path in (tmp_path / "m.model").iterdir()} == {"config.json", "weights.safetensors"}
    again = load_model(tmp_path / "m.model")
    assert all(torch.equal(a, b) for a, b in zip(sample(model), sample(again), strict=True))
    (tmp_path / "m.model" / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(DsrlError, match="damaged trajectory model"):
        load_model(tmp_path / "m.model")
    with pytest.raises(DsrlError, match=r"no trajectory model: it lacks config.json"):
        load_model(tmp_path)


def test_the_network_is_as_wide_as_its_rows_want_and_rows_pass_beside_it():
    assert wide_enough((16, 32), 8) == (32, 64) and wide_enough((32, 64), 8) == (32, 64)
    assert wide_enough((32, 64), 20) == (64, 128) and wide_enough((32, 64), 34) == (72, 136)
    config = TrajectoryConfig(Layout(19, 7, 4), PRESETS["tiny"])
    assert TrajectoryDiffusion(config, -torch.ones(7), torch.ones(7)).network.config["down_dims"] == (64, 128)
    model, x = gaussian_model(), torch.randn(2, 5, 5)
    assert not model._predict(x, torch.zeros(2), None).any()
    model.gain[2].bias.copy_(torch.arange(5.0))
    torch.testing.assert_close(model._predict(x, torch.zeros(2), None), torch.arange(5.0) * x)


def test_a_conditional_network_is_told_the_first_observation_or_nothing():
    def conditional(drop_start):
        config = TrajectoryConfig(Layout(2, 1, 3), PRESETS["tiny"], EDMConfig(sampling_steps=3), True, drop_start)
        model = TrajectoryDiffusion(config, -torch.ones(1), torch.ones(1))
        model.codec.offset[:2], model.codec.scale[:2] = 5.0, 2.0
        return model

    def learned_about_starts(model):
        model.loss(torch.randn(16, 4, 5), torch.Generator().manual_seed(0)).backward()
        layers = [m for name, m in model.network.named_modules() if name.endswith("cond_encoder.1")]
        return sum(float(layer.weight.grad[:, PRESETS["tiny"]["time_dim"] :].abs().sum()) for layer in layers)

    assert learned_about_starts(conditional(0.0)) > 0 and learned_about_starts(conditional(1.0)) == 0
    model, told = conditional(0.25).freeze(), []
    model.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    start, generator = torch.tensor([[5.0, 9.0], [1.0, 5.0]]), torch.Generator().manual_seed(0)
    model.sample(2, generator, start=start)
    assert torch.equal(told[-1], torch.tensor([[0.0, 2.0, 1.0], [-2.0, 0.0, 1.0]]))
    model.sample(2, generator)
    assert torch.equal(told[-1], torch.zeros(2, 3))
    with pytest.raises(DsrlError, match="without first observations"):
        gaussian_model().sample(2, generator, start=torch.zeros(2, 2))
