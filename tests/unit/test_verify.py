"""What `dsrl inspect --verify` says about a policy."""

from dataclasses import replace

import pytest
import torch

from dsrl.cli import main
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy
from dsrl.policy import PolicySpec
from dsrl.pretrained import save_policy
from dsrl.pretrained.verify import verify

SPEC = PolicySpec({"state": (3,)}, action_dim=2, horizon=4, n_action_steps=4)


class Odd:
    """A policy that returns its noise, and counts how often it was asked, which shows when ``drift`` is not 0."""

    device, cond_dim = torch.device("cpu"), 3

    def __init__(self, spec=SPEC, drift=0.0):
        self.spec, self.drift, self.calls = spec, drift, 0

    def sample(self, obs, noise):
        self.calls += 1
        return noise + self.drift * self.calls


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return DiffusionPolicy(SPEC, DiffusionConfig({"type": "mlp", "hidden_dims": [16] * 3})).freeze()


def test_a_deterministic_policy(policy):
    found = dict(verify(policy))
    assert found["deterministic"] == "yes, to the bit"
    assert not found["another noise"].startswith("moves actions by 0 ")


def test_one_that_is_not():
    assert dict(verify(Odd(drift=0.25)))["deterministic"] == "differs by up to 0.25"


def test_ranges_and_shares(policy):
    found = dict(verify(Odd()))
    assert "clipped by the sampler" not in found  # nobody says what its sampler clips
    share = float(found["outside of -1 to 1"].split()[0])
    assert share == pytest.approx(31.7, abs=5)  # of a normal distribution
    policy.action_normalizer.offset.fill_(10.0)
    found = dict(verify(policy))
    assert found["outside of -1 to 1"].startswith("100 %") and all(
        9 <= float(number) <= 11 for part in found["actions"].split(", ") for number in part.split(" to ")
    )


def test_clipped_actions_are_counted(policy):
    policy.config = replace(policy.config, clip_sample_range=1e-6)  # all of them are beyond that
    assert dict(verify(policy))["clipped by the sampler"].startswith("100 %")


def test_the_command(policy, tmp_path, capsys):
    path = save_policy(policy, tmp_path / "ckpt.pt")
    assert main(["inspect", str(path), "--verify", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "deterministic" in shown and "clipped by the sampler" in shown and "sha256" in shown
    assert main(["inspect", str(path)]) == 0 and "deterministic" not in capsys.readouterr().out
