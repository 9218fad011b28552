"""LeRobot's diffusion policies that look at images: they answer as in LeRobot, and say what is wrong with them."""

import json
import random
from copy import deepcopy

import pytest
import torch
from lerobot_images import GOLDEN, OLD, ONE, SEPARATE, copy, golden, write
from safetensors.torch import load_file, save_file

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.pretrained import convert, describe, load_policy
from dsrl.pretrained.lerobot_vision import read_vision
from dsrl.pretrained.loading import read_checkpoint

NAMES = (ONE, SEPARATE, OLD)
STATE, ENV, IMAGE = "observation.state", "observation.environment_state", "observation.image"
WRIST, FRONT = "observation.images.wrist", "observation.images.front"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"


def load(path, **options):
    return load_policy(path, device="cpu", **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Written once: each takes 45 MB or 90 MB."""
    return {name: write(name, tmp_path_factory.mktemp("golden") / name) for name in NAMES}


@pytest.fixture(scope="module")
def policies(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def folder(folders, tmp_path):
    return copy(folders[ONE], tmp_path / ONE)


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    path.unlink()  # the weights are a link
    save_file(tensors, path)


def refused(path, message):
    with pytest.raises(DsrlError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


# -- as in LeRobot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_in_lerobot(policies, name):
    obs, noise, cond, chunk = golden(name)
    policy = policies[name]
    # in single precision processors differ by 1e-5
    exact, wide = deepcopy(policy).double(), {key: value.double() for key, value in obs.items()}
    torch.testing.assert_close(exact.encode(wide), cond.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.sample(wide, noise.double()), chunk.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.encode(obs), cond, atol=3e-5, rtol=0)
    torch.testing.assert_close(policy.sample(obs, noise), chunk, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_sees_decides(policies, name):
    obs, noise, _, chunk = golden(name)
    for key in obs.keys() - {STATE, ENV}:
        assert (policies[name].sample({**obs, key: obs[key].flip(0)}, noise) - chunk).abs().max() > 0.1, key


def test_the_cameras_keep_the_order_of_the_file(policies):
    obs, noise, _, chunk = golden(SEPARATE)
    assert list(policies[SEPARATE].spec.obs_shapes) == [STATE, WRIST, FRONT, ENV]
    assert list(policies[OLD].spec.obs_shapes) == [STATE, WRIST, FRONT]
    swapped = {**obs, WRIST: obs[FRONT], FRONT: obs[WRIST]}
    assert (policies[SEPARATE].sample(swapped, noise) - chunk).abs().max() > 0.1


def test_the_spec_says_images(policies):
    spec = policies[ONE].spec
    assert dict(spec.obs_shapes) == {STATE: (2,), IMAGE: (3, 72, 80)}
    assert policies[ONE].cond_dim == 2 * (2 + 8) and spec.obs_dim == 2 + 3 * 72 * 80
    assert not [p for p in policies[ONE].parameters() if p.requires_grad]


def test_the_whole_vector_is_the_dictionary(policies):
    obs, noise, _, _ = golden(SEPARATE)
    flat = torch.cat([obs[key].flatten(2) for key in (STATE, WRIST, FRONT, ENV)], dim=-1)
    assert torch.equal(policies[SEPARATE].sample(flat, noise), policies[SEPARATE].sample(obs, noise))


def test_it_can_be_converted(folders, policies, tmp_path):
    obs, noise, _, _ = golden(OLD)
    spec = convert(folders[OLD], tmp_path / "folder")
    assert spec.sha256 == policies[OLD].spec.sha256
    assert torch.equal(load(tmp_path / "folder").sample(obs, noise), policies[OLD].sample(obs, noise))


def test_a_description_names_cameras_and_statistics(folders):
    rows = dict(describe(folders[SEPARATE]))
    assert rows["vision"] == (
        "ResNet, blocks [2, 2, 2, 2], norm batch, resize [80, 88], crop [4, 4, 72, 79], keypoints 4, feature_dim 8, "
        "shared False"
    )
    assert rows[f"observation {WRIST}"] == "[3, 60, 64]"
    assert rows[f"{FRONT} offset +- scale"] == "0.5 +- 0.5, 0.55 +- 0.35, 0.4 +- 0.3"


# -- the forms that a folder can have ---------------------------------------------------------------------------------


def vision_of(name, change=lambda config: None):
    """Arguments of the encoder, without its weights."""
    from dsrl.pretrained.lerobot_config import read_features

    path = GOLDEN / name / "config.json"
    config = json.loads(path.read_text())
    change(config)
    return read_vision(config, read_features(config, path), path)


def test_the_centre_is_rounded_as_torchvision_rounds_it():
    """4.5 becomes 4 and 7.5 becomes 8."""
    assert vision_of(ONE)[0]["crop"] == [4, 8, 63, 65]


def test_what_config_json_leaves_out_is_the_default_of_its_version():
    def forget(*more):
        def change(config):
            for name in ("crop_shape", "use_group_norm", "use_separate_rgb_encoder_per_camera", *more):
                del config[name]
            for feature in config["input_features"].values():
                feature["shape"] = [3, 96, 96] if feature["type"] == "VISUAL" else feature["shape"]

        return change

    vision, notes = vision_of(ONE, forget("resize_shape", "crop_ratio"))
    assert (vision["crop"], vision["norm"], vision["shared"]) == ([6, 6, 84, 84], "group", True)
    assert notes[0] == "config.json does not say crop_shape; assumed is [84, 84]" and len(notes) == 3
    vision, _ = vision_of(ONE, forget())
    assert (vision["crop"], vision["norm"], vision["shared"]) == (None, "group", True)
    vision, _ = vision_of(ONE, lambda config: (forget()(config), config.update(gradient_checkpointing=False)))
    assert (vision["crop"], vision["norm"], vision["shared"]) == (None, "batch", False)


def test_without_a_ratio_a_resized_image_is_not_cropped():
    vision, _ = vision_of(SEPARATE, lambda config: config.update(crop_ratio=1.0, crop_shape=[10, 10]))
    assert vision["resize"] == [80, 88] and vision["crop"] is None


def test_images_without_statistics_are_left_alone(folder):
    path = folder / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    content["steps"][3]["config"]["norm_map"]["VISUAL"] = "IDENTITY"
    path.write_text(json.dumps(content))
    edit_tensors(folder / STATISTICS, lambda t: [t.pop(f"{IMAGE}.{name}") for name in ("mean", "std", "min", "max")])
    policy = load(folder)
    assert torch.equal(policy.vision.offset, torch.zeros(1, 3)) and torch.equal(policy.vision.scale, torch.ones(1, 3))


# -- what is wrong ----------------------------------------------------------------------------------------------------

CONFIGS = {
    "backbone": ({"vision_backbone": "resnet50"}, "'vision_backbone' is 'resnet50'; known are resnet18, resnet34"),
    "other": ({"vision_backbone": "resnet18"}, "not expected: .*backbone.4.2"),
    "norm": ({"use_group_norm": False}, "missing: .*running_mean"),
    "flag": ({"use_group_norm": "no"}, "'use_group_norm' is 'no', expected true or false"),
    "own": ({"use_separate_rgb_encoder_per_camera": 1}, "per_camera' is 1, expected true or false"),
    "keypoints": ({"spatial_softmax_num_keypoints": 5}, "contradicts .*observation.image is 24, the tensors say 20"),
    "none": ({"spatial_softmax_num_keypoints": None}, "keypoints' is None, expected a whole number"),
    "crop": ({"crop_shape": [80, 80]}, r"'crop_shape' \[80, 80\] does not fit into the images.* \[72, 80\] pixels"),
    "crop pair": ({"crop_shape": 64}, r"'crop_shape' is 64, expected null or \[height, width\]"),
    "resize": ({"resize_shape": [0, 8]}, r"'resize_shape' is \[0, 8\], expected null"),
    "ratio": ({"resize_shape": [64, 64], "crop_ratio": 2}, "'crop_ratio' is 2, expected a number above 0"),
    "smaller": ({"crop_shape": [32, 32]}, r"pos_grid' has shape \[6, 2\], the config says \[1, 2\]"),
}


@pytest.mark.parametrize(("values", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_do_is_explained(folder, values, message):
    edit_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({IMAGE: [72, 80]}, r"'observation.image' has the shape \[72, 80\], expected that of an image"),
        ({IMAGE: [3, 72, 50_000]}, r"'observation.image' has the shape \[3, 72, 50000\], expected that of an image"),
        ({"observation.images.top": [3, 64, 64]}, "images of one shape, these have .*observation.images.top"),
        ({"observation.images.top": [3, 72, 80]}, "observation.images.top is 36, the tensors say 20"),
    ],
)
def test_images_that_do_not_fit_are_named(folder, feature, message):
    inputs = json.loads((folder / "config.json").read_text())["input_features"]
    edit_config(folder, input_features=inputs | {k: {"type": "VISUAL", "shape": s} for k, s in feature.items()})
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({f"{IMAGE}.mean": torch.zeros(3)}), r"mean' has shape \[3\], config.json says \[3, 1, 1\]"),
        (lambda t: t.pop(f"{IMAGE}.std"), "lacks the statistic 'observation.image.std'"),
        (lambda t: t[f"{IMAGE}.std"].fill_(float("inf")), "std' holds NaN or infinite values"),
    ],
)
def test_statistics_of_images_are_checked(folder, change, message):
    edit_tensors(folder / STATISTICS, change)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("diffusion.rgb_encoder.out.bias"), "missing: .*vision.encoders.0.out.bias"),
        (lambda t: t.update({"diffusion.rgb_encoder.fc": torch.zeros(1)}), "not expected: .*vision.encoders.0.fc"),
        (lambda t: t["diffusion.rgb_encoder.backbone.0.weight"][0, 0].fill_(float("nan")), "backbone.0.weight' holds"),
        (lambda t: t.update({"diffusion.eyes": torch.zeros(1)}), "that a policy with images does not have: .*eyes"),
    ],
)
def test_broken_encoders_are_explained(folder, change, message):
    edit_tensors(folder / "model.safetensors", change)
    refused(folder, message)


def test_damaged_files_are_read_or_refused_by_name(folder):
    draw = random.Random(0)
    names = ("config.json", "policy_preprocessor.json", STATISTICS)
    refusals = 0
    for trial in range(60):
        path = folder / names[trial % len(names)]
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(broken[: draw.randrange(len(whole))] if trial % 4 == 0 else broken)
        try:
            read_checkpoint(folder, LoadConfig())
        except DsrlError as error:
            assert str(folder) in str(error)
            refusals += 1
        path.write_bytes(whole)
    assert refusals > 20
    read_checkpoint(folder, LoadConfig())
