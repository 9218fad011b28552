"""Simulators in processes of their own: what goes wrong there arrives here, in words."""

import os

import numpy as np
import pytest

from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.evaluate import evaluate
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import make_vec_env
from dsrl.wrappers.toy import PointReach

pytestmark = [pytest.mark.integration]

POLICY = ToyPolicy()


class Diverges(PointReach):
    def step(self, action):
        raise RuntimeError("the contact solver has diverged")


class Dies(PointReach):
    def step(self, action):
        os._exit(9)  # as a process that the system kills for want of memory


class NeverStarts(PointReach):
    def reset(self, **kwargs):
        raise ValueError("no such object")


@pytest.mark.parametrize(
    ("simulator", "message"),
    [(Diverges, "the contact solver has diverged"), (Dies, "the process .* died"), (NeverStarts, "no such object")],
)
def test_a_failure_in_a_process_is_a_message_and_the_rest_can_be_closed(simulator, message, capfd):
    envs = make_vec_env(simulator, POLICY.spec, 2, subprocess=True)
    with pytest.raises(SimulatorFailed, match=message):
        evaluate(POLICY, envs, episodes=2, seed=0)
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)
    assert "Traceback" not in capfd.readouterr().err


def test_processes_play_what_one_process_plays():
    results = []
    for subprocess in (False, True):
        envs = make_vec_env("dsrl/PointReach-v0", POLICY.spec, 2, subprocess=subprocess)
        results.append(evaluate(POLICY, envs, episodes=7, seed=3))
        envs.seed(0)
        envs.reset()
        steps = [envs.step(np.zeros((2, 4, 2), np.float32)) for _ in range(8)]
        assert steps[-1][2].all() and all(info["TimeLimit.truncated"] for info in steps[-1][3])
        results[-1] = (
            results[-1].success.tolist(),
            results[-1].lengths.tolist(),
            steps[-1][3][0]["terminal_observation"],
        )
        envs.close()
    assert results[0][:2] == results[1][:2]
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_what_cannot_be_built_is_said_before_a_process_starts(monkeypatch):
    monkeypatch.setattr("dsrl.wrappers.robosuite.find_spec", lambda name: None)
    with pytest.raises(DsrlError, match=r"pip install 'dsrl-steering\[robosuite\]'"):
        make_vec_env("robosuite/Lift", POLICY.spec, 2)


class Unbuildable(PointReach):
    def __init__(self):
        raise DsrlError("the desk has no observation 'lamp'")


class Broken(PointReach):
    def __init__(self):
        raise KeyError("interpolation")


@pytest.mark.parametrize(
    ("simulator", "kind", "message"),
    [(Unbuildable, DsrlError, "no observation 'lamp'"), (Broken, SimulatorFailed, "interpolation")],
)
def test_what_goes_wrong_while_it_is_built_is_a_message(simulator, kind, message, capfd):
    with pytest.raises(DsrlError, match=message) as error:
        make_vec_env(simulator, POLICY.spec, 2, subprocess=True)
    assert type(error.value) is kind
    assert "Traceback" not in capfd.readouterr().err
