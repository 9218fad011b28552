"""robomimic's diffusion policies with cameras: the same chunks as robomimic's, and clear words about other ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import draw, image

from dsrl.errors import DsrlError
from dsrl.pretrained import convert, describe, load_policy

GOLDEN = Path(__file__).parents[1] / "golden" / "robomimic"
ENCODER = "policy.obs_encoder.nets.obs.obs_nets."
FRONT, WRIST = "agentview_image", "wrist_image"


@pytest.fixture(scope="module")
def content():
    """What robomimic wrote, its weights drawn again."""
    content = torch.load(GOLDEN / "images.pth", weights_only=False)
    nets = weights(content)
    for name, shape in json.loads((GOLDEN / "images.json").read_text()).items():
        nets[name] = draw(name, shape)
        for first, again in (("backbone.", "nets.0."), ("pool.", "nets.1.")):
            if name.startswith(ENCODER):
                nets[name.replace(f"_image.{first}", f"_image.{again}")] = nets[name]
    return content


@pytest.fixture(scope="module")
def path(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "images.pth"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def policy(path):
    return load_policy(path, device="cpu")


@pytest.fixture(scope="module")
def golden():
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "images.npz").items()}
    blocks = {key: value for key, value in golden.items() if key.startswith("blocks.")}
    obs = {key.removeprefix("obs."): value for key, value in golden.items() if key.startswith("obs.")}
    obs |= {key.removeprefix("blocks."): image(value, 72, 80) for key, value in blocks.items()}
    return obs, golden


def weights(content):
    return content["model"]["nets"]


@pytest.fixture
def refused(content, tmp_path):
    """Change the config or the tensors, and be told so; a large tensor is one number here, the file would be 90 MB."""

    def refuse(change, message):
        config = json.loads(content["config"])
        nets = {name: t if t.numel() < 1000 else t.new_ones(1).expand(t.shape) for name, t in weights(content).items()}
        edited = {**content, "shape_metadata": {**content["shape_metadata"]}}
        edited["model"] = {**content["model"], "nets": nets}
        change(edited, config, nets)
        torch.save({**edited, "config": json.dumps(config)}, tmp_path / "model.pth")
        with pytest.raises(DsrlError, match=message) as raised:
            load_policy(tmp_path / "model.pth", device="cpu")
        assert str(raised.value).startswith(str(tmp_path / "model.pth"))

    return refuse


def test_the_chunk_is_that_of_robomimic(policy, golden):
    obs, expected = golden
    torch.testing.assert_close(policy.encode(obs), expected["cond"], atol=5e-5, rtol=0)
    torch.testing.assert_close(policy.sample(obs, expected["noise"]), expected["chunk"], atol=1e-5, rtol=0)


def test_every_camera_decides(policy, golden):
    obs, expected = golden
    assert list(policy.spec.obs_shapes) == [FRONT, "object", "robot0_eef_pos", WRIST]
    for key in (FRONT, WRIST):
        assert (policy.sample({**obs, key: obs[key].flip(0)}, expected["noise"]) - expected["chunk"]).abs().max() > 0.05


def test_the_centre_is_rounded_down(policy):
    """The crop has 63 of 72 and 65 of 80 pixels."""
    assert policy.config.vision["crop"] == [4, 7, 63, 65]


def test_it_can_be_described_and_converted(path, policy, golden, tmp_path):
    obs, expected = golden
    assert dict(describe(path))["vision"] == (
        "ResNet, blocks [2, 2, 2, 2], norm group, crop [4, 7, 63, 65], keypoints 4, feature_dim 6, shared False"
    )
    assert convert(path, tmp_path / "folder").sha256 == policy.spec.sha256
    folder = load_policy(tmp_path / "folder", device="cpu")
    assert torch.equal(folder.sample(obs, expected["noise"]), policy.sample(obs, expected["noise"]))


def rgb(**values):
    """Change the encoder in the config; ``a__b`` stands for b in a."""

    def change(content, config, nets):
        for name, value in values.items():
            *parents, last = name.split("__")
            tree = config["observation"]["encoder"]["rgb"]
            for parent in parents:
                tree = tree[parent]
            tree[last] = value

    return change


CONFIGS = {
    "core": (rgb(core_class="VisualCoreLanguageConditioned"), "core_class' is 'VisualCoreLanguageConditioned'; of im"),
    "backbone": (
        rgb(core_kwargs__backbone_class="ResNet50Conv"),
        "backbone_class' is 'ResNet50Conv'; .*'ResNet18Conv'",
    ),
    "coordinates": (
        rgb(core_kwargs__backbone_kwargs__input_coord_conv=True),
        "coord_conv' is True; of images only",
    ),
    "pool": (rgb(core_kwargs__pool_class="SpatialMeanPool"), "pool_class' is 'SpatialMeanPool'; of images only"),
    "variance": (rgb(core_kwargs__pool_kwargs__output_variance=True), "output_variance' is True; of images only"),
    "features": (rgb(core_kwargs__feature_dimension=None), "feature_dimension' is None, expected a whole number"),
    "more features": (rgb(core_kwargs__feature_dimension=7), "its network reads 38 numbers .* are 42"),
    "keypoints": (rgb(core_kwargs__pool_kwargs__num_kp=5), r"pool.nets.weight' has shape \[4, 512, 1, 1\]"),
    "randomizer": (rgb(obs_randomizer_class="ColorRandomizer"), "obs_randomizer_class' is 'ColorRandomizer'"),
    "two": (rgb(obs_randomizer_class=["CropRandomizer", "ColorRandomizer"]), "only CropRandomizer without pos_enc is"),
    "positions": (rgb(obs_randomizer_kwargs__pos_enc=True), "only CropRandomizer without pos_enc is supported"),
    "crop": (rgb(obs_randomizer_kwargs__crop_height=80), "crop_height' is 80, expected a whole number from 1 to 72"),
    "no crop": (rgb(obs_randomizer_class=None), r"pos_grid' has shape \[6, 2\], the config says \[9, 2\]"),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_other_encoders_are_named(refused, change, message):
    refused(change, message)


FIRST = f"{ENCODER}{FRONT}."
TENSORS = {
    "missing": (lambda c, _, n: [n.pop(f"{FIRST}{k}.pos_x") for k in ("pool", "nets.1")], r"missing: \['pool.pos_x'\]"),
    "linear": (lambda c, _, n: n.pop(f"{FIRST}nets.3.bias"), "missing: .*vision.encoders.0.out.bias"),
    "unknown": (lambda c, _, n: n.update({f"{FIRST}nets.4.weight": torch.zeros(1)}), "not expected: .*0.nets.4.weight"),
    "two values": (
        lambda c, _, n: n.update({f"{FIRST}nets.1.nets.bias": torch.zeros(4)}),
        "nets.1.nets.bias' differs from .*pool.nets.bias', but they are one tensor",
    ),
    "temperature": (
        lambda c, _, n: n.update({f"{FIRST}{k}.temperature": torch.zeros(1) for k in ("pool", "nets.1")}),
        "'pool.temperature'.* is not that of robomimic",
    ),
    "other": (lambda c, _, n: n.update({"policy.obs_encoder.x": torch.zeros(1)}), "holds .*obs_encoder.x.* beside"),
    "statistics": (
        lambda c, _, n: c.update(obs_normalization_stats={}),
        "statistics of images are not supported, train with hdf5_normalize_obs=false",
    ),
    "sizes": (
        lambda c, _, n: c["shape_metadata"].update(all_shapes={**c["shape_metadata"]["all_shapes"], WRIST: [3, 9, 9]}),
        r"its images have the shapes .*; expected is one, \(C, H, W\)",
    ),
    "vector": (
        lambda c, _, n: c["shape_metadata"].update(all_shapes={**c["shape_metadata"]["all_shapes"], WRIST: [3]}),
        "its images are .* but the shapes are .* was the file edited",
    ),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_broken_files_are_explained(refused, change, message):
    refused(change, message)
