"""Policies that see: images become features where observations are encoded, and nowhere else."""

import pytest
import torch

from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained import convert, describe, load_policy, save_policy
from dsrl.pretrained.verify import verify
from dsrl.vision import FrozenBatchNorm, ImageEncoder, SpatialSoftmax, VisionEncoder, resnet

SHAPES = {"pose": (2,), "front": (3, 32, 40), "wrist": (3, 32, 40), "goal": (3,)}
TINY = {"blocks": [1, 1], "width": 16, "keypoints": 4, "feature_dim": 5}
SPEC = PolicySpec(SHAPES, action_dim=2, horizon=4, n_action_steps=2, n_obs_steps=2, action_start=1)


def make_policy(spec=SPEC, flow=False, **vision):
    torch.manual_seed(0)
    network = {"type": "mlp", "hidden_dims": [32] * 3}
    if flow:
        return FlowPolicy(spec, FlowConfig(network, {**TINY, **vision})).freeze()
    # predicting the chunk itself: untrained predictions of noise end in the corners of the box
    config = DiffusionConfig(network, {**TINY, **vision}, train_steps=10, sampling_steps=5, prediction_type="sample")
    return DiffusionPolicy(spec, config).freeze()


def make_obs(batch=3, spec=SPEC):
    generator = torch.Generator().manual_seed(1)
    draw = {1: torch.randn, 3: torch.rand}
    shapes = spec.obs_shapes.items()
    return {key: draw[len(s)](batch, spec.n_obs_steps, *s, generator=generator) for key, s in shapes}


def make_noise(batch=3):
    return torch.randn(batch, 4, 2, generator=torch.Generator().manual_seed(2))


def features(policy, obs):
    """By camera, ``(B, To, F)``."""
    cond = policy.encode(obs).unflatten(-1, (2, -1))
    return dict(zip(SHAPES, cond.split([2, 5, 5, 3], dim=-1), strict=True))


# -- where the pixels go ----------------------------------------------------------------------------------------------


def test_features_stand_where_the_images_stood():
    policy, obs = make_policy(), make_obs()
    assert isinstance(policy, FrozenPolicy) and policy.cond_dim == 2 * (2 + 5 + 5 + 3)
    parts = features(policy, obs)
    for key in ("pose", "goal"):
        assert torch.equal(parts[key], obs[key])
    for key in ("front", "wrist"):
        changed = {**obs, key: obs[key].flip(-1)}
        moved = {name for name, part in features(policy, changed).items() if not torch.allclose(part, parts[name])}
        assert moved == {key}


def test_decoding_sees_no_pixels():
    policy, obs, noise = make_policy(), make_obs(), make_noise()
    cond = policy.encode(obs)
    expected = policy.sample(obs, noise)
    policy.vision = None
    assert torch.equal(policy.sampler(policy.denoiser, cond, noise)[:, 1:3], expected)


@pytest.mark.parametrize("flow", [False, True])
def test_dictionaries_batches_and_repetitions_agree(flow):
    policy, obs, noise = make_policy(flow=flow), make_obs(), make_noise()
    whole = policy.sample(obs, noise)
    assert torch.equal(whole, policy.sample(torch.cat([obs[key].flatten(2) for key in SHAPES], dim=-1), noise))
    singles = [policy.sample({k: v[i : i + 1] for k, v in obs.items()}, noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(singles), atol=1e-5, rtol=0)
    assert not torch.allclose(whole, policy.sample(make_obs() | {"front": 1 - obs["front"]}, noise), atol=1e-4)


def test_images_alone_are_enough():
    spec = PolicySpec({"pixels": (1, 24, 24)}, action_dim=2, horizon=4, n_action_steps=2)
    policy = make_policy(spec)
    assert policy.cond_dim == 5
    assert policy.sample(make_obs(spec=spec), make_noise()).shape == (3, 2, 2)


# -- the parts of the encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 1)])
def test_the_grid_fits_the_maps(size):
    encoder = ImageEncoder(3, size, [1, 1, 1], 16, "group", 4, 8)
    maps = encoder.backbone(torch.rand(2, 3, *size))
    assert maps.shape[1] == 64 and len(encoder.pool.pos_grid) == maps[0, 0].numel()
    assert encoder(torch.rand(2, 3, *size)).shape == (2, 8)


def test_the_resnets_have_their_known_sizes():
    """11,176,512 and 21,284,672 parameters before the pooling and the classifier, as torchvision's have."""
    for blocks, count in (([2, 2, 2, 2], 11_176_512), ([3, 4, 6, 3], 21_284_672)):
        for norm in ("group", "batch"):
            assert sum(p.numel() for p in resnet(3, blocks, 64, norm).parameters()) == count


def test_a_keypoint_is_where_its_map_is_bright():
    pool = SpatialSoftmax(1, 3, 5, 1)
    torch.nn.init.constant_(pool.nets.weight, 1000.0)
    torch.nn.init.zeros_(pool.nets.bias)
    maps = torch.zeros(2, 1, 3, 5)
    maps[0, 0, 0, 4] = maps[1, 0, 1, 1] = 1
    torch.testing.assert_close(pool(maps), torch.tensor([[[1.0, -1.0]], [[-0.5, 0.0]]]))
    torch.testing.assert_close(pool(torch.zeros(1, 1, 3, 5)), torch.zeros(1, 1, 2))


def test_only_the_crop_is_looked_at():
    policy, obs = make_policy(crop=[3, 5, 24, 30]), make_obs()
    parts = features(policy, obs)
    outside = obs["front"].clone()
    outside[..., :3, :] = outside[..., 27:, :] = outside[..., :5] = outside[..., 35:] = 0
    assert torch.equal(features(policy, {**obs, "front": outside})["front"], parts["front"])
    outside[..., 3, 5:35] = 0
    assert not torch.equal(features(policy, {**obs, "front": outside})["front"], parts["front"])


def test_images_are_resized_before_they_are_cropped():
    policy, obs = make_policy(resize=[16, 20], crop=[0, 0, 16, 16]), make_obs()
    half = {key: (3, 16, 16) if len(shape) == 3 else shape for key, shape in SHAPES.items()}
    small = VisionEncoder(half, **TINY)
    small.load_state_dict(policy.vision.state_dict())
    low, images = policy.vision.split(torch.cat([obs[key].flatten(2) for key in SHAPES], dim=-1))
    resized = torch.nn.functional.interpolate(images.flatten(0, 2), size=(16, 20), mode="bilinear", antialias=True)
    resized = resized[..., :16].unflatten(0, images.shape[:3])
    torch.testing.assert_close(small(low, resized).flatten(1), policy.encode(obs))


def test_each_camera_has_its_statistics():
    policy, obs = make_policy(), make_obs()
    expected = features(policy, obs)
    policy.vision.offset[1] = torch.tensor([0.1, 0.2, 0.3])
    policy.vision.scale[1] = torch.tensor([0.5, 0.6, 0.7])
    shifted = obs["wrist"] * policy.vision.scale[1][:, None, None] + policy.vision.offset[1][:, None, None]
    parts = features(policy, {**obs, "wrist": shifted})
    for key in SHAPES:
        torch.testing.assert_close(parts[key], expected[key], atol=1e-4, rtol=0)


def test_cameras_share_a_network_or_have_their_own():
    obs = make_obs()
    swapped = {**obs, "front": obs["wrist"], "wrist": obs["front"]}
    one, two = make_policy(), make_policy(shared=False)
    assert torch.equal(features(one, obs)["front"], features(one, swapped)["wrist"])
    assert not torch.allclose(features(two, obs)["front"], features(two, swapped)["wrist"], atol=1e-3)
    assert len(one.vision.encoders) == 1 and len(two.vision.encoders) == 2


def test_batch_statistics_are_those_of_the_file_even_in_training():
    norm, x = FrozenBatchNorm(4), torch.randn(8, 4, 3, 3)
    norm.running_mean.copy_(torch.arange(4.0))
    norm.running_var.fill_(4.0)
    kept = norm.running_mean.clone()
    torch.testing.assert_close(norm.train()(x), (x - kept[:, None, None]) / (4 + 1e-5) ** 0.5)
    assert torch.equal(norm.running_mean, kept)


# -- training, saving -------------------------------------------------------------------------------------------------


def test_training_reaches_the_encoder_and_encoding_does_not():
    policy = make_policy(norm="batch").train().requires_grad_(True)
    obs, chunk = make_obs(), torch.rand(3, 4, 2)
    kept = torch.cat([obs[key].flatten(2) for key in SHAPES], dim=-1)
    policy.fit_normalizers(kept, chunk)
    assert policy.obs_normalizer.offset.shape == (5,) and torch.equal(policy.vision.scale, torch.ones(2, 3))
    policy.loss(obs, chunk, torch.Generator().manual_seed(0)).backward()
    assert policy.vision.encoders[0].backbone[0].weight.grad.abs().max() > 0
    assert not policy.encode(obs).requires_grad


@pytest.mark.parametrize("flow", [False, True])
def test_files_and_folders_keep_what_it_sees(tmp_path, flow):
    policy, obs, noise = make_policy(flow=flow, norm="batch", crop=[0, 0, 30, 30]), make_obs(), make_noise()
    policy.vision.scale.fill_(0.5)
    chunk = policy.sample(obs, noise)
    path = save_policy(policy, tmp_path / "policy.pt")
    convert(path, tmp_path / "folder")
    loaded, folder = load_policy(path, device="cpu"), load_policy(tmp_path / "folder", device="cpu")
    assert torch.equal(loaded.sample(obs, noise), chunk) and torch.equal(folder.sample(obs, noise), chunk)
    assert loaded.spec.sha256 == folder.spec.sha256 != ""
    assert dict(loaded.spec.obs_shapes) == SHAPES
    policy.vision.encoders[0].out.bias[0] += 1e-3
    assert load_policy(save_policy(policy, tmp_path / "other.pt"), device="cpu").spec.sha256 != loaded.spec.sha256


def test_a_description_names_what_it_sees(tmp_path):
    rows = dict(describe(save_policy(make_policy(crop=[0, 0, 30, 30]), tmp_path / "policy.pt")))
    assert rows["vision"].startswith("ResNet, blocks [1, 1], width 16, norm group, crop [0, 0, 30, 30]")
    assert rows["observation front"] == "[3, 32, 40]"
    assert rows["wrist offset +- scale"] == "0 +- 1, 0 +- 1, 0 +- 1"


def test_sampling_it_for_a_look_draws_pixels():
    for policy in (make_policy(), make_policy(PolicySpec({"pixels": (1, 24, 24)}, 2, 4, 2))):
        rows = dict(verify(policy))
        assert rows["deterministic"] == "yes, to the bit" and "batch of 1 and of 8" in rows


def test_a_folder_without_its_eyes_is_incomplete(tmp_path):
    convert(save_policy(make_policy(), tmp_path / "policy.pt"), tmp_path / "folder")
    (tmp_path / "folder/vision/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DsrlError, match=r"no .*vision/diffusion_pytorch_model.safetensors; the folder is incomplete"):
        load_policy(tmp_path / "folder", device="cpu")


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [255, -1])
def test_pixels_that_are_not_in_the_unit_range_are_refused(factor):
    obs = make_obs()
    with pytest.raises(ValueError, match=r"images \['front', 'wrist'\] hold values from .*divide 8-bit pixels by 255"):
        make_policy().encode({**obs, "front": obs["front"] * factor})


def test_an_image_of_another_size_is_refused():
    obs = make_obs()
    with pytest.raises(ValueError, match=r"observation has shape \(3, 2, .*\), this policy reads \(B, 2, 7685\)"):
        make_policy().encode({**obs, "front": obs["front"][..., :20]})


@pytest.mark.parametrize(
    ("shapes", "vision", "message"),
    [
        ({"pose": (2,)}, {}, "images of one shape"),
        ({"a": (3, 32, 32), "b": (3, 16, 16)}, {}, "images of one shape"),
        ({"a": (3, 32, 32)}, {"norm": "layer"}, r"unknown norm 'layer'; known are \['batch', 'group'\]"),
        ({"a": (3, 32, 32)}, {"crop": [10, 0, 30, 30]}, r"is \(10, 0, 30, 30\); images have \(32, 32\) pixels"),
        ({"a": (3, 32, 32)}, {"resize": [16, 16], "crop": [0, 0, 20, 16]}, r"images have \(16, 16\) pixels"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(shapes, vision, message):
    with pytest.raises(ValueError, match=message):
        VisionEncoder(shapes, **{**TINY, **vision})
