"""The doctor: what is broken is found, said with its fix, and decides the exit code."""

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dsrl import checks, doctor, trial
from dsrl.checks import OK, PROBLEM, WARNING, Check, check_machine, check_packages, check_room
from dsrl.doctor import DoctorConfig
from dsrl.errors import DsrlError
from dsrl.wrappers.rendering import Backend


def by_name(found):
    return {check.name: check for check in found}


@pytest.fixture
def installed(monkeypatch):
    """A machine with these packages, and with what they ask for."""
    versions, needed = {}, {}
    monkeypatch.setattr(checks, "_installed", versions.get)
    monkeypatch.setattr(metadata, "requires", lambda name: needed.get(name, []))
    monkeypatch.setattr(metadata, "version", lambda name: "0.1")
    return versions, needed


def test_versions_are_held_against_what_is_needed(installed):
    versions, needed = installed
    extras = ['mujoco<3.10,>=3.3; extra == "robosuite"', 'metaworld>=3; extra == "metaworld"', 'ruff; extra == "dev"']
    needed[checks.DISTRIBUTION] = ["torch>=2.8", "numpy>=1.26", "einops>=0.7", *extras]
    versions.update(torch="2.13.0+cpu", numpy="1.21", mujoco="3.11.0")
    found = by_name(check_packages())
    assert found["torch"].status == OK
    assert found["numpy"].status == PROBLEM and found["numpy"].fix == "pip install 'numpy>=1.26'"
    assert found["einops"].status == PROBLEM and "not installed" in found["einops"].found
    assert found["mujoco"].status == PROBLEM and "<3.10" in found["mujoco"].fix  # a newer one breaks robosuite
    assert found["metaworld"].status == WARNING and found["metaworld"].fix.endswith("[metaworld]'")
    assert "ruff" not in found


def test_known_bad_pins_are_found(installed):
    versions, needed = installed
    versions.update(dsrl="0.2", metaworld="3.1.1", mujoco="3.4.0", robosuite="1.5.2", lerobot="0.4.4")
    needed["metaworld"] = ["mujoco==3.3.0", 'pytest; extra == "testing"']
    found = by_name(check_packages())
    assert found["dsrl"].status == PROBLEM and "pip uninstall dsrl" in found["dsrl"].fix
    assert "asks for mujoco==3.3.0, installed is 3.4.0" in found["pin of metaworld"].found
    assert "exclude each other" in found["pin of lerobot"].found


def test_room_and_permission_are_those_of_the_nearest_folder(tmp_path, monkeypatch):
    found = by_name(check_room(tmp_path / "new" / "runs"))
    assert found["run folder"].status == OK and not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**8))

    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    found = by_name(check_room(tmp_path))
    assert found["disk"].status == PROBLEM and "0.1 GB" in found["disk"].found
    assert found["run folder"].status == PROBLEM and "make" in found["run folder"].fix


def test_threads_and_a_card_that_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "nvidia0"]))
    found = by_name(check_machine(tmp_path))
    assert found["threads"].status == WARNING and "OMP_NUM_THREADS" in found["threads"].fix
    assert found["GPU"].status == PROBLEM and "driver" in found["GPU"].fix


@pytest.mark.parametrize(
    ("chosen", "working", "expected"),
    [
        ("", {"egl"}, {"egl": OK, "osmesa": OK}),
        ("", set(), {"egl": WARNING, "osmesa": WARNING}),
        ("glfw", {"egl"}, {"glfw": PROBLEM, "egl": OK, "osmesa": OK}),
    ],
)
def test_one_backend_that_draws_is_enough(chosen, working, expected, monkeypatch):
    monkeypatch.setattr(trial, "try_backend", lambda name, _: Backend(name, name in working, "no such library"))
    monkeypatch.setattr(trial, "find_spec", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", chosen)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    found = by_name(trial.check_backends(1.0))
    assert {name: check.status for name, check in found.items()} == expected
    assert all(check.fix for check in found.values() if check.status != OK)


def test_a_simulator_is_played_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(trial, "SIMULATORS", {"dsrl/PointReach-v0": ("gymnasium", ""), "No-v0": ("gymnasium", "x")})
    found = by_name(trial.check_simulators(120.0))
    assert found["dsrl/PointReach-v0"].status == OK and "env steps/s" in found["dsrl/PointReach-v0"].found
    assert found["No-v0"].status == PROBLEM and "no environment 'No-v0'" in found["No-v0"].found
    monkeypatch.setattr(trial, "SIMULATORS", {"Mine-v0": ("no_such_module", "pip install mine")})
    (missing,) = trial.check_simulators(120.0)
    assert (missing.status, missing.fix) == (WARNING, "pip install mine")
    monkeypatch.setattr(trial, "SIMULATORS", {"Slow-v0": ("gymnasium", "pip install slow")})
    (slow,) = trial.check_simulators(0.01)
    assert slow.status == PROBLEM and "nothing within 0.01 s" in slow.found


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (WARNING, 0), (PROBLEM, 1)])
def test_problems_decide_the_exit_code(status, code, monkeypatch, capsys):
    check = Check("machine", "it", status, "found [x]", "pip install 'y[z]'")
    monkeypatch.setattr(doctor, "_stages", lambda config: [("it", [check])])
    assert doctor.doctor(DoctorConfig()) == code
    said = capsys.readouterr().out
    assert "found [x]" in said and ("Fix: pip install 'y[z]'" in said) == (status != OK)
    assert doctor.doctor(DoctorConfig(json=True)) == code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0) and report["checks"][0]["fix"] == check.fix
    with pytest.raises(DsrlError, match="--timeout"):
        DoctorConfig(timeout=0)
