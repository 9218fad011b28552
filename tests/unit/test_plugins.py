"""Other packages add formats; a broken one is named and skipped."""

import importlib
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsrl.cli import main
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.plugins import load_plugins
from dsrl.policy import PolicySpec
from dsrl.pretrained import load_policy
from dsrl.wrappers import make_env, make_vec_env, resolve_env_spec

PLUGIN = '''
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

import gymnasium as gym
import numpy as np
from dataclasses import replace
from dsrl.errors import DsrlError
from dsrl.wrappers.families import Family

class Lab(gym.Env):
    """Two parts of an observation; success is an action above zero."""
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, spec):
        self.env_spec = spec
        self.obs_shapes = {key: (1,) for key in spec.obs_keys}
        self.observation_space = gym.spaces.Box(-2, 2, (len(spec.obs_keys),), np.float32)

    def _obs(self):
        return np.array([{"left": -1, "right": 1}[key] for key in self.env_spec.obs_keys], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {"success": False}

    def step(self, action):
        return self._obs(), 0.0, False, False, {"success": bool(action[0] > 0)}

def resolve(spec):
    if spec.name != "Table":
        raise DsrlError(f"the lab has no '{spec.name}'")
    return replace(spec, obs_keys=spec.obs_keys or ("left", "right"), max_episode_steps=8, version="3")

def make(spec, render_mode):
    return gym.wrappers.TimeLimit(Lab(spec), spec.max_episode_steps)

LAB = Family("lab", "the tables of a lab", resolve, make, own_process=False)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with these entry points: of formats, until a ``[group]`` begins another one."""
    load_plugins.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def with_entries(*entries):
        info = tmp_path / "site" / "foreign_policies-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-policies\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("\n".join(["[dsrl.policies]", *entries, ""]))
        (tmp_path / "site" / "foreign_policies.py").write_text(PLUGIN)
        importlib.invalidate_caches()

    yield with_entries
    load_plugins.cache_clear()
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
    load_plugins.cache_clear()
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
    assert "no installed package adds a format or a simulator" in capsys.readouterr().out


def test_a_family_of_simulators_is_added(install):
    with pytest.raises(DsrlError, match="no environment 'lab/Table' is registered"):
        make_env("lab/Table")
    load_plugins.cache_clear()
    install("[dsrl.envs]", "lab = foreign_policies:LAB", "robosuite = foreign_policies:LAB", "gone = no_module:LAB")
    with pytest.raises(DsrlError, match="the lab has no 'Tabel'"), pytest.warns(RuntimeWarning, match="'gone'"):
        make_env("lab/Tabel")
    with pytest.raises(DsrlError, match="no single-arm task"):
        make_env("robosuite/Table")
    spec = PolicySpec({"right": (1,), "left": (1,)}, 1, 4, 4)
    envs = make_vec_env("lab/Table", spec, n_envs=2)
    assert envs.reset().tolist() == [[[1.0, -1.0]]] * 2
    _, rewards, dones, infos = envs.step(np.ones((2, 4, 1), np.float32))
    assert rewards.tolist() == [1, 1] and dones.all() and all(info["is_success"] for info in infos)
    resolved = resolve_env_spec("lab/Table")
    assert EnvSpec.from_robomimic(resolved.to_robomimic()) == resolved


def test_the_command_lists_families(install, capsys):
    install("[dsrl.envs]", "lab = foreign_policies:LAB")
    assert main(["plugins"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "dsrl.envs" in shown and "the tables of a lab" in shown
