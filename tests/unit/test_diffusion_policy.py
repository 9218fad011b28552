"""Checkpoints of Diffusion Policy: the same chunks as upstream, and nothing of a file is ever executed."""

import os
import random
import sys
import types
import typing
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from traps import Evil

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.pretrained import describe, load_policy, save_policy
from dsrl.pretrained.allowlist import read_pickle
from dsrl.pretrained.archive import TorchArchive
from dsrl.pretrained.loading import read_checkpoint
from dsrl.pretrained.settings import plain

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion_policy"
CASES = [  # file, its weights, DDIM steps that are asked for, name of the expected chunk
    ("unet_ddpm", "ema", 8, "model_8"),
    ("unet_ddpm", "model", 20, "model_20"),
    ("unet_ddim", "ema", None, "model"),
    ("transformer_mlp", "ema", 7, "ema_model_7"),
    ("transformer_mlp", "model", 7, "model_7"),
    ("transformer_encoder", "ema", None, "model"),
]
SPECS = {  # obs_shapes, To, Tp, action_start, Ta
    "unet_ddpm": (
        {"object": (10,), "robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,)},
        (2, 16, 1, 8),
    ),
    "unet_ddim": ({"obs": (20,)}, (1, 16, 1, 9)),
    "transformer_mlp": ({"obs": (16,)}, (3, 5, 2, 1)),
    "transformer_encoder": ({"obs": (20,)}, (2, 10, 1, 8)),
}
STEPS = {"unet_ddpm": 8, "transformer_mlp": 7}


def load(path, **kwargs):
    kwargs.setdefault("sampling_steps", STEPS.get(Path(path).stem))
    return load_policy(path, device="cpu", **kwargs)


def expected(name):
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def refused(path, message, **kwargs):
    kwargs.setdefault("sampling_steps", 8)
    with pytest.raises(DsrlError, match=message) as caught:
        load_policy(path, device="cpu", **kwargs)
    assert str(caught.value).startswith(str(path))


# -- the same policy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights", "steps", "key"), CASES)
def test_the_chunks_are_those_of_upstream(name, weights, steps, key):
    golden = expected(name)
    policy = load(GOLDEN / f"{name}.ckpt", weights=weights, sampling_steps=steps)
    chunk = policy.sample(golden["obs"], golden["noise"])
    torch.testing.assert_close(chunk, golden[key], atol=1e-5, rtol=0)
    assert not [parameter for parameter in policy.parameters() if parameter.requires_grad] and not policy.training


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_is_its_singles(name):
    golden, policy = expected(name), load(GOLDEN / f"{name}.ckpt")
    chunk = policy.sample(golden["obs"], golden["noise"])
    singles = [policy.sample(golden["obs"][i : i + 1], golden["noise"][i : i + 1]) for i in range(8)]
    torch.testing.assert_close(torch.cat(singles), chunk, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_that_of_the_config(name):
    spec = load(GOLDEN / f"{name}.ckpt").spec
    shapes, numbers = SPECS[name]
    assert list(spec.obs_shapes.items()) == list(shapes.items())
    assert (spec.n_obs_steps, spec.horizon, spec.action_start, spec.n_action_steps) == numbers
    assert spec.noise_shape == (spec.horizon, expected(name)["noise"].shape[-1])


def test_average_and_raw_weights_are_two_policies():
    path = GOLDEN / "transformer_mlp.ckpt"
    golden = expected("transformer_mlp")
    assert (golden["model_7"] - golden["ema_model_7"]).abs().max() > 0.01
    assert load(path).spec.sha256 != load(path, weights="model").spec.sha256
    assert load(path).spec.sha256 != load(path, sampling_steps=8).spec.sha256


def test_describe_tells_what_it_is():
    rows = describe(GOLDEN / "transformer_mlp.ckpt", LoadConfig(sampling_steps=7))
    assert ("format", "diffusion-policy unversioned") in rows
    assert ("note", "moving average of the weights (ema_model)") in rows
    assert ("note", "sampled by DDIM in 7 steps, as asked for") in rows
    notes = [value for name, value in describe(GOLDEN / "unet_ddim.ckpt") if name == "note"]
    assert "raw weights: training.use_ema is false" in notes and notes[-1].startswith("n_latency_steps 1")


@pytest.mark.parametrize("name", ["unet_ddpm", "transformer_mlp"])
def test_it_can_be_exported(name, tmp_path):
    golden, policy = expected(name), load(GOLDEN / f"{name}.ckpt")
    own = load_policy(save_policy(policy, tmp_path / "own.pt"), device="cpu")
    assert torch.equal(own.sample(golden["obs"], golden["noise"]), policy.sample(golden["obs"], golden["noise"]))


@pytest.mark.parametrize("name", ["transformer_mlp", "transformer_encoder"])
def test_a_transformer_works_where_it_is_moved(name):
    golden, policy = expected(name), load(GOLDEN / f"{name}.ckpt")
    cond = policy.encode(golden["obs"]).to("meta")
    assert policy.to("meta").decode(cond, golden["noise"].to("meta")).device.type == "meta"


def test_a_ddpm_policy_asks_for_a_deterministic_sampler():
    refused(GOLDEN / "unet_ddpm.ckpt", r"sampled by DDPM.*--load.sampling-steps 16.*changes", sampling_steps=None)
    with pytest.raises(DsrlError, match="101 sampling steps do not fit into the 100"):
        load(GOLDEN / "unet_ddpm.ckpt", sampling_steps=101)


def test_side_files_are_refused(tmp_path):
    refused(GOLDEN / "unet_ddim.ckpt", "leave out --load.config", config=tmp_path / "x.yaml", sampling_steps=None)


# -- files that were changed ------------------------------------------------------------------------------------------


@cache
def content(name):
    """What a golden file holds, as plain values and tensors."""
    archive = TorchArchive(GOLDEN / f"{name}.ckpt")
    read = read_pickle(archive.pickle(), archive.path)
    states = {key: state for key, state in read["state_dicts"].items() if key != "optimizer"}
    states = {key: {name: archive.tensor(value) for name, value in state.items()} for key, state in states.items()}
    return {"cfg": plain(read["cfg"], archive.path), "state_dicts": states, "pickles": {}}


def container(module, name):
    """A class that is pickled under a name of OmegaConf, which is not installed here."""
    cls = type(name, (), {"__module__": module})
    sys.modules.setdefault(module, types.ModuleType(module)).__dict__[name] = cls
    return cls


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a checkpoint like upstream's: golden content, changed by a function of config and weights."""
    for module in ("omegaconf", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.nodes"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    kinds = {dict: ("dictconfig", "DictConfig"), list: ("listconfig", "ListConfig")}
    classes = {kind: container(f"omegaconf.{module}", name) for kind, (module, name) in kinds.items()}
    leaf = container("omegaconf.nodes", "AnyNode")

    def wrap(value):
        node = classes.get(type(value), leaf)()
        if isinstance(value, dict):
            node._content = {key: wrap(item) for key, item in value.items()}
        elif isinstance(value, list):
            node._content = [wrap(item) for item in value]
        else:
            node._val = value
        return node

    def write(name, change):
        payload = deepcopy(content(name))
        change(payload)
        payload["cfg"] = wrap(payload["cfg"])
        torch.save(payload, tmp_path / f"{name}.ckpt")
        return tmp_path / f"{name}.ckpt"

    return write


def policy_change(**changes):
    def change(payload):
        for name, value in changes.items():
            *path, last = name.split("__")
            section = payload["cfg"]["policy"]
            for part in path:
                section = section[part]
            if value is DELETE:
                del section[last]
            else:
                section[last] = value

    return change


DELETE = object()


@pytest.mark.parametrize("name", SPECS)
def test_the_test_writes_what_upstream_writes(name, write):
    golden, path = expected(name), write(name, lambda payload: None)
    original = load(GOLDEN / f"{name}.ckpt")
    assert torch.equal(
        load(path).sample(golden["obs"], golden["noise"]), original.sample(golden["obs"], golden["noise"])
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet_ddim", {"obs_as_global_cond": False}, "'policy.obs_as_global_cond' .* is False; that is inpainting"),
        ("unet_ddim", {"obs_as_global_cond": DELETE}, "that is inpainting"),
        ("unet_ddim", {"obs_as_local_cond": True}, "'policy.obs_as_local_cond' .* global condition"),
        ("unet_ddim", {"model__cond_predict_scale": False}, "only FiLM with scale and bias"),
        ("unet_ddim", {"model__n_groups": 4}, "only 8 is known"),
        ("unet_ddim", {"model__down_dims": [8, 16, 8]}, "its weights do not fit 'policy.model'"),
        ("unet_ddim", {"model__down_dims": [8, 8]}, "its weights do not fit 'policy.model'"),
        ("unet_ddim", {"model__down_dims": [99992, 99992, 99992]}, "has shape .*its config says"),
        ("unet_ddim", {"model__down_dims": "wide"}, "it must be a list"),
        ("unet_ddim", {"model__diffusion_step_embed_dim": 10**9}, "it must lie in 4 to 100000"),
        ("unet_ddim", {"horizon": 15}, "describes no network that can be built: .*halves the horizon"),
        ("unet_ddim", {"horizon": 8}, "executes 9 steps .* of a horizon of 8"),
        ("unet_ddim", {"obs_dim": 19}, "has shape .*its config says"),
        ("unet_ddim", {"n_obs_steps": True}, "'policy.n_obs_steps' .* is True; it must be a int"),
        ("unet_ddim", {"n_obs_steps": "${n_obs_steps}"}, r"reference '\$\{n_obs_steps\}'.*never evaluated"),
        ("unet_ddim", {"action_dim": DELETE}, "its config lacks 'policy.action_dim'.*Save the checkpoint again"),
        ("unet_ddim", {"eta": 1.0}, "only eta 0 is deterministic"),
        ("unet_ddim", {"predict_epsilon": True}, "'policy.predict_epsilon' .* handed to every step of its sampler"),
        ("unet_ddim", {"_target_": "diffusion_policy.policy.x.DiffusionUnetImagePolicy"}, "it reads images"),
        ("unet_ddim", {"_target_": "os.system"}, "holds a system; known are DiffusionUnetLowdimPolicy"),
        ("unet_ddim", {"model___target_": "my.net.BetterUnet1D"}, "its network is a BetterUnet1D"),
        ("unet_ddim", {"noise_scheduler___target_": "diffusers.EulerScheduler"}, "is sampled by EulerScheduler"),
        ("unet_ddim", {"noise_scheduler__beta_schedule": "sigmoid"}, "is 'sigmoid'; known are linear"),
        ("unet_ddim", {"noise_scheduler__trained_betas": [0.1]}, "only the noise schedules with a name"),
        ("unet_ddim", {"noise_scheduler__clip_samples": True}, "Did you mean 'clip_sample'"),
        ("unet_ddim", {"noise_scheduler__num_train_timesteps": 10**12}, "must lie in 1 to 10000"),
        ("unet_ddim", {"num_inference_steps": 100}, "'policy.noise_scheduler.steps_offset' 1 moves the first of 100"),
        ("transformer_encoder", {"noise_scheduler__beta_end": 0.03}, "of this schedule only 0.02 is known"),
        ("transformer_encoder", {"obs_as_cond": False}, "that is inpainting"),
        ("transformer_encoder", {"pred_action_steps_only": True}, "of transformers only false is known"),
        ("transformer_encoder", {"model__time_as_cond": False}, "only decoders that see the time"),
        ("transformer_encoder", {"model__n_obs_steps": 3}, "it must be the policy's own"),
        ("transformer_encoder", {"model__cond_dim": 0}, "it must be obs_dim"),
        ("transformer_encoder", {"model__n_head": 5}, "multiple of the number of heads"),
        ("transformer_encoder", {"model__n_cond_layers": 0}, "its weights do not fit"),
        ("transformer_mlp", {"model__causal_attn": False}, "'model.mask' is not the causal mask"),
    ],
)
def test_a_config_that_cannot_be_followed_is_named(name, changes, message, write):
    refused(write(name, policy_change(**changes)), message, sampling_steps=None if name != "transformer_mlp" else 7)


def weight_change(function):
    def change(payload):
        for state in payload["state_dicts"].values():
            function(state)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weight_change(lambda w: w.pop("model.final_conv.1.bias")), r"missing: \['model.final_conv.1.bias'\]"),
        (weight_change(lambda w: w.update({"model.more": torch.ones(1)})), r"not\s+expected: \['model.more'\]"),
        (weight_change(lambda w: w.update({"obs_encoder.x": torch.ones(1)})), "'obs_encoder.x' belongs to nothing"),
        (weight_change(lambda w: w.update(more="text")), "holds 'more', which is no tensor"),
        (
            weight_change(lambda w: w["model.final_conv.1.bias"].fill_(torch.nan)),
            "'denoiser.final_conv.1.bias' holds NaN",
        ),
        (
            weight_change(lambda w: w.pop("normalizer.params_dict.obs.scale")),
            "lacks 'normalizer.params_dict.obs.scale'",
        ),
        (weight_change(lambda w: w["normalizer.params_dict.obs.scale"][3:].zero_()), "of 'obs' holds zeros"),
        (
            weight_change(lambda w: w.update({"normalizer.params_dict.action.scale": torch.ones(3)})),
            r"action.scale' has shape \[3\], its config says \[2\]",
        ),
        (
            weight_change(lambda w: w.update({"normalizer.params_dict.image.scale": torch.ones(1)})),
            r"has the fields \['action', 'image', 'obs'\]",
        ),
        (lambda payload: payload["state_dicts"].pop("model"), "lacks the weights 'state_dicts.model'"),
        (lambda payload: payload["cfg"].pop("policy"), "its config lacks 'policy"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message, write):
    refused(write("unet_ddim", change), message, sampling_steps=None)


@pytest.mark.parametrize("name", ["model.mask", "model.memory_mask"])
def test_another_mask_is_refused(name, write):
    path = write("transformer_mlp", weight_change(lambda weights: weights[name][0].zero_()))
    refused(path, f"'{name}' is not the causal mask")


def test_a_normaliser_of_one_number_is_spread(write):
    def change(weights):
        for name in ("scale", "offset"):
            weights[f"normalizer.params_dict.action.{name}"] = torch.full((1,), 0.5)

    policy = load(write("unet_ddim", weight_change(change)))
    assert policy.action_normalizer.scale.tolist() == [2.0, 2.0]
    assert policy.action_normalizer.offset.tolist() == [-1.0, -1.0]


def test_a_network_of_the_executed_steps_only_is_executed_from_its_first(write):
    path = write("unet_ddim", policy_change(pred_action_steps_only=True, n_action_steps=8))
    spec = load(path).spec
    assert (spec.horizon, spec.action_start, spec.n_action_steps) == (8, 0, 8)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_first_executed_step_follows_the_convention(aligned, write):
    spec = load(write("unet_ddpm", policy_change(oa_step_convention=aligned))).spec
    assert spec.action_start == (1 if aligned else 2)


def test_without_an_average_the_raw_weights_are_named(write):
    path = write("transformer_mlp", lambda payload: payload["state_dicts"].pop("ema_model"))
    golden = expected("transformer_mlp")
    torch.testing.assert_close(load(path).sample(golden["obs"], golden["noise"]), golden["model_7"], atol=1e-5, rtol=0)
    notes = [value for name, value in describe(path, LoadConfig(sampling_steps=7)) if name == "note"]
    assert "raw weights: training.use_ema is true, but there is no ema_model" in notes


def test_observations_without_known_sizes_stay_together(write):
    path = write("unet_ddpm", lambda payload: payload["cfg"]["task"].update(obs_keys=["object", "gripper"]))
    assert load(path).spec.obs_shapes == {"obs": (19,)}


# -- files that would run code ----------------------------------------------------------------------------------------


def at_top(payload, value):
    payload["evil"] = value


def in_config(payload, value):
    payload["cfg"]["policy"]["horizon"] = value


def in_a_list(payload, value):
    payload["cfg"]["policy"]["model"]["down_dims"].append(value)


def in_weights(payload, value):
    payload["state_dicts"]["model"]["model.final_conv.1.bias"] = value


def in_pickles(payload, value):
    payload["pickles"]["epoch"] = value


@pytest.mark.parametrize("place", [at_top, in_config, in_a_list, in_weights, in_pickles])
@pytest.mark.parametrize("hidden", [os.system, eval, print, random.Random, None])
def test_a_file_that_would_run_code_runs_nothing(place, hidden, write, tmp_path):
    trap = tmp_path / "created"
    value = Evil(trap) if hidden is None else hidden
    path = write("unet_ddim", lambda payload: place(payload, value))
    name = {os.system: "system", eval: "eval", print: "print", random.Random: "Random", None: "system"}[hidden]
    refused(path, rf"wants to run '\w+\.{name}'.*nothing was executed", sampling_steps=None)
    assert not trap.exists()


def repacked(path, make):
    """The golden file with another pickle in it, checksums made anew."""
    with zipfile.ZipFile(GOLDEN / "unet_ddim.ckpt") as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, make(content) if entry.filename.endswith("data.pkl") else content)
    return path


def opcodes(*parts):
    """A protocol 4 pickle that begins like one of the format, so that it is recognised, and then does ``parts``."""
    head = b"\x80\x04}" + string("state_dicts cfg") + b"comegaconf.dictconfig\nDictConfig\ns"
    return head + b"".join(parts) + b"."


@pytest.mark.parametrize("place", [in_config, in_a_list, in_weights])
def test_an_allowed_name_is_no_value(place, write):
    path = write("unet_ddim", lambda payload: place(payload, typing.Any))
    message = r"'model.final_conv.1.bias', which is no tensor" if place is in_weights else "holds the name 'typing.Any'"
    refused(path, message, sampling_steps=None)


def string(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


CALL = string("touch TRAP") + b"\x85R"  # a tuple of one string, REDUCE
ATTACKS = {
    "a dotted name": (string("torch._utils") + string("_rebuild_tensor_v2.__globals__") + b"\x93", "wants to run"),
    "a dotted name of a storage": (
        string("torch.storage") + string("io.open") + b"\x93" + CALL,
        "torch.storage.io.open",
    ),
    "a dotted name of an allowed class": (
        string("omegaconf.dictconfig") + string("DictConfig.__init__.__globals__") + b"\x93",
        "wants to run",
    ),
    "a module through a package": (string("omegaconf.omegaconf") + string("os.system") + b"\x93" + CALL, "os.system"),
    "a call by name": (b"cos\nsystem\n" + CALL, "wants to run 'os.system'"),
    "the first name of Python 2": (b"c__builtin__\neval\n" + CALL, "wants to run '__builtin__.eval'"),
    "getattr": (b"cbuiltins\ngetattr\n0", "wants to run 'builtins.getattr'"),
    "an instance": (b"(" + string("touch TRAP") + b"ios\nsystem\n", "instruction INST"),
    "an object": (b"(cos\nsystem\n" + string("touch TRAP") + b"o", "wants to run 'os.system'"),
    "an extension": (b"\x82\x01", "instruction EXT1"),
    "a call of a class": (
        b"comegaconf.dictconfig\nDictConfig\n" + CALL,
        "wants to run 'omegaconf.dictconfig.DictConfig'",
    ),
    "a class with arguments": (
        b"comegaconf.dictconfig\nDictConfig\n" + string("x") + b"\x85\x81",
        "wants to run 'omegaconf.dictconfig.DictConfig",
    ),
    "a call of Any": (b"ctyping\nAny\n" + CALL, "wants to run 'typing.Any'"),
    "a call of a string": (string("os.system") + CALL, "called that is no function"),
    "a type by name": (b"cdill._dill\n_load_type\n" + string("FunctionType") + b"\x85R", "_load_type.FunctionType"),
    "a call of a type": (b"cdill._dill\n_load_type\n" + string("int") + b"\x85R" + CALL, "called that is no function"),
    "a factory": (b"ccollections\ndefaultdict\n" + b"cos\ngetcwd\n\x85R", "wants to run 'os.getcwd'"),
    "a codec": (b"c_codecs\nencode\n" + string("x") + string("rot13") + b"\x86R", "another way than pickle's"),
    "a state for a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\nN}" + string("__defaults__") + b"Ns\x86b",
        "a Global is given a state",
    ),
    "a state for a class": (
        b"comegaconf.dictconfig\nDictConfig\n}" + string("__setstate__") + b"ctyping\nAny\nsb",
        "a Global is given a state",
    ),
    "a tensor from nowhere": (
        b"(" + string("file") + b"ctorch\nFloatStorage\n" + string("/etc/passwd") + string("cpu") + b"K\x01tQ",
        "stands in 'file'",
    ),
    "a tower as a key": (b")" + b"\x85" * 100_000 + b"Ns", "neither a name nor a number"),
    "a tower as a name": (b")" + b"\x85" * 100_000 + string("x") + b"\x93", "a name is no text"),
    "no end": (b"}" * 3, "ends in the middle"),
    "an empty stack": (b"aaa", "lacks its operand"),
    "an unknown memory": (b"h\x77", "cannot be read"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_by_instructions_is_refused(attack, tmp_path, monkeypatch):
    instructions, message = ATTACKS[attack]
    monkeypatch.chdir(tmp_path)
    path = repacked(tmp_path / "evil.ckpt", lambda _: opcodes(instructions.replace(b"TRAP", b"trap")))
    refused(path, message, sampling_steps=None)
    assert not (tmp_path / "trap").exists()


def test_a_config_that_contains_itself_is_refused(tmp_path, write):
    def nest(payload):
        for _ in range(60):
            payload["cfg"]["policy"] = {"policy": payload["cfg"]["policy"]}

    refused(write("unet_ddim", nest), "contains itself", sampling_steps=None)
    node = b"comegaconf.dictconfig\nDictConfig\n)\x81\x94}" + string("_content") + b"}" + string("policy") + b"h\x00ssb"
    path = repacked(
        tmp_path / "loop.ckpt",
        lambda _: opcodes(string("cfg") + node + b"s" + string("state_dicts") + b"}s"),
    )
    refused(path, "contains itself", sampling_steps=None)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (10**6, 10**6), "stride": (0, 0)},  # a small file that would fill the memory
        {"size": (8, 3), "stride": (1, 1)},
        {"offset": 1},
        {"offset": 10**12},
        {"stride": (100,)},
    ],
)
def test_a_tensor_that_its_record_does_not_hold_is_refused(change):
    archive = TorchArchive(GOLDEN / "unet_ddim.ckpt")
    stored = read_pickle(archive.pickle(), archive.path)["state_dicts"]["model"]["model.final_conv.1.bias"]
    assert archive.tensor(stored).shape == (2,)
    with pytest.raises(DsrlError, match=r"holds 2 numbers, its tensor of shape .* reads others"):
        archive.tensor(replace(stored, **change))
    with pytest.raises(DsrlError, match="has 8 bytes, not 3 x 4"):
        archive.tensor(replace(stored, storage=replace(stored.storage, numel=3)))


# -- files that are damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = tmp_path / "unet_ddim.ckpt"
    content = (GOLDEN / path.name).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "truncated or no torch file")
    refused(path, "truncated or no torch file", format="diffusion-policy")


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    path, golden = tmp_path / "unet_ddim.ckpt", GOLDEN / "unet_ddim.ckpt"
    archive = TorchArchive(golden)
    stored = read_pickle(archive.pickle(), golden)["state_dicts"]["model"]["model.final_conv.1.bias"]
    content = bytearray(golden.read_bytes())
    content[content.index(archive.tensor(stored).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    refused(path, f"checksum of the record 'data/{stored.storage.key}' is wrong; copy it again", sampling_steps=None)


def test_a_mutated_file_is_refused_or_means_the_same(tmp_path):
    golden, path = GOLDEN / "transformer_encoder.ckpt", tmp_path / "mutated.ckpt"
    right, generator, same = read_checkpoint(golden, LoadConfig()), random.Random(0), 0
    content = golden.read_bytes()
    with zipfile.ZipFile(golden) as archive:
        directory = archive.start_dir
    for case in range(100):
        mutated = bytearray(content)
        if case % 10 == 9:
            del mutated[generator.randrange(1, len(mutated)) :]
        for _ in range(generator.choice([1, 1, 3])):
            # half of them where the names, sizes and checksums of the records stand
            position = generator.randrange(directory if case % 2 else 0, len(content)) % len(mutated)
            mutated[position] ^= 1 << generator.randrange(8)
        path.write_bytes(mutated)
        try:
            read = read_checkpoint(path, LoadConfig())
        except DsrlError as error:
            assert str(path) in str(error)
            continue
        same += 1
        assert (read.config, read.spec, read.notes) == (right.config, right.spec, right.notes)
        assert read.weights.keys() == right.weights.keys()
        assert all(torch.equal(value, right.weights[name]) for name, value in read.weights.items())
    assert 0 < same < 50


@pytest.mark.parametrize(("field", "bit"), [(8, 0), (10, 3), (10, 0), (24, 1), (42, 4)])
def test_a_damaged_entry_of_the_directory_is_refused(field, bit, tmp_path):
    """The flag of encryption, the method of compression, the size and the position of the pickle."""
    content = bytearray((GOLDEN / "unet_ddim.ckpt").read_bytes())
    with zipfile.ZipFile(GOLDEN / "unet_ddim.ckpt") as archive:
        start = content.index(b"PK\x01\x02", archive.start_dir)
        assert archive.infolist()[0].filename.endswith("/data.pkl")
    content[start + field] ^= 1 << bit
    (tmp_path / "x.ckpt").write_bytes(content)
    for kind in ("auto", "diffusion-policy"):
        with pytest.raises(DsrlError, match=r"x\.ckpt"):
            load_policy(tmp_path / "x.ckpt", format=kind, device="cpu")


def test_another_archive_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")
    refused(path, "none of torch.save", format="diffusion-policy")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, path)
    refused(path, r"lacks the config 'cfg' .*found: \['hyper_parameters', 'state_dict'\]", format="diffusion-policy")
    refused(path, "checkpoint of another program", sampling_steps=None)
    refused(tmp_path, "is a folder; name one of the .ckpt files", format="diffusion-policy")
