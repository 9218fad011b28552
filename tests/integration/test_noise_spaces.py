"""Runs in smaller noise spaces: refused where the base policy breaks, whole where it does not."""

import json
import zipfile

import numpy as np
import pytest
import torch
from rich.console import Console

from dsrl.commands import load_run
from dsrl.config import FinetuneConfig, NAConfig, NoiseSpaceConfig, SACConfig
from dsrl.errors import DsrlError
from dsrl.finetune import finetune
from dsrl.pretrained import load_policy, save_policy
from dsrl.pretrained.toy import ToyPolicy

pytestmark = [pytest.mark.integration]

BROKEN = NoiseSpaceConfig(rows=1, rest="zero")


@pytest.fixture
def toy(tmp_path):
    return save_policy(ToyPolicy(), tmp_path / "toy.pt")


def run(checkpoint, run_dir, **changes):
    settings = {"total_env_steps": 600, "warmup_episodes": 10, "eval_interval": 300, "probe_episodes": 12}
    settings |= {"eval_episodes": 6, "final_episodes": 6, "final_repeats": 2, "hidden_dims": (16,), "device": "cpu"}
    agents = {"sac": SACConfig(updates_per_env_step=0.1)}
    agents["na"] = NAConfig(updates_per_env_step=0.1, fit_updates=20, fit_actor_updates=20)
    config = FinetuneConfig(base_policy=checkpoint, run_dir=run_dir, **agents, **{**settings, **changes})
    return finetune(config, Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": BROKEN}, "in the noise space 'first row, the rest zero' in .*--accept-noise-space"),
        ({"bound": 0.05}, "clipped to the box of the agent in 0%.*larger --bound"),
    ],
)
def test_a_run_refuses_to_start_from_a_broken_policy(toy, tmp_path, settings, message):
    with pytest.raises(DsrlError, match=message):
        run(toy, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists(), "nothing is written before everything is checked"


def test_a_refused_run_leaves_the_earlier_one(toy, tmp_path):
    run(toy, tmp_path / "run", probe_episodes=0)
    before = sorted(entry.name for entry in (tmp_path / "run").iterdir())
    with pytest.raises(DsrlError, match="in the noise space"):
        run(toy, tmp_path / "run", noise=BROKEN, overwrite=True)
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("settings", [{"accept_noise_space": True}, {"probe_episodes": 0}])
def test_a_broken_start_is_trained_when_it_is_accepted_or_not_looked_at(toy, tmp_path, settings):
    assert run(toy, tmp_path / "run", noise=BROKEN, **settings).comparison is not None


@pytest.mark.parametrize("algo", ["na", "sac", "ppo"])
@pytest.mark.parametrize(
    "noise", [NoiseSpaceConfig(rows=1), NoiseSpaceConfig(rows=1, rest="repeat"), NoiseSpaceConfig(basis=2)]
)
def test_run_agent_and_export_share_the_noise_space(toy, tmp_path, dsrl, algo, noise):
    run(toy, tmp_path / "run", noise=noise, algo=algo, probe_episodes=0)
    with zipfile.ZipFile(tmp_path / "run" / "final.zip") as archive:
        layout = json.loads(archive.read("data"))["steering"]["noise"]
    steered, _ = load_run(tmp_path / "run", "final", "cpu")
    assert steered.noise_space.layout() == layout != {}
    assert dsrl("export", tmp_path / "run", tmp_path / "steered.pt", "--agent", "final").returncode == 0
    loaded = load_policy(tmp_path / "steered.pt", device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (6, 1, 4)).astype(np.float32)
    draws = [p.predict(obs, generator=torch.Generator().manual_seed(0)) for p in (loaded, steered)]
    np.testing.assert_allclose(*draws, atol=1e-6)


def test_a_run_with_rows_from_the_prior_can_be_repeated(toy, tmp_path):
    settings = {"noise": NoiseSpaceConfig(rows=1), "probe_episodes": 0, "eval_episodes": 20}
    tables = []
    for name in ("first", "second"):
        run(toy, tmp_path / name, **settings)
        lines = (tmp_path / name / "evaluations.csv").read_text().splitlines()
        tables.append([line.rsplit(",", 2)[0] for line in lines])  # without the times
    assert tables[0] == tables[1] and len(tables[0]) == 4


def test_probe_compares_the_noise_spaces(toy, dsrl):
    done = dsrl("probe", toy, "--noise-spaces", "--states", 8, "--noise.rows", 1, "--noise.rest", "zero")
    assert done.returncode == 0, done.stderr
    for row in ("the agent's noise space: first row, the rest zero", "noise space: first row repeated"):
        assert row in done.stdout
    assert "dsrl finetune would refuse" in done.stdout


def test_a_space_that_the_policy_does_not_have_is_bad_input(toy, dsrl):
    done = dsrl("finetune", "--base-policy", toy, "--noise.rows", 5)
    assert done.returncode == 2 and "rows is 5; it must lie between 1 and 4" in done.stderr
