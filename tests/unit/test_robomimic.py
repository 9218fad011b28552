"""Checkpoints of robomimic's diffusion policy: the same chunks as robomimic's, and clear words about bad files."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from traps import Evil

from dsrl.errors import DsrlError
from dsrl.pretrained import describe, load_policy

GOLDEN = Path(__file__).parents[1] / "golden" / "robomimic"
CASES = {"ddim": {}, "ddpm": {"sampling_steps": 16}, "offset": {}}


def inputs_of(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    tensors = {key: torch.from_numpy(golden[key]) for key in golden.files}
    obs = {key.removeprefix("obs."): tensors[key] for key in tensors if key.startswith("obs.")}
    return obs, tensors["noise"], tensors


def load(name, **settings):
    return load_policy(GOLDEN / f"{name}.pth", device="cpu", **CASES[name], **settings)


@pytest.fixture
def edited(tmp_path):
    """Write a golden file again, changed."""

    def edit(change, name="ddim"):
        content = torch.load(GOLDEN / f"{name}.pth", weights_only=False)
        config = json.loads(content["config"])
        content["config"] = config
        change(content)
        if isinstance(content.get("config"), dict):
            content["config"] = json.dumps(content["config"])
        torch.save(content, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return edit


def refused(path, message, **settings):
    with pytest.raises(DsrlError, match=message) as raised:
        load_policy(path, device="cpu", **settings)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("name", CASES)
def test_the_chunk_is_that_of_robomimic(name):
    obs, noise, golden = inputs_of(name)
    torch.testing.assert_close(load(name).sample(obs, noise), golden["chunk"], atol=1e-5, rtol=0)


def test_the_raw_weights_are_another_policy():
    obs, noise, golden = inputs_of("ddim")
    raw = load("ddim", weights="model")
    assert not torch.allclose(golden["chunk"], golden["chunk_model"], atol=1e-3)
    torch.testing.assert_close(raw.sample(obs, noise), golden["chunk_model"], atol=1e-5, rtol=0)
    assert raw.spec.sha256 != load("ddim").spec.sha256
    assert torch.equal(
        load("offset", weights="model").sample(*inputs_of("offset")[:2]),
        load("offset").sample(*inputs_of("offset")[:2]),
    )


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_singles(name):
    obs, noise, _ = inputs_of(name)
    policy = load(name)
    singles = [policy.sample({k: o[i : i + 1] for k, o in obs.items()}, noise[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(policy.sample(obs, noise), torch.cat(singles), atol=1e-5, rtol=1e-5)


def test_the_spec_is_that_of_the_file():
    spec = load("ddim").spec
    assert list(spec.obs_shapes.items()) == [("object", (4,)), ("robot0_eef_pos", (3,))]
    assert (spec.n_obs_steps, spec.horizon, spec.action_start, spec.n_action_steps, spec.action_dim) == (2, 16, 1, 8, 4)
    assert spec.env.id == "robosuite/Lift" and spec.env.obs_keys == ("object", "robot0_eef_pos")
    assert spec.env.kwargs["control_freq"] == 20
    assert list(load("ddpm").spec.obs_shapes.items()) == [("a", (3,)), ("b", (2, 2))]
    spec = load("offset").spec
    assert (spec.n_obs_steps, spec.horizon, spec.action_start, spec.n_action_steps) == (3, 8, 2, 6)


def test_inspect_tells_what_it_is():
    rows = describe(GOLDEN / "ddim.pth")
    assert dict(rows)["format"] == "robomimic 0.5"
    assert dict(rows)["sampler"] == "DDIM, 10 steps of 100 levels, squaredcos_cap_v2, leading, clip 1.0"
    assert ("note", "weights: the moving average") in rows


def test_ddpm_needs_a_deterministic_sampler():
    refused(GOLDEN / "ddpm.pth", "sampled by DDPM.*--load.sampling-steps 16")
    with pytest.raises(DsrlError, match="51 sampling steps do not fit into the 50 noise levels"):
        load_policy(GOLDEN / "ddpm.pth", device="cpu", sampling_steps=51)


def test_statistics_of_robomimic_0_3_are_read(edited):
    def rename(content):
        for entry in content["obs_normalization_stats"].values():
            entry["mean"], entry["std"] = entry.pop("offset"), entry.pop("scale")

    obs, noise, golden = inputs_of("ddim")
    chunk = load_policy(edited(rename), device="cpu").sample(obs, noise)
    torch.testing.assert_close(chunk, golden["chunk"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "metadata",
    [None, {"env_name": "Kitchen", "type": 3}, {"type": 1}, "Lift", {"type": 1, "env_name": "Lift", "env_kwargs": 3}],
)
def test_an_unknown_environment_is_left_open(edited, metadata):
    path = edited(lambda content: content.update(env_metadata=metadata))
    assert load_policy(path, device="cpu").spec.env is None
    notes = [value for name, value in describe(path) if name == "note" and "names no environment" in value]
    assert len(notes) == (metadata is not None)


NETWORK = "policy.noise_pred_net."
BAD = {
    "config": (..., "'config' is not the JSON text"),
    "config/algo": (..., "lacks 'config.algo.ddpm.enabled'"),
    "config/algo/transformer": ({"enabled": True}, "algo.transformer is enabled"),
    "config/algo/ddim/enabled": (False, "neither config.algo.ddpm nor config.algo.ddim"),
    "config/algo/ddim/clip_sample": ("yes", "'config.algo.ddim.clip_sample' is 'yes', expected true or false"),
    "config/algo/ddim/num_train_timesteps": (0, "num_train_timesteps' is 0, expected a whole number"),
    "config/algo/ddim/num_inference_timesteps": (101, "num_inference_timesteps' is 101, .* from 1 to 100"),
    "config/algo/ddim/prediction_type": ("sample", "prediction_type' is 'sample'; known: epsilon"),
    "config/algo/ddim/beta_schedule": ("cosine", "beta_schedule' is 'cosine'; known: squaredcos_cap_v2"),
    "config/algo/ddim/steps_offset": (10, "'config.algo.ddim.steps_offset' 10 moves the first of 10"),
    "config/algo/horizon/action_horizon": (16, "no 16 action steps from step 1"),
    "config/algo/horizon/prediction_horizon": (15, "halves the horizon"),
    "config/algo/horizon/observation_horizon": (1, "reads 14 numbers .* 1 steps of .* are 7"),
    "config/observation/modalities/obs/rgb": (["agentview_image"], r"\['agentview_image'\] have no shape"),
    "config/observation/modalities/obs/depth": (["front_depth"], r"observes front_depth \(depth\); only low-dim"),
    "config/observation/modalities/obs/low_dim": (["nothing"], r"\['nothing'\] have no shape"),
    "config/observation/encoder/low_dim/obs_randomizer_class": ("GaussianNoiseRandomizer", "'GaussianNoiseRandomizer'"),
    "config/train/action_keys": (["actions/gripper"], "are 1 numbers, the action has 4"),
    "config/train/action_config/actions\\pos": ({"format": "rot_6d"}, "'actions/pos' is a 6-D rotation"),
    "algo_name": ("bc", "robomimic's algorithm 'bc'; only diffusion_policy"),
    "shape_metadata": (..., "lacks 'shape_metadata.all_shapes'"),
    "shape_metadata/ac_dim": (5, "predicts 4 per step, but .*ac_dim is 5"),
    "shape_metadata/all_shapes/object": ([-4], r"'object' has the shape \[-4\]"),
    "obs_normalization_stats": (..., "lacks 'obs_normalization_stats', though"),
    "obs_normalization_stats/object": (..., "lacks 'obs_normalization_stats.object.offset'"),
    "obs_normalization_stats/object/scale": ([[1.0, 0.0, 1.0, 1.0]], "object' must be finite, its scale positive"),
    "obs_normalization_stats/object/offset": ([[1.0]], "holds 1 offsets and 4 scales, expected 4"),
    "action_normalization_stats/actions\\pos/scale": ([["a"]], "actions/pos.scale' is no table of numbers"),
    "model": ({}, "lacks 'model.nets'"),
    f"model/ema/{NETWORK}final_conv.1.weight": (..., "tensor 'policy.noise_pred_net.final_conv.1.weight' is missing"),
    f"model/ema/{NETWORK}final_conv.1.bias": (..., r"missing: \['denoiser.final_conv.1.bias'\]"),
    f"model/ema/{NETWORK}final_conv.2.bias": (torch.zeros(4), r"not expected: \['denoiser.final_conv.2.bias'\]"),
    f"model/ema/{NETWORK}final_conv.0.block.1.weight": (torch.full((8,), torch.nan), "block.1.weight' holds NaN"),
    f"model/ema/{NETWORK}final_conv.1.bias ": ("text", "'model.ema' must hold tensors only"),
    "model/ema/policy.obs_encoder.nets.obs.weight": (torch.zeros(4), "beside the U-Net"),
    f"model/ema/{NETWORK}final_conv.0.block.0.bias": (torch.zeros(7), r"has shape \[7\], the config says \[8\]"),
}  # fmt: skip


@pytest.mark.parametrize("where", BAD)
def test_a_bad_file_is_explained(edited, where):
    value, message = BAD[where]
    path = where.replace("\\", "\0")

    def change(content):
        *parents, last = path.split("/")
        for name in parents:
            content = content[name.replace("\0", "/")]
        if value is ...:
            del content[last.replace("\0", "/")]
        else:
            content[last.replace("\0", "/")] = value

    refused(edited(change), message)


def test_side_files_of_another_format_are_refused(tmp_path):
    with pytest.raises(DsrlError, match=r"leave out --load\.config"):
        load_policy(GOLDEN / "ddim.pth", device="cpu", config=tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    whole = (GOLDEN / "ddim.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "cut.pth", "cut.pth is truncated or no torch file")


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    data = bytearray((GOLDEN / "ddim.pth").read_bytes())
    with zipfile.ZipFile(GOLDEN / "ddim.pth") as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename]
        record = records[int(place * len(records))]
        data[data.index(archive.read(record), record.header_offset) + 2] ^= 64
    (tmp_path / "flipped.pth").write_bytes(data)
    refused(tmp_path / "flipped.pth", "flipped.pth is damaged: the checksum of ddim/data/.* is wrong; copy")


@pytest.mark.parametrize("where", ["variable_state", "config", "env_metadata", "obs_normalization_stats"])
def test_a_file_that_would_run_code_runs_nothing(edited, tmp_path, where):
    path = edited(lambda content: content.update({where: Evil(tmp_path / "created")}))
    refused(path, r"wants to run '\w+\.system'.*nothing was executed")
    refused(path, r"wants to run '\w+\.system'", format="robomimic")
    assert not (tmp_path / "created").exists()


def test_a_function_that_is_only_a_value_is_refused(edited):
    refused(edited(lambda content: content.update(variable_state=os.system)), r"wants to run '\w+\.system'")


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numpy_scalars_are_plain_numbers(edited, value):
    path = edited(lambda content: content.update(note=value, more={"best": value}))
    assert load_policy(path, device="cpu").spec.horizon == 16


def test_other_numpy_values_are_refused(edited):
    refused(edited(lambda content: content.update(note=np.zeros(3))), "wants to run 'numpy.*_reconstruct'")
    refused(edited(lambda content: content.update(algo_name=np.str_("bc"))), "algorithm 'None'")
