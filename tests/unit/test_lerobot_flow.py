"""Flow policies that lerobot computes: its own chunk for our noise, and nothing else random."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.pretrained import convert, describe, load_policy, save_policy

TASK = "lift the cube"
FLOW = {"type": "smolvla", "input_features": {}, "output_features": {}}
STEPS = {"steps": [{"registry_name": "device_processor", "config": {}}]}
needs_lerobot = pytest.mark.skipif(
    not (find_spec("lerobot") and find_spec("transformers")), reason="needs the [lerobot] extra"
)


def kinds():
    """pi0 and pi05 of LeRobot 0.4 need a transformers of their own."""
    if find_spec("lerobot"):
        from lerobot import __version__

        return ["smolvla", "pi0", "pi05"] if int(__version__.split(".")[1]) >= 6 else ["smolvla"]
    return ["smolvla"]


@pytest.fixture
def folder(tmp_path):
    """Recognised as a flow policy; nothing in it is a network."""
    (tmp_path / "config.json").write_text(json.dumps(FLOW))
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).write_text(json.dumps(STEPS))
    return tmp_path


def refused(folder, words, **load):
    with pytest.raises(DsrlError, match=words):
        load_policy(folder, device="cpu", **{"task": TASK, **load})


# -- without lerobot --------------------------------------------------------------------------------------------------


def test_without_lerobot_the_extra_and_the_server_are_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    refused(folder, r"pip install 'dsrl-steering\[lerobot\]', or serve it .*A policy in another process")


def test_an_instruction_is_needed(folder):
    refused(folder, "acts on an instruction; say it as in --load.task 'lift the cube'", task=None)


def test_an_instruction_is_for_policies_that_read_one(tmp_path, toy_policy):
    refused(save_policy(toy_policy, tmp_path / "toy.pt"), "acts on no instruction; leave out --load.task")


@pytest.mark.parametrize("load", [{"sampling_steps": 4}, {"config": "config.json"}, {"normalization": "n.npz"}])
def test_what_the_folder_says_itself_is_not_asked_for(folder, load):
    refused(folder, "says itself how it is sampled and normalised", **load)


@pytest.mark.parametrize("side", ["pre", "post"])
@pytest.mark.parametrize(
    "step", [{"class": "os.system"}, {"registry_name": "device_processor", "class": "os.system"}, {}]
)
def test_a_processor_that_would_import_something_is_refused(folder, side, step):
    (folder / f"policy_{side}processor.json").write_text(json.dumps({"steps": [*STEPS["steps"], step]}))
    refused(folder, f"policy_{side}processor.json wants to import .* refused and nothing was executed")


@pytest.mark.parametrize("content", ["{", "[]", '{"steps": 3}', '{"steps": [3]}'])
def test_a_broken_processor_is_named(folder, content):
    (folder / "policy_preprocessor.json").write_text(content)
    refused(folder, r"policy_preprocessor\.json (is truncated|holds a list|has no list of steps)")


def test_a_folder_without_processors_is_refused(folder):
    (folder / "policy_postprocessor.json").unlink()
    refused(folder, "lacks policy_postprocessor.json")


def test_it_is_not_converted(folder, tmp_path):
    with pytest.raises(DsrlError, match="lerobot itself computes; there is nothing to build or convert"):
        convert(folder, tmp_path / "out")


# -- with lerobot -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    from lerobot_tiny import write_language_model

    return write_language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="module", params=kinds())
def written(request, language_model, tmp_path_factory):
    """A folder that lerobot wrote, while the sizes that are fixed in its code are small."""
    from lerobot_tiny import tiny, write_policy

    folder = tmp_path_factory.mktemp(request.param)
    with tiny(request.param, language_model):
        yield write_policy(request.param, folder, language_model)


@pytest.fixture(scope="module")
def policy(written):
    return load_policy(written, task=TASK, device="cpu")


@pytest.fixture
def changed(written, tmp_path):
    """A copy to change."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def make_inputs(policy, batch=3):
    from lerobot_tiny import SHAPES, STATE

    generator = torch.Generator().manual_seed(1)
    obs = {key: torch.rand(batch, 1, *shape, generator=generator) for key, shape in SHAPES.items()}
    obs[STATE] = 3 * obs[STATE] - 1.5
    return obs, torch.randn(batch, *policy.spec.noise_shape, generator=generator)


def by_lerobot(folder, obs, noise, task=TASK):
    """What lerobot's own loading, processors and policy make of it, one observation after the other."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    kind = get_policy_class(json.loads((folder / "config.json").read_text())["type"])
    inner = kind.from_pretrained(folder, config=PreTrainedConfig.from_pretrained(folder))
    before, after = make_pre_post_processors(inner.config, pretrained_path=str(folder))
    rows = []
    for row in range(len(noise)):
        batch = before({**{key: value[row, 0] for key, value in obs.items()}, "task": task})
        rows.append(after(inner.predict_action_chunk(batch, noise=noise[row : row + 1])))
    return torch.cat(rows)


@needs_lerobot
def test_the_chunk_is_that_of_lerobot(policy, written):
    obs, noise = make_inputs(policy)
    assert policy.spec.noise_shape == (6, 5) and policy.spec.n_action_steps == 4
    chunk = policy.sample(obs, noise)
    assert chunk.shape == (3, 4, 2) and chunk.dtype == torch.float32
    torch.testing.assert_close(chunk, by_lerobot(written, obs, noise)[:, :4], atol=1e-5, rtol=1e-5)


@needs_lerobot
def test_it_fulfils_the_contract(policy):
    obs, noise = make_inputs(policy)
    kept = {key: value.clone() for key, value in obs.items()}, noise.clone()
    cond, chunk = policy.encode(obs), policy.sample(obs, noise)
    assert cond.shape == (3, policy.cond_dim)
    torch.randn(100)
    assert torch.equal(chunk, policy.decode(cond, noise))
    singles = torch.cat([policy.decode(cond[i : i + 1], noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(chunk, singles, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(chunk, policy.decode(cond, noise + 1), atol=1e-3)
    assert all(torch.equal(obs[key], value) for key, value in kept[0].items()) and torch.equal(noise, kept[1])
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    with pytest.raises(ValueError, match=r"noise has shape .*this policy denoises \(3, 6, 5\)"):
        policy.sample(obs, noise[..., :2])
    with pytest.raises(DsrlError, match="computed by lerobot and cannot be written"):
        save_policy(policy, "nowhere.pt")


@needs_lerobot
def test_the_padded_noise_is_part_of_the_policy(policy):
    """The dimensions that no action has still enter the network."""
    obs, noise = make_inputs(policy)
    moved = noise.clone()
    moved[..., 2:] += 1
    assert not torch.allclose(policy.sample(obs, noise), policy.sample(obs, moved), atol=1e-4)


@needs_lerobot
def test_the_instruction_is_heard_and_belongs_to_the_policy(policy, written):
    obs, noise = make_inputs(policy)
    other = load_policy(written, task="push it away", device="cpu")
    torch.testing.assert_close(
        other.sample(obs, noise), by_lerobot(written, obs, noise, "push it away")[:, :4], atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(policy.sample(obs, noise), other.sample(obs, noise), atol=1e-3)
    assert policy.spec.sha256 != other.spec.sha256
    assert policy.spec.sha256 == load_policy(written, task=TASK, device="cpu").spec.sha256
    assert dict(describe(written, LoadConfig(task=TASK)))["sampler"] == "Euler, 3 steps"


@needs_lerobot
def test_every_camera_and_the_state_are_seen(policy):
    obs, noise = make_inputs(policy)
    chunk = policy.sample(obs, noise)
    for key in obs:
        changed = {**obs, key: obs[key] + 0.3}
        assert not torch.equal(policy.sample(changed, noise), chunk), key


@needs_lerobot
@pytest.mark.parametrize("damage", ["missing", "extra", "nan", "truncated", "shape"])
def test_weights_that_are_not_whole_are_refused(changed, damage):
    from safetensors.torch import load_file, save_file

    path = changed / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("action_out_proj.weight"))
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["model.stranger"] = torch.zeros(3)
    elif damage == "nan":
        tensors[name][0, 0] = torch.nan
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    refused(changed, str(changed))


@needs_lerobot
@pytest.mark.parametrize(("side", "key"), [("pre", "observation.state"), ("post", "action")])
def test_statistics_that_are_missing_are_named(changed, side, key):
    from safetensors.torch import load_file, save_file

    path = next(changed.glob(f"policy_{side}processor_*.safetensors"))
    save_file({name: value for name, value in load_file(path).items() if not name.startswith(key)}, path)
    refused(changed, f"policy_{side}processor.json has no statistics of '{key}'")


@needs_lerobot
def test_real_time_chunking_is_refused(changed):
    config = json.loads((changed / "config.json").read_text())
    config["rtc_config"] = {"enabled": True}
    (changed / "config.json").write_text(json.dumps(config))
    refused(changed, "rtc_config is enabled, which continues the chunk before")


@needs_lerobot
def test_a_config_that_lerobot_does_not_read_is_its_own_complaint(changed):
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "chunk_size": 2}))
    refused(changed, r"lerobot cannot read it \(.*n_action_steps")


@needs_lerobot
@pytest.mark.skipif("pi0" not in kinds(), reason="LeRobot 0.6 and later")
def test_actions_relative_to_the_state_are_those_of_lerobot(language_model, tmp_path):
    from lerobot_tiny import tiny, write_policy

    own = {"use_relative_actions": True, "relative_exclude_joints": []}
    with tiny("pi0", language_model):
        folder = write_policy("pi0", tmp_path / "pi0", language_model, **own)
        policy = load_policy(folder, task=TASK, device="cpu")
        obs, noise = make_inputs(policy)
        expected = by_lerobot(folder, obs, noise)[:, :4]
        torch.testing.assert_close(policy.sample(obs, noise), expected, atol=1e-5, rtol=1e-5)
        moved = {**obs, "observation.state": obs["observation.state"] + 1}
        assert not torch.allclose(policy.sample(moved, noise), expected, atol=0.1)
