"""Our checkpoint is safe to read, and says what is wrong with a file."""

import pickle
from dataclasses import replace

import pytest
import torch
from traps import Evil

from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained import DEFAULT_CHECKPOINT, convert, describe, load_policy, save_policy
from dsrl.pretrained.kinds import KINDS

ENV = EnvSpec("robosuite", "Lift", {"horizon": 80}, {"physics_timestep": 0.005}, ("object", "eef"), 80, "1.5.2")
SPEC = PolicySpec({"object": (2,), "eef": (3,)}, 3, 4, 4, env=ENV, provenance={"made by": "a test", "steps": 7})


def make_policy(seed=0):
    torch.manual_seed(seed)
    return DiffusionPolicy(SPEC, DiffusionConfig({"type": "mlp", "hidden_dims": [16] * 3})).freeze()


@pytest.fixture
def path(tmp_path):
    return save_policy(make_policy(), tmp_path / "lift.pt")


def edit(path, **changes):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.update(changes)
    torch.save(checkpoint, path)


def edit_weights(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["weights"])
    torch.save(checkpoint, path)


def refused(path, message):
    with pytest.raises(DsrlError, match=message):
        load_policy(path, device="cpu")


def test_everything_about_a_policy_survives(path):
    loaded = load_policy(path, device="cpu")
    assert replace(loaded.spec, sha256="") == SPEC
    assert loaded.sampler.steps == make_policy().sampler.steps
    assert not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["lift.pt"]


def hash_of(path):
    return load_policy(path, device="cpu").spec.sha256


def test_the_hash_is_that_of_weights_network_sampler_and_shapes(path, tmp_path):
    first = hash_of(path)
    assert len(first) == 64
    assert hash_of(save_policy(load_policy(path, device="cpu"), tmp_path / "again.pt")) == first
    assert hash_of(save_policy(make_policy(seed=1), tmp_path / "other.pt")) != first
    content = torch.load(path, weights_only=True)
    config, spec = content["config"], content["spec"]
    for changes in (
        {"config": {**config, "sampling_steps": 4}},
        {"config": {**config, "network": {**config["network"], "activation": "ReLU"}}},
        {"spec": {**spec, "n_action_steps": 3}},
        {"spec": {**spec, "obs_shapes": {"eef": [3], "object": [2]}}},
    ):
        torch.save({**content, **changes}, tmp_path / "changed.pt")
        assert hash_of(tmp_path / "changed.pt") != first
    torch.save({**content, "env": None, "provenance": {}}, tmp_path / "moved.pt")
    assert hash_of(tmp_path / "moved.pt") == first


def test_files_of_version_1_keep_their_hash(tmp_path):
    """The agents that steer them know it."""
    assert hash_of(DEFAULT_CHECKPOINT) == "fa46cd32af2e82d87cdea291a10dbfff276a267b6aeaa2fe45c699d8328178a1"
    assert convert(DEFAULT_CHECKPOINT, tmp_path / "out").sha256 == hash_of(DEFAULT_CHECKPOINT)
    content = torch.load(DEFAULT_CHECKPOINT, weights_only=True)
    torch.save({**content, "version": 2}, tmp_path / "new.pt")
    assert hash_of(tmp_path / "new.pt") != hash_of(DEFAULT_CHECKPOINT)
    assert convert(tmp_path / "new.pt", tmp_path / "new").sha256 == hash_of(tmp_path / "new.pt")


def test_a_folder_means_the_checkpoint_in_it(tmp_path):
    assert save_policy(make_policy(), tmp_path / "base") == tmp_path / "base" / "ckpt.pt"
    assert load_policy(tmp_path / "base", device="cpu").spec.env == ENV


@pytest.mark.parametrize("container", ["torch", "pickle"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_file_that_would_run_code_runs_nothing(tmp_path, container, nested):
    trap, path = tmp_path / "created", tmp_path / "evil.pt"
    content = {"format": "dsrl", "version": 1, "weights": Evil(trap)} if nested else Evil(trap)
    if container == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    refused(path, r"wants to run '\w+\.system'.*nothing was executed")
    with pytest.raises(DsrlError, match="nothing was executed"):
        describe(path)
    assert not trap.exists()
    if container == "pickle":  # the trap itself works
        pickle.loads(path.read_bytes())
        assert trap.exists()


def test_a_missing_file_names_its_neighbour(path):
    refused(path.with_name("lfit.pt"), r"no checkpoint at .*lfit.pt. Did you mean 'lift.pt'\?")
    refused(path.parent / "nowhere" / "x.pt", "no checkpoint at")


@pytest.mark.parametrize("content", [b"", b"hello, I am no checkpoint", b"PK\x03\x04 not a zip"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    refused(tmp_path / "x.pt", "x.pt is truncated or no torch file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, "lift.pt is truncated or no torch file")


def test_a_foreign_checkpoint_is_named(tmp_path):
    torch.save({"model": {}, "ema": {}, "epoch": 3}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"another program \(found: \['ema', 'epoch', 'model'\]\)")
    torch.save([1, 2], tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"another program \(found: list\)")


def test_a_newer_version_asks_for_an_update(path):
    for version in (3, 0, True, "1", None):
        edit(path, version=version)
        refused(path, f"format version {version}, this dsrl reads 1 to 2; update")


def test_an_unknown_kind_is_named(path):
    edit(path, kind="telepathy")
    refused(path, r"kind 'telepathy'; known are \['anchored', 'diffusion', 'flow'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("action_normalizer.scale"), r"missing: \['action_normalizer.scale'\]"),
        (lambda w: w.update(more=torch.zeros(1)), r"not expected: \['more'\]"),
        (
            lambda w: w.update({"obs_normalizer.scale": torch.ones(6)}),
            r"'obs_normalizer.scale' has shape \[6\].* \[5\]",
        ),
        (lambda w: w["denoiser.layers.2.bias"].fill_(float("nan")), "'denoiser.layers.2.bias' holds NaN"),
        (lambda w: w.update(more="text"), "plain tensors only, but 'more' is none"),
        (lambda w: w.update(more=torch.eye(3).to_sparse()), "plain tensors only, but 'more' is none"),
    ],
)
def test_weights_that_do_not_fit_are_named(path, change, message):
    edit_weights(path, change)
    refused(path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"sampling_step": 3}}, "no field 'sampling_step'. Did you mean 'sampling_steps'"),
        ({"config": {"prediction_type": "guess"}}, "guess"),
        ({"spec": {"action_dim": 3}}, "obs_shapes"),
        ({"spec": None}, "lacks 'spec'"),
    ],
)
def test_a_config_that_makes_no_policy_is_explained(path, changes, message):
    edit(path, **changes)
    refused(path, message)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("config", {"train_steps": 2**31}, "'train_steps' is 2147483648, which is more than 10000"),
        ("config", {"network": {"type": "mlp", "hidden_dims": [10**12]}}, "'hidden_dims' is 1000000000000"),
        ("config", {"network": {"type": "transformer", "n_layers": 10**5}}, "'n_layers' is 100000, which is more"),
        (
            "config",
            {"network": {"type": "mlp", "hidden_dims": [10**5] * 2}},
            "do not make a diffusion policy|has shape",
        ),
        ("config", {"prediction_type": []}, "do not make a diffusion policy"),
        ("spec", {"horizon": 10**9}, "'horizon' is 1000000000, which is more than 100000"),
        ("spec", {"noise_shape": [4, 7]}, r"noise of shape \(4, 7\) is no chunk of 4 x 3"),
        ("spec", {"action_start": -1}, "'action_start' is -1, expected a whole number"),
        ("spec", {"n_action_steps": 2.0}, "'n_action_steps' is 2.0, expected a whole number above 0"),
        ("spec", {"obs_shapes": {"object": [0], "eef": [5]}}, "'object' is 0, expected a whole number above 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(path, part, changes, message):
    content = torch.load(path, weights_only=True)
    edit(path, **{part: {**content[part], **changes}})
    refused(path, f"lift.pt.*({message})")


def test_a_config_that_contains_itself_is_refused(path):
    loop = {}
    loop["config"] = loop
    edit(path, config=loop)
    refused(path, "lift.pt: its config contains itself")


def test_a_policy_that_cannot_be_sampled_is_refused(path, monkeypatch):
    class Broken(DiffusionPolicy):
        def decode(self, cond, noise):
            raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setitem(KINDS, "diffusion", lambda config, spec, weights: Broken.from_config(config, spec))
    refused(path, "lift.pt: the policy cannot be sampled: shapes cannot be multiplied")


def test_a_policy_that_rolls_dice_is_refused(path, monkeypatch):
    class Dice(DiffusionPolicy):
        def decode(self, cond, noise):
            return super().decode(cond, noise + torch.randn_like(noise))

    monkeypatch.setitem(KINDS, "diffusion", lambda config, spec, weights: Dice.from_config(config, spec))
    refused(path, "the same noise gave two different chunks")


def test_an_unknown_device_is_explained(path):
    with pytest.raises(DsrlError, match="cannot compute on device 'gpu'"):
        load_policy(path, device="gpu")


def test_describe_tells_what_it_is(path):
    rows = dict(describe(path))
    assert rows["kind"] == "diffusion" and rows["format"] == "dsrl 2"
    assert "hidden_dims=[16, 16, 16]" in rows["network"] and "parameters" in rows["network"]
    assert rows["sampler"].startswith("DDIM, 10 steps of 20 levels, squaredcos_cap_v2, trailing")
    assert rows["observation eef"] == "[3]"
    assert list(rows).index("observation object") < list(rows).index("observation eef")
    assert rows["executed"] == "steps 0 to 3"
    assert rows["environment"].startswith("robosuite/Lift")
    assert rows["provenance made by"] == "a test"


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(DsrlError, match="disk is full"):
        save_policy(make_policy(seed=1), path)
    assert path.read_bytes() == before
