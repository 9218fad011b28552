"""Guidance is the same in every parametrisation, and its sampler is a plain loop with one batched call per step."""

import math
from itertools import product

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_sampler import VARIANTS, make_ddim, make_denoiser, make_inputs
from torch import nn

from dsrl.errors import DsrlError
from dsrl.guidance import Branch, Guidance, GuidedSampler, clean_chunk, clip_at_the_end, combine, convert
from dsrl.sampler import Sampler, ddim_steps, flow_steps

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")
LEVELS = {
    "variance preserving": [(math.cos(t), math.sin(t)) for t in (0.05, 0.7, 1.4)],
    "rectified flow": [(1 - sigma, sigma) for sigma in (0.02, 0.5, 0.9)],
    "EDM": [(1.0, sigma) for sigma in (0.02, 0.5, 8.0)],
}
SAMPLERS = {
    "ddim": (Sampler(ddim_steps(make_ddim(), 8)), "epsilon"),
    "ddim, noise recomputed": (Sampler(ddim_steps(make_ddim(), 8, True)), "epsilon"),
    "ddim, sample": (Sampler(ddim_steps(make_ddim("sample"), 5)), "sample"),
    "ddim, v": (Sampler(ddim_steps(make_ddim("v_prediction", clip=False), 5), final_clip=1.0), "v_prediction"),
    "flow": (Sampler(flow_steps(FlowMatchEulerDiscreteScheduler(), 8), final_clip=1.0), "flow"),
}


def make_branches(kind="mlp", other=False, dtype=torch.float32):
    """Two conditions of one network, or two networks."""
    cond, _ = make_inputs(dtype=dtype)
    denoiser = make_denoiser(kind, dtype)
    second = make_denoiser(kind, dtype) if other else denoiser
    if other:
        for weight in second.parameters():
            weight.mul_(1.1)
    return Branch(denoiser, cond), Branch(second, cond.flip(0) + 0.5)


def make_noise(dtype=torch.float32):
    return list(make_inputs(dtype=dtype))[1]


# -- the combination --------------------------------------------------------------------------------------------------


def expressed(prediction, x0, x, alpha, sigma):
    """What a perfect network says that holds ``x0`` for the clean chunk."""
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_parametrisation_guides_to_the_same_clean_chunk(prediction, weight, levels):
    generator = torch.Generator().manual_seed(0)
    x, x0, x1 = (torch.randn(64, 4, 3, generator=generator) for _ in range(3))
    wanted = x0 + weight * (x1 - x0)
    for alpha, sigma in LEVELS[levels]:
        reference, conditional = (expressed(prediction, each, x, alpha, sigma) for each in (x0, x1))
        a, b = clean_chunk(prediction, alpha, sigma)
        guided = a * x + b * combine(reference, conditional, weight)
        torch.testing.assert_close(guided, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("source", "target"), list(product(PREDICTIONS, repeat=2)))
def test_conversion_says_the_same_in_other_words(source, target, levels):
    generator = torch.Generator().manual_seed(0)
    x, x0 = (torch.randn(64, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for alpha, sigma in LEVELS[levels]:
        said = expressed(source, x0, x, alpha, sigma)
        wanted = expressed(target, x0, x, alpha, sigma)
        torch.testing.assert_close(convert(said, x, source, target, alpha, sigma), wanted, atol=1e-9, rtol=1e-9)


def test_mixing_unconverted_predictions_is_another_thing():
    x, x0, x1 = (torch.randn(64, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3))
    alpha, sigma = LEVELS["variance preserving"][1]
    reference, conditional = expressed("epsilon", x0, x, alpha, sigma), expressed("flow", x1, x, alpha, sigma)
    a, b = clean_chunk("epsilon", alpha, sigma)
    wanted = x0 + 2 * (x1 - x0)
    converted = combine(reference, convert(conditional, x, "flow", "epsilon", alpha, sigma), 2.0)
    torch.testing.assert_close(a * x + b * converted, wanted)
    assert not torch.allclose(a * x + b * combine(reference, conditional, 2.0), wanted, atol=0.1)


def test_the_combination_is_one_of_the_two_to_the_bit_and_takes_a_weight_per_row():
    reference, conditional = torch.randn(2, 50, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(combine(reference, conditional, 0.0), reference)
    assert torch.equal(combine(reference, conditional, 1.0), conditional)
    rows = torch.arange(50) / 10
    together = combine(reference, conditional, rows)
    for row, weight in enumerate(rows.tolist()):
        wanted = reference[row] + weight * (conditional[row] - reference[row])
        torch.testing.assert_close(together[row], wanted, atol=1e-5, rtol=1e-5)


# -- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("other", [False, True], ids=["one network", "two networks"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["mlp", "unet", "two stages"])
def test_weight_0_is_the_reference_and_weight_1_the_conditional_to_the_bit(kind, sampler, other, interval):
    (plain, prediction), noise = SAMPLERS[sampler], make_noise()
    reference, conditional = make_branches(kind, other)
    guided = GuidedSampler(plain, Guidance(interval=interval), prediction)
    base, good = plain(*reference, noise), Sampler(plain.steps, plain.final_clip)(*conditional, noise)
    assert not torch.equal(base, good)
    assert torch.equal(guided(reference, conditional, noise, 0.0), base)
    assert torch.equal(guided(reference, conditional, noise, 1.0), good)
    assert torch.equal(guided(reference, conditional, noise), good), "the default is the conditional"
    between = guided(reference, conditional, noise, 0.5)
    assert not torch.allclose(between, base) and not torch.allclose(between, good)


@pytest.mark.parametrize("sampler", ["ddim, v", "flow"])
@pytest.mark.parametrize("kind", ["mlp", "unet", *VARIANTS])
def test_the_guided_chunk_is_that_of_a_plain_loop(kind, sampler):
    """One batched call per step gives what a network that combines two calls gives."""
    (plain, prediction), noise = SAMPLERS[sampler], make_noise(torch.float64)
    reference, conditional = make_branches(kind, dtype=torch.float64)

    class Guided(nn.Module):
        def forward(self, x, t, cond):
            first, second = (branch.denoiser(x, t, branch.cond) for branch in (reference, conditional))
            return first + 2.5 * (second - first)

    guided = GuidedSampler(plain, Guidance(2.5), prediction)(reference, conditional, noise)
    torch.testing.assert_close(guided, plain(Guided(), reference.cond, noise), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("pair", list(product(("epsilon", "sample", "v_prediction"), PREDICTIONS)), ids="-".join)
def test_networks_that_predict_different_things_are_guided_to_the_same_chunk(pair, clip):
    """Also when clipped: what is clipped is the guided estimate, which all of them share."""
    cond, noise = make_inputs(dtype=torch.float64)

    class Oracle(nn.Module):
        """Holds ``target`` for the clean chunk, whatever it sees, and says it in its own way."""

        def __init__(self, prediction, target):
            super().__init__()
            self.prediction, self.target = prediction, target

        def forward(self, x, t, cond):
            alpha_bar = make_ddim().alphas_cumprod[int(t)]
            return expressed(self.prediction, self.target + 0.3 * x.sin(), x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

    chunks = []
    for first, second in (pair, ("sample", "sample")):
        plain = Sampler(ddim_steps(make_ddim(first, clip, clip_sample_range=0.9), 8))
        branches = Branch(Oracle(first, 0.2), cond), Branch(Oracle(second, 0.7), cond)
        guided = GuidedSampler(plain, Guidance(1.5), first, second)
        chunks.append(guided(*branches, noise))
    torch.testing.assert_close(*chunks, atol=1e-5, rtol=1e-5)
    assert (chunks[0].abs() > 0.9).any() != clip, "clipping is what makes the difference"


class Counting(nn.Module):
    """Remembers how many rows it was asked for."""

    def __init__(self):
        super().__init__()
        self.network, self.rows = make_denoiser("unet"), []

    def forward(self, x, t, cond):
        self.rows.append(len(x))
        return self.network(x, t, cond)


def test_one_network_is_asked_once_per_step_and_only_for_what_counts():
    sampler, prediction = SAMPLERS["flow"]
    counting, (cond, noise) = Counting(), make_inputs()
    branches = Branch(counting, cond), Branch(counting, cond + 1)

    def rows(weight, **guidance):
        counting.rows = []
        GuidedSampler(sampler, Guidance(weight, **guidance), prediction)(*branches, noise)
        return counting.rows

    assert rows(0.0) == rows(1.0) == [5] * 8
    assert rows(3.0) == rows(0.5) == [10] * 8
    # the noise levels of the eight Euler steps are 1, 7/8 ... 1/8
    assert rows(3.0, interval=(0.3, 0.7)) == [5] * 3 + [10] * 3 + [5] * 2
    assert rows(0.5, interval=(0.3, 0.7)) == [10] * 8


def test_outside_the_interval_nothing_is_exaggerated():
    guidance = Guidance(3.0, (0.2, 0.6))
    assert [guidance.weight_at(level, 3.0) for level in (0.1, 0.2, 0.6, 0.61)] == [1.0, 3.0, 3.0, 1.0]
    assert [guidance.weight_at(level, 0.5) for level in (0.1, 0.2, 0.6, 0.61)] == [0.5] * 4
    rows = torch.tensor([0.0, 0.5, 3.0])
    assert guidance.weight_at(0.1, rows).tolist() == [0.0, 0.5, 1.0]
    assert guidance.weight_at(0.3, rows) is rows


def test_noise_levels_mean_the_same_for_diffusion_and_flow():
    for step in ddim_steps(make_ddim(spacing="trailing"), 8):
        ratio = step.sigma / step.alpha
        assert step.noise_level == pytest.approx(ratio / (1 + ratio), abs=1e-6)
    levels = [step.noise_level for step in flow_steps(FlowMatchEulerDiscreteScheduler(), 4)]
    assert levels == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("other", [False, True], ids=["one network", "two networks"])
def test_a_weight_per_row_is_a_loop_over_weights(other):
    sampler, prediction = SAMPLERS["ddim"]
    (reference, conditional), noise = make_branches(other=other), make_noise()
    guided = GuidedSampler(sampler, Guidance(interval=(0.0, 0.7)), prediction)
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0])
    together = guided(reference, conditional, noise, weights)
    for row, weight in enumerate(weights.tolist()):
        single = guided(reference, conditional, noise, weight)[row]
        torch.testing.assert_close(together[row], single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipping_at_the_end_only_is_the_unclipped_chain(prediction, use_clipped):
    (reference, conditional), noise = make_branches(dtype=torch.float64), make_noise(torch.float64)
    clipped = Sampler(ddim_steps(make_ddim(prediction, clip_sample_range=0.3), 8, use_clipped))
    free = Sampler(ddim_steps(make_ddim(prediction, clip=False), 8, use_clipped))
    for weight in (0.0, 1.0, 3.0):
        outside = GuidedSampler(clipped, Guidance(weight, clip_inside=False), prediction, clip_range=0.3)
        wanted = GuidedSampler(free, Guidance(weight), prediction)(reference, conditional, noise)
        torch.testing.assert_close(
            outside(reference, conditional, noise), wanted.clamp(-0.3, 0.3), atol=1e-6, rtol=1e-6
        )
        inside = GuidedSampler(clipped, Guidance(weight), prediction)(reference, conditional, noise)
        assert not torch.allclose(outside(reference, conditional, noise), inside, atol=1e-3), "it is another sampler"
    assert clip_at_the_end(free).steps == free.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -0.5}, "--guidance-weight is -0.5; it must be finite and not negative"),
        ({"weight": float("nan")}, "--guidance-weight is nan"),
        ({"interval": (0.6, 0.2)}, "the lower one first"),
        ({"interval": (0.0, 80.0)}, r"interval is \(0.0, 80.0\)"),
        ({"interval": (0.5,)}, "two noise levels"),
    ],
)
def test_impossible_guidance_is_refused(options, message):
    with pytest.raises(DsrlError, match=message):
        Guidance(**options)


def test_a_negative_weight_is_refused_at_call_time_too():
    (sampler, prediction), branches = SAMPLERS["flow"], make_branches()
    with pytest.raises(DsrlError, match="--guidance-weight is -1"):
        GuidedSampler(sampler, Guidance(), prediction)(*branches, make_noise(), -1.0)


def test_impossible_conversions_are_refused():
    sampler, _ = SAMPLERS["flow"]
    with pytest.raises(ValueError, match="where no signal is left"):
        GuidedSampler(sampler, Guidance(), "flow", "epsilon")
    with pytest.raises(ValueError, match="unknown prediction 'eps'"):
        GuidedSampler(sampler, Guidance(), "flow", "eps")
    with pytest.raises(ValueError, match="where no noise is left"):
        convert(torch.zeros(1), torch.zeros(1), "sample", "epsilon", 1.0, 0.0)
