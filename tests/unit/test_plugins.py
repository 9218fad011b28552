"""Other packages add formats; a broken one is named and skipped."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch

from dsrl.cli import main
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained import load_policy
from dsrl.pretrained.plugins import plugins

PLUGIN = """
from dsrl.policy import PolicySpec
from dsrl.pretrained.formats import Checkpoint, Format

def detect(found):
    return isinstance(found.content, dict) and "foreign" in found.content

def read(found, load):
    config = {"network": {"type": "mlp", "hidden_dims": [8, 8, 8]}}
    return Checkpoint("diffusion", config, PolicySpec({"o": (2,)}, 1, 4, 4), found.read()["foreign"], "foreign")

def fail(found):
    raise RuntimeError("cannot look")

FOREIGN = Format("foreign", "files of a test", detect, read)
DSRL = Format("dsrl", "a thief of names", lambda found: True, read)
CURIOUS = Format("curious", "looks and fails", fail, read)
NOTHING = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with these entry points."""
    plugins.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def with_entries(*entries):
        info = tmp_path / "site" / "foreign_policies-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-policies\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("\n".join(["[dsrl.policies]", *entries, ""]))
        (tmp_path / "site" / "foreign_policies.py").write_text(PLUGIN)

    yield with_entries
    plugins.cache_clear()
    sys.modules.pop("foreign_policies", None)


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    spec = PolicySpec({"o": (2,)}, 1, 4, 4)
    policy = DiffusionPolicy(spec, DiffusionConfig({"type": "mlp", "hidden_dims": [8] * 3}))
    torch.save({"foreign": policy.state_dict()}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_a_plugin_reads_its_own_files(install, path):
    with pytest.raises(DsrlError, match="checkpoint of another program"):
        load_policy(path, device="cpu")
    plugins.cache_clear()
    install("foreign = foreign_policies:FOREIGN")
    for format in ("auto", "foreign"):
        spec = load_policy(path, format=format, device="cpu").spec
        assert replace(spec, sha256="") == PolicySpec({"o": (2,)}, 1, 4, 4)


def test_a_broken_plugin_is_named_and_skipped(install, path):
    install(
        "absent = foreign_policies:ABSENT",
        "curious = foreign_policies:CURIOUS",
        "foreign = foreign_policies:FOREIGN",
        "nothing = foreign_policies:NOTHING",
        "gone = no_such_module:FORMAT",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_policy(path, device="cpu").spec.horizon == 4
    said = "\n".join(str(warning.message) for warning in caught)
    assert "plugin 'absent' of foreign-policies 1.2 is skipped (AttributeError" in said
    assert "plugin 'gone' of foreign-policies 1.2 is skipped (ModuleNotFoundError: No module named" in said
    assert "plugin 'nothing' of foreign-policies 1.2 is skipped (TypeError: 'foreign_policies:NOTHING' is int" in said
    assert "plugin 'curious' could not look at" in said and "cannot look" in said


def test_a_plugin_cannot_take_a_name_of_ours(install, path):
    install("dsrl = foreign_policies:DSRL")
    with pytest.raises(DsrlError, match="checkpoint of another program"):
        load_policy(path, device="cpu")


def test_the_command_lists_them(install, capsys):
    install("foreign = foreign_policies:FOREIGN", "gone = no_such_module:FORMAT")
    assert main(["plugins"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "foreign-policies 1.2" in shown and "files of a test" in shown and "broken:" in shown


def test_the_command_says_when_there_is_none(install, capsys):
    assert main(["plugins"]) == 0
    assert "no installed package adds a format" in capsys.readouterr().out
