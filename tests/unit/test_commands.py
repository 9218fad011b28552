"""What the verbs make of the files they are given."""

from dataclasses import replace

import numpy as np
import pytest

from dsrl import commands
from dsrl.algorithms import ALGORITHMS, steering_facts
from dsrl.config import ExportConfig, FinetuneConfig
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.evaluate import environment_of
from dsrl.evaluate_config import EvaluateConfig
from dsrl.pretrained import load_policy, save_policy
from dsrl.run import RunFolder
from dsrl.wrappers import SteeredVecEnv, make_vec_env, resolve_env_spec


@pytest.fixture
def shorter(toy_policy):
    """The policy's environment with half the time."""
    return replace(resolve_env_spec(toy_policy.spec.env), max_episode_steps=16)


@pytest.fixture
def run(toy_policy, shorter, tmp_path):
    """A run that steered the toy policy in an environment other than its own."""
    path = save_policy(toy_policy, tmp_path / "toy.pt")
    sha256 = load_policy(path, device="cpu").spec.sha256
    facts = {"path": str(path), "sha256": sha256, "env": shorter.to_robomimic()}
    folder = RunFolder.create(tmp_path / "run", {}, facts)
    envs = SteeredVecEnv(make_vec_env(shorter, toy_policy.spec), toy_policy)
    config = FinetuneConfig(algo="sac", hidden_dims=(16,))
    model = ALGORITHMS["sac"].build(config, envs, 4, seed=0, device="cpu")
    model.steering = steering_facts(config, model, 1.5, load_policy(path, device="cpu"))
    model.save(folder.final)
    return folder.path


def test_an_exported_policy_remembers_where_it_was_trained(run, shorter, tmp_path):
    commands.export(ExportConfig(run, tmp_path / "new" / "steered.pt"))
    assert load_policy(tmp_path / "new" / "steered.pt", device="cpu").spec.env == shorter


def test_a_report_is_written_into_a_new_folder(run, tmp_path):
    report = tmp_path / "new" / "report.json"
    commands.evaluate(EvaluateConfig(run, episodes=2, json=report, device="cpu"))
    assert '"paired"' in report.read_text()
    assert {entry.name for entry in report.parent.iterdir()} == {"report.json", "report_episodes.npz"}


def test_a_file_does_not_choose_a_module_to_import(toy_policy):
    """As gymnasium does, `module:id` imports the module; only the user may ask for that."""
    foreign = replace(resolve_env_spec("dsrl/PointReach-v0"), name="antigravity:dsrl/PointReach-v0")
    toy_policy.spec = replace(toy_policy.spec, env=foreign)
    with pytest.raises(DsrlError, match=r"import the module 'antigravity'.*--env antigravity:dsrl/PointReach-v0"):
        environment_of(toy_policy)
    assert environment_of(toy_policy, foreign.id) == foreign


def test_a_time_limit_of_ones_own(run, toy_policy, shorter, tmp_path):
    """It takes the place of that of the run, and of that of the policy."""
    for limit, length in ((None, 16), (8, 8)):
        report = tmp_path / f"{limit}.json"
        config = EvaluateConfig(run, episodes=4, json=report, device="cpu", reward="step-cost", max_episode_steps=limit)
        commands.evaluate(config)
        lengths = np.load(report.with_name(f"{limit}_episodes.npz"))["lengths"]
        assert (lengths == length).all()
    assert environment_of(toy_policy, None, 16) == replace(shorter, version=toy_policy.spec.env.version)
    assert environment_of(toy_policy, "robosuite/Lift", 7) == EnvSpec("robosuite", "Lift", max_episode_steps=7)
    with pytest.raises(DsrlError, match="--max-episode-steps is 0"):
        EvaluateConfig(run, max_episode_steps=0)
