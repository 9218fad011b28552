"""Runs on the hub, without the network: what is written, what is read again, and that nothing in it can run."""

import json
import pickle
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, utils
from mutants import mutate

from dsrl import commands
from dsrl.actor_file import read_critic, read_steered
from dsrl.algorithms import ALGORITHMS, steering_facts
from dsrl.config import ExportConfig, FinetuneConfig
from dsrl.errors import DsrlError, OtherBasePolicy
from dsrl.evaluate_config import EvaluateConfig
from dsrl.pretrained import DEFAULT_CHECKPOINT, describe, hub, load_policy, save_policy
from dsrl.push import PushConfig, base_reference, push
from dsrl.run import RunFolder
from dsrl.wrappers import SteeredVecEnv, make_vec_env

ROW = {"episodes": 50, "success_low": 0.3, "success_high": 0.5}
COMPARISON = {
    "seed": 1,
    "rows": [
        {**ROW, "policy": "base, N(0, I)", "success_rate": 0.4},
        {**ROW, "policy": "steered", "success_rate": 0.9},
    ],
    "paired": {"difference": 0.5, "low": 0.4, "high": 0.6, "p": 0.001},
}


@pytest.fixture
def base(toy_policy, tmp_path):
    return save_policy(toy_policy, tmp_path / "toy.pt")


@pytest.fixture
def run(base, tmp_path):
    """A finished run of noise-aliased SAC, which rates chunks."""
    policy = load_policy(base, device="cpu")
    facts = {"path": str(base), "sha256": policy.spec.sha256, "env": policy.spec.env.to_robomimic(), "load": {}}
    folder = RunFolder.create(tmp_path / "run", {"safety": {"high": [0.9]}}, facts)
    config = FinetuneConfig(algo="na", hidden_dims=(16,))
    model = ALGORITHMS["na"].build(
        config, SteeredVecEnv(make_vec_env(policy.spec.env, policy.spec), policy), 4, seed=0, device="cpu"
    )
    model.steering = steering_facts(config, model, 10.0, policy)
    model.save(folder.final)
    (folder.path / "comparison.json").write_text(json.dumps(COMPARISON))
    (folder.path / "report.html").write_text("<html>")
    return folder.path


@pytest.fixture
def pushed(run, tmp_path, capsys):
    push(PushConfig(run, hub.Path("org/reach"), dry_run=tmp_path / "pushed"))
    return tmp_path / "pushed"


def chunks(policy):
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(3, 1, 4, generator=generator)
    return policy.sample(obs, torch.randn(3, *policy.spec.noise_shape, generator=generator))


def test_a_pushed_agent_acts_as_the_one_of_the_run(pushed, run, base):
    policy = load_policy(base, device="cpu")
    original, agent = read_steered(run / "final.zip", policy), load_policy(pushed, device="cpu")
    assert torch.equal(chunks(original), chunks(agent)) and agent.kind == original.kind
    obs, chunk = torch.zeros(2, 4), torch.ones(2, 8)
    q = [read_critic(where, policy)[0](obs, chunk) for where in (run / "final.zip", pushed)]
    assert torch.equal(*q)
    # it can be steered in turn, and is known by its weights and its base
    assert agent.spec.sha256 not in ("", policy.spec.sha256) and agent.spec.env == policy.spec.env
    assert dict(describe(pushed))["base policy"] == policy.spec.sha256


def test_what_is_pushed_can_run_nothing_and_has_no_base_policy(pushed, base, monkeypatch):
    assert {path.name for path in pushed.iterdir()} == {
        "agent.json", "agent.safetensors", "base_policy.json", "config.yaml", "environment.json", "evaluations.csv",
        "comparison.json", "report.html", "README.md",
    }  # fmt: skip
    loaded, torch_load = [], torch.load

    def watched(file, **settings):
        assert settings["weights_only"] is True
        loaded.append(str(file))
        return torch_load(file, **settings)

    def refused(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", watched)
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, refused)
    load_policy(pushed, device="cpu")
    assert set(loaded) == {str(base)}


def test_the_card_says_what_the_run_says(pushed):
    text = (pushed / "README.md").read_text()
    card = ModelCard(text)
    assert RunFolder.open(pushed).read_evaluations() == []  # its numbers are read as those of a run
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (
        0.9,
        "dsrl/PointReach-v0",
    ) and card.data.library_name == "dsrl"
    assert "| steered | 90% | [30%, 50%] | 50 |" in text and "+50 points, 95 % interval +40 to +60, p = 0.001" in text
    assert "dsrl finetune --config config.yaml" in text and "--load.base PATH" in text
    assert json.loads((pushed / "base_policy.json").read_text())["sha256"] in text


def test_an_address_is_a_run_for_every_command(pushed, run, tmp_path, monkeypatch, capsys):
    asked = []

    def snapshot_download(repo, **patterns):
        asked.append((repo, patterns["revision"]))
        files = [path.name for path in pushed.iterdir()]
        for name in utils.filter_repo_objects(
            files, allow_patterns=patterns["allow_patterns"], ignore_patterns=patterns["ignore_patterns"]
        ):
            (tmp_path / "cache").mkdir(exist_ok=True)
            shutil.copy(pushed / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    numbers = []
    for name, target in (("run", run), ("folder", pushed), ("hub", "hf://org/reach@v1")):
        commands.evaluate(EvaluateConfig(hub.Path(target), episodes=4, device="cpu", json=tmp_path / f"{name}.json"))
        assert "safety:" in capsys.readouterr().out  # under the limits that it was trained under
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        numbers.append([{**row, "decision_ms": None} for row in rows])
    assert numbers[0] == numbers[1] == numbers[2] and set(asked) == {("org/reach", "v1")}
    assert not (tmp_path / "cache" / "report.html").exists()
    commands.export(ExportConfig(hub.Path("hf://org/reach"), tmp_path / "steered.pt"))
    assert torch.equal(
        chunks(load_policy(tmp_path / "steered.pt", device="cpu")), chunks(load_policy(pushed, device="cpu"))
    )


def test_a_base_policy_that_has_moved_is_named(pushed, run, base, tmp_path):
    moved = base.rename(tmp_path / "moved.pt")
    with pytest.raises(DsrlError, match=r"is not at .*toy.pt.*--load.base PATH"):
        load_policy(pushed, device="cpu")
    assert load_policy(pushed, base=moved, device="cpu").base.spec.sha256
    assert commands.load_run(run, "final", "cpu", moved)[0].base.spec.sha256
    with pytest.raises(OtherBasePolicy):
        load_policy(pushed, base=DEFAULT_CHECKPOINT, device="cpu")
    with pytest.raises(DsrlError, match=r"leave out every --load setting but --load.base"):
        load_policy(pushed, base=moved, sampling_steps=3, device="cpu")
    with pytest.raises(DsrlError, match=r"--load.base is for agents and runs"):
        load_policy(moved, base=moved, device="cpu")


def test_the_base_policy_is_named_so_that_others_find_it(run, base, tmp_path, monkeypatch):
    config = PushConfig(run, hub.Path("org/reach"))
    shipped = {"path": str(DEFAULT_CHECKPOINT), "sha256": load_policy(DEFAULT_CHECKPOINT, device="cpu").spec.sha256}
    assert base_reference(config, shipped) == "dsrl:lift.pt"
    published = replace(config, base_policy="hf://org/base@v1")
    monkeypatch.setattr(hub, "fetch", lambda path: base)
    facts = RunFolder.open(run).read_base_policy()
    assert base_reference(published, facts) == "hf://org/base@v1"
    with pytest.raises(DsrlError, match="--base-policy hf://org/base@v1 hashes to"):
        base_reference(published, shipped)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("agent.json", '{"format": "dsrl-agent", "version": 9, "steering": {}}', "this dsrl reads dsrl-agent 1"),
        ("agent.json", "[]", "is not an agent that dsrl saved"),
        ("agent.json", '{"format": "dsrl-agent", "version": 1, "steering": {}, "weights_sha256": "0"}', "hashes to"),
        ("agent.safetensors", "cos\nsystem\n(S'true'\ntR.", "is not an agent that dsrl saved, or it is damaged"),
        ("base_policy.json", '{"path": "x"}', "does not say which base policy this agent steers"),
        ("base_policy.json", None, "does not say which base policy this agent steers"),
    ],
)
def test_a_damaged_folder_is_explained(pushed, file, content, message):
    (pushed / file).unlink()
    if content is not None:
        (pushed / file).write_text(content)
    with pytest.raises(DsrlError, match=message):
        load_policy(pushed, device="cpu")


def test_a_folder_neither_connects_nor_goes_round_in_circles(pushed):
    facts = json.loads((pushed / "base_policy.json").read_text())
    for path, message in (
        ("ws://example.org:1", r"asks to connect to ws://example.org:1.*--load.base ws://example.org:1"),
        (str(pushed), "leads back to this agent"),
    ):
        (pushed / "base_policy.json").write_text(json.dumps({**facts, "path": path}))
        with pytest.raises(DsrlError, match=message):
            load_policy(pushed, device="cpu")


def test_no_damage_crashes_it_runs_code_or_plays_differently(pushed, tmp_path):
    """Every file that is read, damaged in every way that the formats of checkpoints are."""
    whole, trap, rng, faults, refused = load_policy(pushed, device="cpu"), tmp_path / "trap", random.Random(0), [], 0
    expected = chunks(whole)
    for number in range(150):
        (root := tmp_path / f"{number}").mkdir()
        for name in ("agent.json", "agent.safetensors", "base_policy.json"):
            shutil.copy(pushed / name, root / name)
        done = mutate(root, rng, trap)
        try:
            if load_policy(root, device="cpu").spec.sha256 == whole.spec.sha256:
                assert torch.equal(chunks(load_policy(root, device="cpu")), expected)
        except DsrlError:
            refused += 1
        except Exception as error:
            faults.append(f"{done}: {type(error).__name__}: {error}")
    assert not faults and not trap.exists() and refused > 75, "\n".join(faults)


def test_it_is_uploaded_and_refusals_are_explained(run, monkeypatch, capsys):
    sent = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo, **settings):
            sent.update(settings, repo=repo)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            sent["files"] = sorted(path.name for path in folder_path.iterdir())
            return SimpleNamespace(commit_url="https://huggingface.co/org/reach/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    push(PushConfig(run, hub.Path("org/reach"), private=True))
    assert sent["repo"] == "org/reach" and sent["private"] and "agent.safetensors" in sent["files"]
    assert "dsrl evaluate hf://org/reach" in capsys.readouterr().out

    def refused(*_, **__):
        raise utils.LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(DsrlError, match=r"hf://org/reach cannot be pushed to \(no token\).*hf auth login"):
        push(PushConfig(run, hub.Path("org/reach")))


def test_wrong_names_are_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(DsrlError, match="reach is no name on the hub; write org/name"):
        PushConfig(run, hub.Path("reach"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DsrlError, match="there is something that dsrl push did not write"):
        push(PushConfig(run, hub.Path("org/reach"), dry_run=tmp_path / "mine"))
    with pytest.raises(DsrlError, match=r"ended before it had a best.zip; take --agent final"):
        push(PushConfig(run, hub.Path("org/reach"), agent="best", dry_run=tmp_path / "out"))
    assert (tmp_path / "mine" / "thesis.tex").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "files", "found"),
    [
        ("hf://datasets/org/demos@v1/lift/ph.hdf5", ["lift/ph.hdf5"], "lift/ph.hdf5"),
        ("hf:/datasets/org/demos", ["one.hdf5"], "one.hdf5"),
        ("hf://datasets/org/demos", ["one.hdf5", "two.hdf5"], r"found: one.hdf5, two.hdf5\); name one"),
        ("hf://datasets/org/demos/three.hdf5", ["one.hdf5"], "has not exactly one file three.hdf5"),
        ("hf://org/demos", [], "no address of data; write hf://datasets/org/name@revision/file.hdf5"),
    ],
)
def test_demonstrations_come_from_the_hub_too(address, files, found, tmp_path, monkeypatch):
    def snapshot_download(repo, *, repo_type, revision, allow_patterns):
        assert (repo, repo_type) == ("org/demos", "dataset") and revision in (None, "v1")
        for file in utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    if found in files:
        assert hub.local_data(hub.Path(address)) == tmp_path / found
    else:
        with pytest.raises(DsrlError, match=found):
            hub.local_data(hub.Path(address))
    assert hub.local_data(tmp_path / "mine.hdf5") == tmp_path / "mine.hdf5"
