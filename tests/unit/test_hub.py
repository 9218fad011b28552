"""Policies on the Hugging Face hub, without the network."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, utils
from safetensors.torch import load_file

from dsrl.config import finetune_config, to_dict
from dsrl.errors import DsrlError
from dsrl.pretrained import convert, describe, hub, load_policy

GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot"
NAME = "v044_min_max"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of a machine without network; one repository was fetched before."""
    repository = tmp_path / "models--org--reach"
    shutil.copytree(GOLDEN / NAME, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


@pytest.mark.parametrize(
    "path", ["hf://org/reach", f"hf://org/reach@{COMMIT}", Path("hf://org/reach"), "hf:/org/reach@main"]
)
def test_it_is_loaded_from_the_cache(cache, path):
    tensors = load_file(GOLDEN / f"{NAME}.safetensors")
    obs = {key.removeprefix("obs."): value for key, value in tensors.items() if key.startswith("obs.")}
    policy = load_policy(path, device="cpu")
    torch.testing.assert_close(policy.sample(obs, tensors["noise"]), tensors["chunk"], atol=1e-5, rtol=0)
    assert COMMIT in dict(describe(path))["file"]


def test_a_run_remembers_the_address():
    config = finetune_config({"base_policy": "hf://org/reach@main"})
    assert hub.is_address(config.base_policy) and hub.is_address(to_dict(config)["base_policy"])
    assert not hub.is_address("hf/org/reach") and not hub.is_address(Path("/hf:/x"))


def test_without_network_it_says_what_to_do(cache):
    with pytest.raises(DsrlError, match=r"^hf://org/lift cannot be fetched.*Is there a network\?.*give its folder"):
        load_policy("hf://org/lift", device="cpu")
    with pytest.raises(DsrlError, match=r"^hf://org/reach@v2 cannot be fetched"):
        load_policy("hf://org/reach@v2", device="cpu")


def test_only_what_is_needed_is_fetched(monkeypatch):
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(options, repo=repo)
        return str(GOLDEN / NAME)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_policy(Path("hf://org/reach@refs/pr/1"), device="cpu")
    assert (asked["repo"], asked["revision"]) == ("org/reach", "refs/pr/1")
    files = [path.name for path in (GOLDEN / NAME).iterdir()]
    unwanted = ["pytorch_model.bin", "README.md", "policy.pkl", "training_state/optimizer_state.safetensors"]
    kept = utils.filter_repo_objects(
        [*files, *unwanted], allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert sorted(kept) == sorted(files)


def test_a_converted_policy_is_fetched_in_all_its_parts(tmp_path, monkeypatch):
    source, snapshot = tmp_path / "repository", tmp_path / "snapshot"
    sha256 = convert(GOLDEN / NAME, source).sha256
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "model.safetensors").touch()

    def snapshot_download(repo, *, revision, **patterns):
        files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for file in utils.filter_repo_objects(files, **patterns):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, snapshot / file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_policy("hf://org/reach", device="cpu").spec.sha256 == sha256
    assert not (snapshot / "checkpoints").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (utils.RepositoryNotFoundError, "there is no model repository hf://org/reach@v1, or it is private"),
        (utils.RevisionNotFoundError, "hf://org/reach@v1: the repository has no revision 'v1'"),
        (utils.GatedRepoError, "hf://org/reach@v1 is gated: accept its terms"),
        (utils.HfHubHTTPError, "hf://org/reach@v1 cannot be fetched"),
        (ConnectionError, "hf://org/reach@v1 cannot be fetched"),
    ],
)
def test_what_the_hub_answers_is_explained(monkeypatch, error, message):
    def snapshot_download(*_, **__):
        raise error.__new__(error, "refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(DsrlError, match=message):
        load_policy("hf://org/reach@v1", device="cpu")


@pytest.mark.parametrize("path", ["hf://reach", "hf://org/reach/config.json", "hf://org/reach@", "hf:///reach"])
def test_a_wrong_address_is_explained(path):
    with pytest.raises(DsrlError, match="is no address on the hub; write hf://org/name"):
        load_policy(path, device="cpu")


def test_a_name_that_the_hub_does_not_allow_is_explained():
    with pytest.raises(DsrlError, match="hf://org/--reach-- is no valid name of a repository"):
        load_policy("hf://org/--reach--", device="cpu")
