"""A converted policy is the same policy, diffusers reads its folder, and a folder that was changed is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from dsrl.cli import main
from dsrl.config import LoadConfig
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained import convert, describe, load_policy, save_policy
from dsrl.pretrained.toy import ToyPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "robomimic"
ENV = EnvSpec("robosuite", "Lift", {"horizon": 80}, {"physics_timestep": 0.005}, ("object", "eef"), 80, "1.5.2")
SPEC = PolicySpec({"object": (2, 2), "eef": (3,)}, 3, 8, 4, 2, 1, env=ENV, provenance={"made by": "a test"})
NETWORKS = {
    "mlp": {"type": "mlp", "hidden_dims": [32] * 3},
    "unet": {"type": "unet", "down_dims": [16, 32], "time_dim": 16},
}
CASES = [f"{kind}-{network}" for kind in ("diffusion", "flow") for network in NETWORKS]


def make_policy(case):
    kind, network = case.split("-")
    torch.manual_seed(0)
    if kind == "flow":
        policy = FlowPolicy(SPEC, FlowConfig(NETWORKS[network], shift=2.0))
    else:
        policy = DiffusionPolicy(SPEC, DiffusionConfig(NETWORKS[network], train_steps=50, sampling_steps=8))
    policy.fit_normalizers(1 + 3 * torch.randn(64, 2, 7), 0.5 + 2 * torch.rand(64, 8, 3))
    return policy.freeze()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 2, 7, generator=generator), torch.randn(8, 8, 3, generator=generator)


@pytest.fixture
def folder(tmp_path):
    path = save_policy(make_policy("diffusion-mlp"), tmp_path / "policy.pt")
    convert(path, tmp_path / "out")
    return tmp_path / "out"


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(path, message):
    with pytest.raises(DsrlError, match=message) as raised:
        load_policy(path, device="cpu")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_policy_is_the_same_policy(case, tmp_path):
    path = save_policy(make_policy(case), tmp_path / "policy.pt")
    written = convert(path, tmp_path / "out")
    before, after = (load_policy(each, device="cpu") for each in (path, tmp_path / "out"))
    assert torch.equal(before.sample(*inputs()), after.sample(*inputs()))
    assert before.spec == after.spec == written and list(after.spec.obs_shapes) == ["object", "eef"]
    assert after.spec.env == ENV
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "out/denoiser/config.json",
        "out/denoiser/diffusion_pytorch_model.safetensors",
        "out/normalizer.safetensors",
        "out/policy.json",
        "out/scheduler/scheduler_config.json",
        "policy.pt",
    ]


def test_a_batch_is_its_singles(folder):
    obs, noise = inputs()
    policy = load_policy(folder, device="cpu")
    singles = [policy.sample(obs[i : i + 1], noise[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(policy.sample(obs, noise), torch.cat(singles), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("again", [False, True])
def test_a_foreign_policy_is_the_same_policy(tmp_path, again):
    load = LoadConfig(sampling_steps=16)
    convert(GOLDEN / "ddpm.pth", tmp_path / "out", load)
    if again:  # a converted policy can be converted
        convert(tmp_path / "out", tmp_path / "again")
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "again").rename(tmp_path / "out")
    before = load_policy(GOLDEN / "ddpm.pth", sampling_steps=16, device="cpu")
    after = load_policy(tmp_path / "out", device="cpu")
    golden = np.load(GOLDEN / "ddpm.npz")
    obs = {key: torch.from_numpy(golden[f"obs.{key}"]) for key in ("a", "b")}
    noise = torch.from_numpy(golden["noise"])
    assert torch.equal(before.sample(obs, noise), after.sample(obs, noise))
    assert before.spec == after.spec
    assert dict(describe(tmp_path / "out"))["format"] == "diffusers 1, converted from robomimic"
    other = load_policy(GOLDEN / "ddpm.pth", sampling_steps=8, device="cpu")
    assert other.spec.sha256 != after.spec.sha256


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_diffusers_reads_the_scheduler_and_its_own_loop_gives_the_chunk(case, tmp_path):
    convert(save_policy(make_policy(case), tmp_path / "policy.pt"), tmp_path / "out")
    policy = load_policy(tmp_path / "out", device="cpu")
    config = json.loads((tmp_path / "out" / "policy.json").read_text())["config"]
    obs, x = inputs()
    cond, steps = policy.encode(obs), config["sampling_steps"]
    if case.startswith("flow"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out" / "scheduler")
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
        options = {}
    else:
        scheduler = DDIMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
        scheduler.set_timesteps(steps)
        options = {"use_clipped_model_output": config["use_clipped_model_output"]}
    for t in scheduler.timesteps:
        x = scheduler.step(policy.denoiser(x, t, cond), t, x, **options).prev_sample
    if case.startswith("flow"):
        x = x.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    chunk = policy.action_normalizer.unnormalize(x)[:, 1:5]
    torch.testing.assert_close(policy.sample(*inputs()), chunk, atol=1e-5, rtol=0)


def test_a_policy_without_a_network_of_its_own_is_refused(tmp_path):
    path = save_policy(ToyPolicy(), tmp_path / "toy.pt")
    with pytest.raises(DsrlError, match=r"kind 'toy' does not fit into a diffusers folder.*convert the base policy"):
        convert(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["toy.pt"]


def test_what_is_there_is_kept_unless_told(folder, tmp_path):
    with pytest.raises(DsrlError, match="out exists; choose another name or pass --overwrite"):
        convert(tmp_path / "policy.pt", folder)
    flow = save_policy(make_policy("flow-mlp"), tmp_path / "flow.pt")
    convert(flow, folder, overwrite=True)
    assert load_policy(folder, device="cpu").kind == "flow"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flow.pt", "out", "policy.pt"]
    for other, message in ((tmp_path, "holds other files"), (flow, "is a file")):
        with pytest.raises(DsrlError, match=message):
            convert(flow, other, overwrite=True)
    assert flow.is_file()


def test_a_failed_write_keeps_the_old_folder(folder, tmp_path, monkeypatch):
    flow = save_policy(make_policy("flow-mlp"), tmp_path / "flow.pt")
    before = load_policy(folder, device="cpu").spec

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(DsrlError, match="disk is full"):
        convert(flow, folder, overwrite=True)
    assert load_policy(folder, device="cpu").spec == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flow.pt", "out", "policy.pt"]


def test_the_command_converts(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(GOLDEN / "ddpm.pth"), str(out), "--load.sampling-steps", "16"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert load_policy(out, device="cpu").config.sampling_steps == 16
    assert main(["convert", str(GOLDEN / "ddpm.pth"), str(out), "--load.sampling-steps", "16"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


BAD = {
    "another version": (lambda c: c.update(version=2), "version 2, this dsrl reads 1; update dsrl-steering"),
    "no number as version": (lambda c: c.update(version="1"), "has version '1'"),
    "another format": (lambda c: c.update(format="x"), 'expected "format": "diffusers"'),
    "unknown field": (lambda c: c.update(kinds="x"), "unknown field 'kinds'. Did you mean 'kind'"),
    "missing field": (lambda c: c.pop("spec"), "lacks 'spec'"),
    "another type": (lambda c: c.update(config=[]), "lacks 'config', or it has the wrong type"),
    "unknown kind": (lambda c: c.update(kind="steered"), "kind 'steered' does not fit"),
    "unknown setting": (lambda c: c["config"].update(samplingsteps=3), "no field 'samplingsteps'. Did you mean"),
    "unknown spec": (lambda c: c["spec"].update(horizons=3), "'horizons'"),
    "missing spec": (lambda c: c["spec"].pop("horizon"), "'horizon'"),
    "another horizon": (lambda c: c["spec"].update(horizon=16), "'horizon' is 8, but policy.json says 16"),
    "another width": (lambda c: c["config"]["network"].update(hidden_dims=[16] * 3), "'hidden_dims' is .*32, 32, 32"),
    "another schedule": (lambda c: c["config"].update(beta_schedule="linear"), "'beta_schedule' is 'squaredcos"),
    "no such schedule": (lambda c: c["config"].update(beta_schedule="cosine"), "do not make a policy"),
    "steps without end": (lambda c: c["config"].update(train_steps=10**12), "'train_steps' is 1000000000000, which is"),
    "noise of another shape": (lambda c: c["spec"].update(noise_shape=[8, 4]), "not those that were written"),
    "another hash": (lambda c: c.update(hash_of_weights=True), "not those that were written"),
    "other steps": (lambda c: c["config"].update(sampling_steps=4), "are not those that were written"),
    "another order": (lambda c: c["spec"].update(obs_shapes={"eef": [3], "object": [2, 2]}), "not those that were"),
    "another source": (lambda c: c.update(converted_from="chi"), "not those that were written"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_changed_policy_json_is_explained(folder, name):
    change, message = BAD[name]
    edit_json(folder / "policy.json", change)
    refused(folder, message)


def test_provenance_and_environment_may_be_edited(folder):
    before = load_policy(folder, device="cpu").spec
    edit_json(folder / "policy.json", lambda c: c.update(env=None, provenance={"cite": "us"}))
    assert load_policy(folder, device="cpu").spec == replace(before, env=None, provenance={"cite": "us"})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scheduler/scheduler_config.json", {"steps_offset": 1}, "'steps_offset' is 1, but policy.json says 0"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "'thresholding' is True, but"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"}, "'_class_name' is 'DDPMScheduler'"),
        ("denoiser/config.json", {"time_dim": 32}, "'time_dim' is 32, but policy.json says 16"),
        ("denoiser/config.json", {"depth": 3}, "'depth' is 3, but policy.json says 'nothing about it'"),
    ],
)
def test_a_json_file_that_contradicts_policy_json_is_named(folder, file, change, message):
    edit_json(folder / file, lambda content: content.update(change))
    refused(folder, message)


def test_settings_of_another_version_of_diffusers_are_left_alone(folder):
    def change(content):
        del content["rescale_betas_zero_snr"]
        content.update(a_new_setting=None, _diffusers_version="9.0")

    edit_json(folder / "scheduler" / "scheduler_config.json", change)
    assert load_policy(folder, device="cpu").kind == "diffusion"
    edit_json(folder / "scheduler" / "scheduler_config.json", lambda content: content.pop("beta_schedule"))
    refused(folder, "'beta_schedule' is 'missing'")


FILES = ("scheduler/scheduler_config.json", "denoiser/config.json", "normalizer.safetensors")
TENSORS = ("denoiser/diffusion_pytorch_model.safetensors", "normalizer.safetensors")


@pytest.mark.parametrize("file", [*FILES, TENSORS[0]])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    refused(folder, rf"there is no .*{file}; the folder is incomplete")


@pytest.mark.parametrize("file", [*FILES, TENSORS[0], "policy.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, file, share):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: int(share * len(whole.rstrip()))])
    refused(folder, f"{file} is (not JSON|truncated)")


@pytest.mark.parametrize("file", TENSORS)
def test_a_flipped_bit_is_noticed(folder, file):
    data = bytearray((folder / file).read_bytes())
    data[-3] ^= 1
    (folder / file).write_bytes(data)
    refused(folder, r"not those that were written \(sha256 differs\)")


def test_other_tensors_are_noticed(folder):
    file = folder / TENSORS[0]
    tensors = load_file(file)
    name = next(iter(tensors))
    for change in ({name: tensors[name] * torch.nan}, {name: tensors[name][:1]}, {"extra": torch.zeros(1)}):
        save_file({**tensors, **change}, file)
        refused(folder, "not those that were written")


def test_settings_of_the_conversion_cannot_be_given_again(folder):
    with pytest.raises(DsrlError, match="says itself how it is sampled"):
        load_policy(folder, sampling_steps=3, device="cpu")
