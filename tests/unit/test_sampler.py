"""Our sampling loop gives what the loop over diffusers' scheduler gives."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from dsrl.networks import ConditionalUnet1D, MLPDenoiser, build_denoiser
from dsrl.sampler import Sampler, _mish, ddim_steps, flow_steps

DA, TP, C = 3, 4, 6
PREDICTIONS = ("epsilon", "sample", "v_prediction")


MLP, UNET = {"type": "mlp", "hidden_dims": (32,) * 5}, {"type": "unet", "down_dims": (16, 32), "time_dim": 8}
VARIANTS = {
    "encoder": {**MLP, "cond_mlp_dims": (16, 8)},
    "relu": {**MLP, "activation": "ReLU"},
    "layer norm": {**MLP, "layer_norm": True},
    "plain mlp": {"type": "plain_mlp", "hidden_dims": (32, 16), "layer_norm": True, "cond_mlp_dims": (8,)},
    "large encoder": {**UNET, "large_encoder": True, "group_norm_eps": 1e-2},
    "no groups": {**UNET, "n_groups": None, "cond_predict_scale": False, "cond_mlp_dims": (16, 8)},
    "two stages": {"type": "staged", "network": MLP, "switch": 7},
}


def make_denoiser(kind, dtype=torch.float32):
    torch.manual_seed(0)
    if kind in VARIANTS:
        network = build_denoiser({**VARIANTS[kind], "action_dim": DA, "horizon": TP, "cond_dim": C})
    elif kind == "mlp":
        network = MLPDenoiser(DA, TP, C, (32,) * 5)
    elif kind == "one block":
        network = MLPDenoiser(DA, TP, C, (64,) * 3)
    else:
        # two channels per group: of a single one, group normalisation would mostly show its rounding
        network = ConditionalUnet1D(DA, TP, C, (16, 32), time_dim=8)
    return network.to(dtype).eval().requires_grad_(False)


def make_inputs(batch=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, *shape, generator=generator).to(dtype) for shape in ((C,), (TP, DA)))


@torch.no_grad()
def diffusers_loop(denoiser, scheduler, cond, x, **options):
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t, cond), t, x, **options).prev_sample
    return x


def make_ddim(prediction="epsilon", clip=True, spacing="leading", train_steps=20, **more):
    return DDIMScheduler(
        train_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=clip,
        timestep_spacing=spacing,
        **more,
    )


def check_ddim(denoiser, scheduler, n_steps, use_clipped, tolerance=1e-5, dtype=torch.float32):
    cond, noise = make_inputs(dtype=dtype)
    sampler = Sampler(ddim_steps(scheduler, n_steps, use_clipped))
    ours = sampler(denoiser, cond, noise)
    theirs = diffusers_loop(denoiser, scheduler, cond, noise, eta=0.0, use_clipped_model_output=use_clipped)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["mlp", "one block", "unet"])
@pytest.mark.parametrize(("clip", "use_clipped"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_equals_diffusers(kind, prediction, clip, use_clipped):
    denoiser = make_denoiser(kind)
    for n_steps in (1, 5, 8):
        check_ddim(denoiser, make_ddim(prediction, clip), n_steps, use_clipped)


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_equals_diffusers(kind):
    denoiser = make_denoiser(kind)
    for n_steps in (1, 5, 8):
        check_ddim(denoiser, make_ddim(), n_steps, True)


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_is_another_network(kind):
    """No option of the above is ignored: the weights are those of the plain one wherever both have them."""
    cond, noise = make_inputs()
    plain = make_denoiser("mlp" if VARIANTS[kind]["type"] in ("mlp", "staged") else "unet")
    variant = make_denoiser(kind)
    variant.load_state_dict({k: v for k, v in plain.state_dict().items() if fits(variant, k, v)}, strict=False)
    assert not torch.allclose(variant(noise, torch.tensor(3), cond), plain(noise, torch.tensor(3), cond), atol=1e-4)
    assert build_denoiser(variant.config).load_state_dict(variant.state_dict())


def fits(network, name, tensor):
    other = network.state_dict().get(name)
    return other is not None and other.shape == tensor.shape


def test_two_stages_change_at_the_switch():
    cond, noise = make_inputs()
    staged, times = make_denoiser("two stages"), torch.tensor([0, 6, 7, 8, 19])
    together = staged(noise, times, cond)
    for row, time in enumerate(times.tolist()):
        network = staged.late if time < 7 else staged.early
        assert staged.at(time) is network
        torch.testing.assert_close(together[row], network(noise, times, cond)[row])


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize(("clip", "use_clipped"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_trailing_spacing_equals_diffusers(kind, prediction, clip, use_clipped):
    # in double precision: the last level multiplies rounding by 400, so float32 would show the order of additions
    denoiser = make_denoiser(kind, torch.float64)
    for train_steps, n_steps in ((20, 8), (20, 5), (100, 8), (30, 30)):
        scheduler = make_ddim(prediction, clip, "trailing", train_steps)
        check_ddim(denoiser, scheduler, n_steps, use_clipped, tolerance=1e-5, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False},
        {"steps_offset": 1},
        {"clip_sample_range": 0.5},
        {"spacing": "linspace"},
        {"prediction": "v_prediction", "spacing": "trailing", "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_every_scheduler_option_counts(options):
    for use_clipped in (False, True):
        check_ddim(make_denoiser("mlp"), make_ddim(**options), 8, use_clipped)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize(("n_steps", "shift"), [(1, 1.0), (8, 1.0), (10, 3.0)])
def test_flow_equals_diffusers(kind, n_steps, shift):
    denoiser = make_denoiser(kind)
    cond, noise = make_inputs()
    ours = Sampler(flow_steps(FlowMatchEulerDiscreteScheduler(shift=shift), n_steps))(denoiser, cond, noise)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / n_steps, n_steps).tolist())
    torch.testing.assert_close(ours, diffusers_loop(denoiser, scheduler, cond, noise), atol=1e-5, rtol=1e-5)


def test_large_batches_equal_small_ones():
    denoiser, sampler = make_denoiser("mlp"), Sampler(ddim_steps(make_ddim(), 8))
    cond, noise = make_inputs(batch=400)  # many enough for the other way of computing mish
    small = torch.cat([sampler(denoiser, *pair) for pair in zip(cond.split(50), noise.split(50), strict=True)])
    torch.testing.assert_close(sampler(denoiser, cond, noise), small, atol=1e-5, rtol=1e-5)


def test_mish_is_mish_everywhere():
    x = torch.linspace(-200, 200, 40_001)
    torch.testing.assert_close(_mish(x), torch.nn.functional.mish(x), atol=1e-6, rtol=1e-6)


def test_the_final_clip_binds():
    cond, noise = make_inputs()
    chunk = Sampler(flow_steps(FlowMatchEulerDiscreteScheduler(), 4), final_clip=0.3)(make_denoiser("mlp"), cond, noise)
    assert chunk.abs().max() == pytest.approx(0.3)


@pytest.mark.parametrize("assign", [False, True])
def test_new_weights_are_folded_again(assign):
    denoiser, other = make_denoiser("mlp"), make_denoiser("mlp")
    for weight in other.parameters():
        weight.mul_(1.1)
    cond, noise = make_inputs()
    sampler = Sampler(ddim_steps(make_ddim(), 8))
    before = sampler(denoiser, cond, noise)
    denoiser.load_state_dict(other.state_dict(), assign=assign)
    after = sampler(denoiser, cond, noise)
    assert not torch.allclose(before, after)
    assert torch.equal(after, Sampler(sampler.steps)(other, cond, noise))


def test_moved_weights_are_folded_again():
    denoiser, sampler = make_denoiser("mlp"), Sampler(ddim_steps(make_ddim(), 8))
    sampler(denoiser, *make_inputs())
    assert sampler(denoiser.double(), *make_inputs(dtype=torch.float64)).dtype == torch.float64


def test_a_copy_folds_its_own_weights():
    denoiser, sampler = make_denoiser("mlp"), Sampler(ddim_steps(make_ddim(), 8))
    cond, noise = make_inputs()
    expected = sampler(denoiser, cond, noise)
    assert torch.equal(copy.deepcopy(sampler)(denoiser, cond, noise), expected)


def test_the_noise_is_left_alone_and_critics_can_learn_on_the_result():
    cond, noise = make_inputs()
    kept = noise.clone()
    chunk = Sampler(ddim_steps(make_ddim(), 8))(make_denoiser("mlp"), cond, noise)
    assert torch.equal(noise, kept) and not chunk.is_inference()
    critic = torch.nn.Linear(DA, 1)
    critic(chunk).sum().backward()
    assert critic.weight.grad is not None


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="30 sampling steps do not fit into 20"):
        ddim_steps(make_ddim(), 30)
    with pytest.raises(ValueError, match="thresholding"):
        ddim_steps(make_ddim(thresholding=True), 8)
    with pytest.raises(ValueError, match="no signal is left"):
        ddim_steps(make_ddim(spacing="trailing", rescale_betas_zero_snr=True), 8)


@pytest.mark.parametrize("hidden_dims", [(8,), (8, 8), (8, 16, 8)])
def test_odd_widths_are_explained(hidden_dims):
    with pytest.raises(ValueError, match="odd number of equal widths"):
        MLPDenoiser(DA, TP, C, hidden_dims)


def test_a_horizon_that_cannot_be_halved_is_explained():
    with pytest.raises(ValueError, match="use a multiple of 4"):
        ConditionalUnet1D(DA, 6, C, (8, 16, 32))


def test_the_unet_has_the_parameter_names_of_diffusion_policy():
    names = set(ConditionalUnet1D(DA, 8, C, (8, 16, 32)).state_dict())
    for name in (
        "diffusion_step_encoder.1.weight",
        "diffusion_step_encoder.3.bias",
        "down_modules.0.0.blocks.0.block.0.weight",
        "down_modules.0.0.blocks.1.block.1.bias",
        "down_modules.0.0.cond_encoder.1.weight",
        "down_modules.0.0.residual_conv.weight",
        "down_modules.1.2.conv.weight",
        "mid_modules.1.blocks.0.block.0.weight",
        "up_modules.1.0.residual_conv.weight",
        "up_modules.1.2.conv.bias",
        "final_conv.0.block.0.weight",
        "final_conv.1.bias",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("down_modules.2.2", "up_modules.2", "mid_modules.2"))]
