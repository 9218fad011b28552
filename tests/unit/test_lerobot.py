"""Diffusion Policy folders of LeRobot: they answer as in LeRobot, and say what is wrong with them."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from traps import Evil

from dsrl.errors import DsrlError
from dsrl.networks import ConditionalUnet1D
from dsrl.pretrained import convert, describe, load_policy
from dsrl.pretrained.loading import read_checkpoint
from dsrl.pretrained.unet_keys import lerobot_name, unet_sizes, unet_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot"
NEW, OTHER, OLD = "v044_min_max", "v044_quantiles", "v033"
STATE, ENV = "observation.state", "observation.environment_state"
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"


def load(path, **options):
    return load_policy(path, device="cpu", **options)


def golden(name):
    """Observations by key, noise, and the chunk that LeRobot executes."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    obs = {key.removeprefix("obs."): value for key, value in tensors.items() if key.startswith("obs.")}
    return obs, tensors["noise"], tensors["chunk"]


def answer(path, name=NEW, **options):
    obs, noise, _ = golden(name)
    return load(path, **options).sample(obs, noise)


def exact(name):
    """A policy in double precision with its observations and noise: in single, processors differ by 1e-5."""
    obs, noise, _ = golden(name)
    return load(GOLDEN / name).double(), {key: value.double() for key, value in obs.items()}, noise.double()


@pytest.fixture
def copy(tmp_path):
    def make(name=NEW):
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return make


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def refused(path, message, **options):
    with pytest.raises(DsrlError, match=message) as caught:
        load(path, **options)
    assert str(caught.value).startswith(str(path))


# -- as in LeRobot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NEW, OTHER, OLD])
def test_it_answers_as_in_lerobot(name):
    policy, obs, noise = exact(name)
    chunk = golden(name)[2]
    torch.testing.assert_close(policy.sample(obs, noise), chunk.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(answer(GOLDEN / name, name), chunk, atol=3e-5, rtol=0)


def test_the_versions_normalise_differently():
    """One adds 1e-8 to a range, the other does not; a small range shows it, so neither passes for the other."""
    new, old = golden(NEW), golden(OLD)
    assert all(torch.equal(new[0][key], old[0][key]) for key in new[0]) and torch.equal(new[1], old[1])
    assert (new[2] - old[2]).abs().max() > 5e-5


def test_a_sensor_that_never_moved_is_normalised_exactly():
    obs, _, _ = golden(NEW)
    cond = load(GOLDEN / NEW).encode(obs).reshape(8, 2, 9)
    assert (cond[:7, :, 2] + 1).abs().max() < 1e-6  # its only value is -1
    moved = 2 * (obs[STATE][7, 1, 2] - obs[STATE][0, 0, 2]).double() / 1e-8 - 1
    assert moved > 4 and abs(cond[7, 1, 2] - moved) < 1e-5


@pytest.mark.parametrize(
    ("name", "shapes", "rest"),
    [
        (NEW, {STATE: (4,), ENV: (5,)}, (2, 8, 1, 4, 3)),
        (OTHER, {STATE: (3,), ENV: (2,)}, (3, 16, 2, 6, 2)),
        (OLD, {STATE: (4,), ENV: (5,)}, (2, 8, 1, 4, 3)),
    ],
)
def test_the_spec(name, shapes, rest):
    policy = load(GOLDEN / name)
    spec = policy.spec
    assert list(spec.obs_shapes.items()) == list(shapes.items())
    assert (spec.n_obs_steps, spec.horizon, spec.action_start, spec.n_action_steps, spec.action_dim) == rest
    assert spec.noise_shape == (spec.horizon, spec.action_dim)
    assert not [p for p in policy.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", [NEW, OTHER, OLD])
def test_a_batch_is_its_singles_and_a_dict_its_concatenation(name):
    policy, obs, noise = exact(name)
    whole = policy.sample(obs, noise)
    singles = [policy.sample({key: v[i : i + 1] for key, v in obs.items()}, noise[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(whole, torch.cat(singles), atol=1e-12, rtol=0)
    assert torch.equal(whole, policy.sample(torch.cat([obs[STATE], obs[ENV]], dim=-1), noise))


def test_the_state_of_the_environment_is_not_normalised_unless_the_file_says_so():
    for name, normalised in ((NEW, False), (OTHER, True)):
        obs, _, _ = golden(name)
        policy = load(GOLDEN / name)
        dims = obs[ENV].shape[-1]
        cond = policy.encode(obs).reshape(*obs[ENV].shape[:2], -1)[..., -dims:]
        assert torch.equal(cond, obs[ENV]) != normalised


def test_one_network_under_three_names():
    tensors = load_file(GOLDEN / OTHER / "model.safetensors")
    ours = unet_weights(tensors, "diffusion.unet.", lerobot=True)
    chi = {f"model.{name}": tensor for name, tensor in ours.items()}
    robomimic = {f"policy.noise_pred_net.{name}": tensor for name, tensor in ours.items()}
    x, t, cond = torch.randn(4, 16, 2), torch.tensor(7), torch.randn(4, 15)
    outputs = []
    for weights in (ours, unet_weights(chi, "model."), unet_weights(robomimic, "policy.noise_pred_net.")):
        network = ConditionalUnet1D(2, 16, 15, down_dims=(16, 16), time_dim=16, kernel_size=3)
        network.load_state_dict(weights)
        outputs.append(network(x, t, cond))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], network(x, t + 1, cond))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("down_modules.0.0.conv1.block.0.weight", "down_modules.0.0.blocks.0.block.0.weight"),
        ("mid_modules.1.conv2.block.1.bias", "mid_modules.1.blocks.1.block.1.bias"),
        ("down_modules.0.2.weight", "down_modules.0.2.conv.weight"),
        ("up_modules.0.2.bias", "up_modules.0.2.conv.bias"),
        ("up_modules.0.1.cond_encoder.1.bias", "up_modules.0.1.cond_encoder.1.bias"),
        ("down_modules.1.0.residual_conv.weight", "down_modules.1.0.residual_conv.weight"),
        ("final_conv.0.block.1.weight", "final_conv.0.block.1.weight"),
        ("diffusion_step_encoder.3.weight", "diffusion_step_encoder.3.weight"),
    ],
)
def test_names(theirs, ours):
    assert lerobot_name(theirs) == ours


def test_sizes_come_from_the_tensors():
    weights = unet_weights(load_file(GOLDEN / NEW / "model.safetensors"), "diffusion.unet.", lerobot=True)
    sizes = unet_sizes(weights, GOLDEN)
    assert (sizes.action_dim, sizes.cond_dim, sizes.down_dims) == (3, 18, (8, 16))
    assert (sizes.time_dim, sizes.kernel_size, sizes.film_scale) == (16, 5, True)


# -- the forms that a folder can have ---------------------------------------------------------------------------------


def test_the_files_of_the_processors_are_found_by_their_registry(copy):
    folder = copy()
    (folder / NORMALIZER).rename(folder / "elsewhere.safetensors")

    def change(content):
        content["steps"].insert(0, {"registry_name": "to_batch_processor", "config": {}})
        content["steps"][-1]["state_file"] = "elsewhere.safetensors"

    edit_json(folder / "policy_preprocessor.json", change)
    assert torch.equal(answer(folder), answer(GOLDEN / NEW))


def test_a_ddpm_policy_asks_for_a_sampler(copy):
    folder = copy()
    edit_json(folder / "config.json", lambda c: c.update(noise_scheduler_type="DDPM"))
    refused(folder, "sampled by DDPM.*cannot be steered. --load.sampling-steps 16")
    assert torch.equal(answer(folder, sampling_steps=8), answer(GOLDEN / NEW))
    assert not torch.allclose(answer(folder, sampling_steps=16), answer(GOLDEN / NEW), atol=1e-3)


def test_ddim_without_steps_takes_every_level(copy):
    folder = copy(OTHER)
    edit_json(folder / "config.json", lambda c: c.update(num_inference_steps=None))
    assert load(folder).config.sampling_steps == 50


def test_what_config_json_leaves_out_is_the_default_of_its_version(copy):
    folder = copy()
    edit_json(folder / "config.json", lambda c: [c.pop(name) for name in ("kernel_size", "n_obs_steps", "beta_start")])
    assert torch.equal(answer(folder), answer(GOLDEN / NEW))
    rows = [value for name, value in describe(folder) if name == "note"]
    assert rows == [
        "config.json does not say n_obs_steps, kernel_size, beta_start; assumed is LeRobot 0.3 to 0.5: "
        "n_obs_steps=2, kernel_size=5, beta_start=0.0001"
    ]
    edit_json(folder / "config.json", lambda c: [c.pop(name) for name in ("horizon", "n_action_steps")])
    assert (load(folder).spec.horizon, load(folder).spec.n_action_steps) == (16, 8)
    edit_json(folder / "config.json", lambda c: c.update(gradient_checkpointing=False))
    assert (load(folder).spec.horizon, load(folder).spec.n_action_steps) == (64, 32)


def make_first_style(config):
    """As the files of 2024 were: no type, no features, modes by key."""
    del config["type"], config["normalization_mapping"]
    config["input_shapes"] = {key: feature["shape"] for key, feature in config.pop("input_features").items()}
    config["output_shapes"] = {key: feature["shape"] for key, feature in config.pop("output_features").items()}
    config["input_normalization_modes"] = {STATE: "min_max"}
    config["output_normalization_modes"] = {"action": "min_max"}


def test_the_first_files_had_no_type(copy):
    folder = copy(OLD)
    edit_json(folder / "config.json", make_first_style)
    assert torch.equal(answer(folder), answer(GOLDEN / OLD))


def test_a_compiled_network_has_the_same_weights(copy):
    folder = copy()

    def change(tensors):
        for name in list(tensors):
            tensors[name.replace("diffusion.unet.", "diffusion.unet._orig_mod.")] = tensors.pop(name)

    edit_tensors(folder / "model.safetensors", change)
    assert torch.equal(answer(folder), answer(GOLDEN / NEW))


def test_statistics_in_both_places_are_those_of_the_processors(copy):
    folder = copy()
    action = torch.zeros(3)
    edit_tensors(
        folder / "model.safetensors",
        lambda t: t.update({f"unnormalize_outputs.buffer_action.{name}": action + i for i, name in enumerate("ab")}),
    )
    assert torch.equal(answer(folder), answer(GOLDEN / NEW))
    assert ("note", "the statistics inside the weights are not used; LeRobot reads those of the processor files") in (
        describe(folder)
    )


def test_inputs_that_the_network_does_not_see_are_noted(copy):
    folder = copy()
    feature = {"type": "STATE", "shape": [6]}
    edit_json(folder / "config.json", lambda c: c["input_features"].update({"observation.velocity": feature}))
    assert torch.equal(answer(folder), answer(GOLDEN / NEW))
    assert ("note", "its network does not look at observation.velocity") in describe(folder)


def test_an_averaged_neighbour_is_noted(copy):
    folder = copy()
    shutil.copytree(folder, folder.with_name(f"{folder.name}_ema"))
    assert next(value for name, value in describe(folder) if name == "note").endswith(f"{folder.name}_ema")


def test_identity_needs_no_statistics(copy):
    folder = copy()
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()
    refused(folder, "no statistics to normalise with.*Copy the policy_")
    edit_json(
        folder / "config.json", lambda c: c.update(normalization_mapping={"STATE": "IDENTITY", "ACTION": "IDENTITY"})
    )
    assert answer(folder).abs().max() <= 1


@pytest.mark.parametrize(("mode", "low", "high"), [("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")])
def test_quantiles_of_observations(copy, mode, low, high):
    folder = copy(OTHER)
    edit_json(folder / "policy_preprocessor.json", lambda c: c["steps"][3]["config"]["norm_map"].update(STATE=mode))
    stats = load_file(folder / NORMALIZER)
    low, high = stats[f"{STATE}.{low}"], stats[f"{STATE}.{high}"]
    obs, _, _ = golden(OTHER)
    cond = load(folder).encode(obs).reshape(8, 3, 5)[..., :3]
    torch.testing.assert_close(cond, 2 * (obs[STATE] - low) / (high - low) - 1, atol=1e-5, rtol=0)


def test_a_standard_deviation_of_zero_is_lifted_by_eps(copy):
    folder = copy(OTHER)
    edit_tensors(folder / NORMALIZER, lambda t: t[f"{STATE}.std"].zero_())
    obs, _, _ = golden(OTHER)
    mean = load_file(folder / NORMALIZER)[f"{STATE}.mean"]
    cond = load(folder).encode(obs).reshape(8, 3, 5)[..., :3]
    torch.testing.assert_close(cond, (obs[STATE] - mean) / 1e-8)


def test_keys_that_the_normalizer_leaves_out_are_left_alone(copy):
    folder = copy(OTHER)
    edit_json(
        folder / "policy_preprocessor.json",
        lambda c: c["steps"][3]["config"].update(normalize_observation_keys=[ENV]),
    )
    obs, _, _ = golden(OTHER)
    cond = load(folder).encode(obs).reshape(8, 3, 5)
    assert torch.equal(cond[..., :3], obs[STATE]) and cond[..., 3:].abs().max() < 1.2


# -- what is not supported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_flow_policies_are_named(copy, kind):
    folder = copy()
    edit_json(folder / "config.json", lambda c: c.update(type=kind))
    refused(folder, "acts on an instruction; say it as in --load.task")
    with pytest.raises(DsrlError, match=f"config.json is a LeRobot policy of type '{kind}', a flow policy"):
        convert(folder, folder / "converted")


def test_other_policies_are_named(copy):
    folder = copy()
    edit_json(folder / "config.json", lambda c: c.update(type="act"))
    refused(folder, "of type 'act'; only 'diffusion'")


def test_options_for_other_formats_are_refused(copy):
    refused(copy(), "leave out --load.config and --load.normalization", normalization="x.npz")


def image(config):
    config["input_features"]["observation.images.top"] = {"type": "VISUAL", "shape": [3, 96, 96]}


CONFIGS = {
    "image": (image, "n_obs_steps times the lengths of .*observation.images.top .* is 146, the tensors say 18"),
    "film": (lambda c: c.update(use_film_scale_modulation=False), "use_film_scale_modulation is false.*Train with"),
    "groups": (lambda c: c.update(n_groups=4), "'n_groups' is 4; only 8 is known"),
    "scheduler": (lambda c: c.update(noise_scheduler_type="EDM"), "'EDM', expected one of DDPM, DDIM"),
    "betas": (lambda c: c.update(beta_schedule="sigmoid"), "'beta_schedule' is 'sigmoid', expected one of"),
    "prediction": (
        lambda c: c.update(prediction_type="v"),
        "'prediction_type' is 'v', expected one of epsilon, sample",
    ),
    "type": (lambda c: c.update(horizon="8"), "'horizon' is '8', expected a whole number"),
    "huge": (lambda c: c.update(num_train_timesteps=10**9), "'num_train_timesteps' is 1000000000, expected"),
    "nan": (lambda c: c.update(clip_sample_range=float("nan")), "'clip_sample_range' is nan, expected a positive"),
    "beta": (lambda c: c.update(beta_end=2), "'beta_end' is 2, expected a number between 0 and 1"),
    "flag": (lambda c: c.update(clip_sample="yes"), "'clip_sample' is 'yes', expected true or false"),
    "slice": (lambda c: c.update(n_action_steps=8), "n_action_steps is 8, but a horizon of 8 with 2 obs.* has only 7"),
    "horizon": (lambda c: c.update(horizon=9), "halves the horizon 1 times; 9 does not allow it"),
    "down_dims": (lambda c: c.update(down_dims=[8, 32]), r"down_dims is \(8, 32\), the tensors say \(8, 16\)"),
    "kernel": (lambda c: c.update(kernel_size=3), "contradicts .*: kernel_size is 3, the tensors say 5"),
    "embedding": (
        lambda c: c.update(diffusion_step_embed_dim=32),
        "diffusion_step_embed_dim is 32, the tensors say 16",
    ),
    "history": (lambda c: c.update(n_obs_steps=1), "n_obs_steps times the lengths of .* is 9, the tensors say 18"),
    "action": (
        lambda c: c["output_features"]["action"].update(shape=[4]),
        "length of 'action' is 4, the tensors say 3",
    ),
    "no state": (lambda c: c["input_features"].pop(STATE), "no feature 'observation.state'"),
    "no action": (lambda c: c["output_features"].clear(), r"no feature 'action' \(found: none\)"),
    "no inputs": (lambda c: c.pop("input_features"), "no mapping 'input_features'"),
    "feature": (lambda c: c["input_features"].update({STATE: [4]}), "'input_features.observation.state' is"),
    "matrix": (lambda c: c["input_features"][STATE].update(shape=[2, 2]), r"has the shape \[2, 2\]"),
    "env name": (
        lambda c: c["input_features"].update({"world": c["input_features"].pop(ENV)}),
        "the environment's state is called 'world'",
    ),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_do_is_explained(copy, change, message):
    folder = copy()
    edit_json(folder / "config.json", change)
    refused(folder, message)


# -- broken files -----------------------------------------------------------------------------------------------------

UNET = "diffusion.unet.mid_modules.0."
TENSORS = {
    "missing": (lambda t: t.pop(f"{UNET}conv1.block.0.bias"), "missing: .*mid_modules.0.blocks.0.block.0.bias"),
    "key missing": (lambda t: t.pop("diffusion.unet.final_conv.1.weight"), "'final_conv.1.weight' has no such tensor"),
    "extra": (lambda t: t.update({f"{UNET}more": torch.zeros(1)}), "not expected: .*mid_modules.0.more"),
    "encoder": (
        lambda t: t.update({"diffusion.rgb_encoder.out.bias": torch.zeros(1)}),
        "'diffusion.rgb_encoder.out.bias'",
    ),
    "nan": (lambda t: t[f"{UNET}conv2.block.0.bias"].fill_(float("nan")), "mid_modules.0.*holds NaN"),
    "shape": (
        lambda t: t.update({f"{UNET}conv2.block.0.bias": torch.zeros(3)}),
        r"has shape \[3\], the config says \[16\]",
    ),
    "integers": (
        lambda t: t.update({f"{UNET}conv2.block.0.bias": torch.zeros(16).int()}),
        "holds torch.int32, expected",
    ),
    "twice": (
        lambda t: t.update({f"{UNET}blocks.0.block.0.bias": torch.zeros(16)}),
        "two spellings of the same tensor",
    ),
    "other film": (
        lambda t: t.update({"diffusion.unet.down_modules.0.0.cond_encoder.1.weight": torch.zeros(8, 34)}),
        "use_film_scale_modulation is True, the tensors say False",
    ),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_weights_that_do_not_fit_are_named(copy, change, message):
    folder = copy()
    edit_tensors(folder / "model.safetensors", change)
    refused(folder, message)


OLD_STATISTICS = {
    "missing": (lambda t: t.pop("normalize_inputs.buffer_observation_state.min"), "lacks .* 'observation.state.min'"),
    "infinite": (
        lambda t: t["unnormalize_outputs.buffer_action.max"].fill_(float("inf")),
        "'action.max' holds NaN or inf",
    ),
    "none": (
        lambda t: [t.pop(name) for name in list(t) if not name.startswith("diffusion.")],
        "no statistics to normalise with",
    ),
}


@pytest.mark.parametrize(("change", "message"), OLD_STATISTICS.values(), ids=OLD_STATISTICS)
def test_statistics_inside_the_weights_are_checked(copy, change, message):
    folder = copy(OLD)
    edit_tensors(folder / "model.safetensors", change)
    refused(folder, message)


STATISTICS = {
    "missing": (lambda t: t.pop(f"{STATE}.min"), f"lacks the statistic '{STATE}.min'.*silently"),
    "shape": (lambda t: t.update({f"{STATE}.min": torch.zeros(3)}), r"has shape \[3\], config.json says \[4\]"),
    "nan": (lambda t: t[f"{STATE}.max"].fill_(float("nan")), "'observation.state.max' holds NaN"),
    "swapped": (
        lambda t: t.update({f"{STATE}.min": t[f"{STATE}.max"], f"{STATE}.max": t[f"{STATE}.min"].clone()}),
        "the min of 'observation.state' is above its max",
    ),
}


@pytest.mark.parametrize(("change", "message"), STATISTICS.values(), ids=STATISTICS)
def test_statistics_of_the_processors_are_checked(copy, change, message):
    folder = copy()
    edit_tensors(folder / NORMALIZER, change)
    refused(folder, message)


def step(**values):
    return lambda c: c["steps"].insert(1, values)


PROCESSORS = {
    "step": (step(registry_name="relative_actions_processor", config={}), "a step 'relative_actions_processor', which"),
    "class": (step(**{"class": "os.system", "config": {"command": "true"}}), "a step 'os.system', which"),
    "half": (step(registry_name="device_processor", config={"float_dtype": "bfloat16"}), "computes in bfloat16"),
    "two": (lambda c: c["steps"].append(c["steps"][3]), "has 2 steps 'normalizer_processor', expected one"),
    "none": (lambda c: c["steps"].pop(3), "has 0 steps 'normalizer_processor', expected one"),
    "path": (lambda c: c["steps"][3].update(state_file="../x.safetensors"), "expected the name of a file"),
    "file": (lambda c: c["steps"][3].update(state_file="x.safetensors"), "lacks x.safetensors"),
    "no file": (lambda c: c["steps"][3].pop("state_file"), "lacks the statistic 'observation.state.min'"),
    "mode": (lambda c: c["steps"][3]["config"]["norm_map"].update(STATE="RANK"), "normalised by 'RANK'; known are"),
    "eps": (lambda c: c["steps"][3]["config"].update(eps="small"), "eps of its normalizer_processor is 'small'"),
    "steps": (lambda c: c.update(steps=None), "no list of 'steps'"),
}


@pytest.mark.parametrize(("change", "message"), PROCESSORS.values(), ids=PROCESSORS)
def test_a_processor_that_does_more_is_refused(copy, change, message):
    folder = copy()
    edit_json(folder / "policy_preprocessor.json", change)
    refused(folder, message)


@pytest.mark.parametrize("name", ["model.safetensors", NORMALIZER, "policy_postprocessor.json"])
def test_a_missing_file_is_named(copy, name):
    folder = copy()
    (folder / name).unlink()
    refused(folder, f"(lacks|no) {name}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", NORMALIZER, "policy_preprocessor.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_named(copy, name, share):
    folder = copy()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    refused(folder, f"{name} is truncated or no")


def test_a_pickle_instead_of_safetensors_runs_nothing(copy, tmp_path):
    folder = copy()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "created")))
    refused(folder, "model.safetensors is truncated or no safetensors file")
    assert not (tmp_path / "created").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    refused(tmp_path / "x.pt", "is a file; a policy of LeRobot is a folder", format="lerobot")


@pytest.mark.parametrize("name", ["config.json", "policy_preprocessor.json", "model.safetensors", NORMALIZER])
def test_damaged_files_are_refused_or_read_but_nothing_else(copy, name):
    """The tensors carry no check sum, so a flipped bit in a number makes another policy, whose hash says so."""
    folder, draw = copy(), random.Random(0)
    original, known, expected = (folder / name).read_bytes(), load(GOLDEN / NEW).spec, answer(GOLDEN / NEW)
    for _ in range(10):
        content = bytearray(original)
        place = draw.randrange(min(len(content), 4000))
        content[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(content)
        try:
            policy = load(folder)
        except DsrlError as error:
            assert str(folder) in str(error)
            continue
        if policy.spec == known:
            assert torch.equal(policy.sample(*golden(NEW)[:2]), expected)


def test_the_version_is_told():
    from dsrl.config import LoadConfig

    checkpoint = read_checkpoint(GOLDEN / NEW, LoadConfig())
    assert (checkpoint.format, checkpoint.version, checkpoint.kind) == ("lerobot", "0.4 or later", "diffusion")
    assert read_checkpoint(GOLDEN / OLD, LoadConfig()).version == "0.3 or earlier"
