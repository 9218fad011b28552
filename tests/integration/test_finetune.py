"""From a frozen policy to a better one: the run, its folder, and the files that it leaves."""

import base64
import csv
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from stable_baselines3 import PPO, SAC

from dsrl.actor_file import read_actor
from dsrl.commands import load_run
from dsrl.config import FinetuneConfig, NAConfig, PPOConfig, SACConfig, finetune_config
from dsrl.errors import DsrlError
from dsrl.evaluate import evaluate, evaluate_in_env
from dsrl.finetune import finetune
from dsrl.pretrained import load_policy, save_policy
from dsrl.report_data import read_run
from dsrl.run import RunFolder
from dsrl.wrappers import make_vec_env

pytestmark = [pytest.mark.integration]

QUIET = Console(quiet=True)
COLUMNS = [
    "env_steps",
    "policy",
    "deterministic",
    "episodes",
    "success_rate",
    "success_low",
    "success_high",
    "mean_return",
    "mean_length",
    "held_rate",
    "mean_jerk",
    "eval_env_steps",
    "wall_seconds",
    "cpu_seconds",
]
FILES = {
    "config.yaml",
    "environment.json",
    "base_policy.json",
    "metrics.csv",
    "evaluations.csv",
    "checkpoints",
    "best.zip",
    "final.zip",
    "learning_curve.png",
    "comparison.json",
    "comparison_episodes.npz",
    "tb",
    "state",
}


def settings(checkpoint, run_dir, **changes):
    """Enough to learn the toy task."""
    config = FinetuneConfig(
        base_policy=checkpoint,
        run_dir=run_dir,
        algo="sac",
        total_env_steps=6000,
        warmup_episodes=30,
        eval_interval=2000,
        eval_episodes=40,
        final_episodes=60,
        final_repeats=4,
        probe_episodes=4,
        hidden_dims=(64, 64),
        gamma=0.97,  # an episode takes 32 env steps at most
        device="cpu",
        na=NAConfig(learning_rate=1e-3, updates_per_env_step=0.5, target_divergence=2.0, n_critics=2, batch_size=64),
        sac=SACConfig(learning_rate=1e-3, updates_per_env_step=0.5),
    )
    return replace(config, **changes)


def short(checkpoint, run_dir, **changes):
    """Just long enough to write every file."""
    budget = {"total_env_steps": 600, "warmup_episodes": 10, "eval_interval": 300, "probe_episodes": 0}
    episodes = {"eval_episodes": 6, "final_episodes": 6, "final_repeats": 2}
    return settings(checkpoint, run_dir, **{**budget, **episodes, **changes})


@pytest.fixture(scope="module")
def base_copy(toy_checkpoint, tmp_path_factory):
    """The base policy in a place where a test may exchange it."""
    path = tmp_path_factory.mktemp("base") / "base.pt"
    path.write_bytes(toy_checkpoint.read_bytes())
    return path


@pytest.fixture(scope="module")
def sac_run(base_copy, tmp_path_factory):
    return finetune(settings(base_copy, tmp_path_factory.mktemp("runs") / "sac"), QUIET)


@pytest.fixture(scope="module")
def na_run(base_copy, tmp_path_factory):
    config = settings(base_copy, tmp_path_factory.mktemp("runs") / "na", algo="na", total_env_steps=3000)
    return finetune(replace(config, eval_interval=1000), QUIET)


@pytest.fixture(scope="module")
def other_policy(toy_checkpoint, tmp_path_factory):
    """The base policy with one weight moved."""
    checkpoint = torch.load(toy_checkpoint, weights_only=True)
    name = next(name for name in checkpoint["weights"] if name.startswith("denoiser."))
    checkpoint["weights"][name].view(-1)[0] += 0.1
    path = tmp_path_factory.mktemp("other") / "other.pt"
    torch.save(checkpoint, path)
    return path


def rows(run_dir):
    with (run_dir / "evaluations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def names(run_dir):
    return {entry.name for entry in run_dir.iterdir()}


@pytest.mark.parametrize("name", ["sac_run", "na_run"])
def test_steering_beats_the_base_policy(request, name):
    comparison = request.getfixturevalue(name).comparison
    difference, low, _, _ = comparison.gain()
    assert difference >= 0.3 and low > 0
    assert comparison.steered.success_rate > max(e.success_rate for e in comparison.controls)


def test_the_noise_aliased_agent_is_scored_before_it_steers_and_leaves_the_same_files(na_run):
    assert names(na_run.run_dir) == FILES
    base, first, *later = rows(na_run.run_dir)
    assert base["policy"] == "base" and 0 < int(first["env_steps"]) <= 1500 and int(later[-1]["env_steps"]) >= 3000
    metrics = RunFolder.open(na_run.run_dir).read_metrics()[-1]
    assert {"train/distill_loss", "train/divergence", "rollout/learner_x1", "rollout/candidates"} <= metrics.keys()
    looked = set().union(*RunFolder.open(na_run.run_dir).read_metrics())
    assert {"noise/rms", "noise/saturated", "noise/kl", "critic/std", "critic/gap", "critic/agreement"} <= looked


def test_a_warm_up_as_long_as_the_budget_leaves_half_of_it_to_steer(toy_policy, tmp_path):
    checkpoint = save_policy(toy_policy, tmp_path / "toy.pt")
    finetune(short(checkpoint, tmp_path / "run", algo="na", warmup_episodes=500, final_controls=False), QUIET)
    steps = [int(row["env_steps"]) for row in rows(tmp_path / "run")]
    assert steps[0] == 0 and 300 <= steps[1] < 350 and steps[-1] >= 600
    final = json.loads(RunFolder.open(tmp_path / "run").comparison.read_text())
    assert len(final["rows"]) == 3 and [row["policy"] for row in final["rows"]][::2] == ["base, N(0, I)", "steered"]
    assert final["trained_env_steps"] >= 600 and read_run(tmp_path / "run", "").trained == final["trained_env_steps"]


def test_the_run_folder_is_complete(sac_run, base_copy):
    assert names(sac_run.run_dir) == FILES
    folder = RunFolder.open(sac_run.run_dir)
    expected = replace(settings(base_copy, sac_run.run_dir), reward="dense")  # what "auto" meant
    assert finetune_config(folder.read_config()) == expected
    facts = folder.read_base_policy()
    assert facts["path"] == str(base_copy) and facts["sha256"] == load_policy(base_copy, device="cpu").spec.sha256
    environment = json.loads(folder.environment_path.read_text())
    assert environment["packages"]["torch"] and environment["packages"]["dsrl"] and environment["cpu"]
    assert folder.learning_curve.read_bytes().startswith(b"\x89PNG")
    assert list((folder.path / "tb").glob("events.out.tfevents.*"))
    assert "train/critic_loss" in folder.read_metrics()[-1]
    assert (folder.checkpoints / "latest.zip").is_file()


def test_the_table_of_evaluations_starts_with_the_base_policy(sac_run):
    header, *_ = (sac_run.run_dir / "evaluations.csv").read_text().splitlines()
    assert header.split(",") == COLUMNS
    table = rows(sac_run.run_dir)
    assert (table[0]["policy"], table[0]["env_steps"], table[0]["deterministic"]) == ("base", "0", "False")
    assert {(row["policy"], row["deterministic"]) for row in table[1:]} == {("steered", "True")}
    steps = [int(row["env_steps"]) for row in table]
    assert steps == sorted(steps) and steps[-1] >= 6000 and len(table) == 5
    assert {row["episodes"] for row in table} == {"40"}
    assert all(float(r["success_low"]) <= float(r["success_rate"]) <= float(r["success_high"]) for r in table)


def test_every_evaluation_plays_the_episodes_of_the_base_policy(toy_policy, tmp_path, monkeypatch):
    checkpoint, played, gammas = save_policy(toy_policy, tmp_path / "toy.pt"), [], []

    def watched(policy, envs, **settings):
        result = evaluate(policy, envs, **settings)
        played.append((settings["seed"], settings["episodes"], settings.get("noise_scale", 1.0)))
        gammas.extend(envs.get_attr("gamma"))
        return result

    training = []

    def made(*args, **settings):
        training.append(make_vec_env(*args, **settings))
        return training[-1]

    monkeypatch.setattr("dsrl.callbacks.evaluate", watched)
    monkeypatch.setattr("dsrl.finetune.make_vec_env", made)
    finetune(short(checkpoint, tmp_path / "run", gamma=0.9), QUIET)
    # noise scale 1: the base policy under N(0, I), 0: the steered policy without chance of its own
    assert [scale for *_, scale in played] == [1.0] + [0.0] * (len(played) - 1) and len(played) >= 3
    assert len({(seed, episodes) for seed, episodes, _ in played}) == 1
    assert set(gammas) == {1.0}, "returns in tables are not discounted"
    assert training[0].get_attr("gamma") == [0.9] * 4, "rewards inside a chunk are, while learning"


def test_a_run_has_the_time_limit_that_was_asked_for(base_copy, tmp_path):
    finetune(short(base_copy, tmp_path / "run", max_episode_steps=8), QUIET)
    lengths = np.load(tmp_path / "run" / "comparison_episodes.npz")["lengths"]
    assert lengths.max() == 8  # of 32
    assert json.loads((tmp_path / "run" / "base_policy.json").read_text())["env"]["max_episode_steps"] == 8


def test_an_agent_is_loaded_by_stable_baselines3_as_it_is(sac_run, base_copy):
    agent, base = SAC.load(sac_run.run_dir / "best.zip", device="cpu"), load_policy(base_copy, device="cpu")
    actor = read_actor(sac_run.run_dir / "best.zip", base)
    obs = torch.randn(5, base.cond_dim, generator=torch.Generator().manual_seed(0))
    expected, _ = agent.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(actor(obs, torch.zeros(5, 8)).numpy(), expected, atol=1e-5)


def contents(path):
    """Everything in an agent file as bytes, what is coded or packed in it decoded too."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in [name for name in members if name.endswith(".pth")]:
        with zipfile.ZipFile(io.BytesIO(members[name])) as archive:
            members |= {f"{name}/{inner}": archive.read(inner) for inner in archive.namelist()}
    for key, value in json.loads(members["data"]).items():
        if isinstance(value, dict) and ":serialized:" in value:
            members[f"data/{key}"] = base64.b64decode(value[":serialized:"])
    return members


def test_an_agent_file_does_not_hold_the_base_policy(sac_run, base_copy):
    weights = load_policy(base_copy, device="cpu").state_dict()
    members = contents(sac_run.run_dir / "best.zip")
    large = {name: tensor.numpy().tobytes() for name, tensor in weights.items() if tensor.numel() > 2}
    assert len(large) > 6
    for name, blob in large.items():
        assert not [member for member, content in members.items() if blob in content], name
    agent = SAC.load(sac_run.run_dir / "best.zip", device="cpu")
    # weights, and two moments per weight in the optimisers; the rest is names and settings
    known = 4 * 3 * sum(p.numel() for p in agent.policy.parameters())
    assert (sac_run.run_dir / "best.zip").stat().st_size < known + 200_000
    assert set(agent.steering) == {"algo", "bound", "base_policy_sha256"}


def test_an_agent_refuses_another_base_policy(sac_run, other_policy):
    with pytest.raises(DsrlError, match=r"steers the base policy .* means nothing to another policy"):
        read_actor(sac_run.run_dir / "best.zip", load_policy(other_policy, device="cpu"))


def test_a_run_refuses_a_base_policy_that_has_changed(sac_run, base_copy, other_policy):
    original = base_copy.read_bytes()
    try:
        base_copy.write_bytes(other_policy.read_bytes())
        with pytest.raises(DsrlError, match="no longer the base policy of this run"):
            load_run(sac_run.run_dir, "best", "cpu")
        base_copy.unlink()
        with pytest.raises(DsrlError, match="no checkpoint at"):
            load_run(sac_run.run_dir, "best", "cpu")
    finally:
        base_copy.write_bytes(original)


def test_the_base_policy_is_not_changed(sac_run, base_copy, toy_checkpoint):
    assert base_copy.read_bytes() == toy_checkpoint.read_bytes()


def test_evaluate_scores_base_and_steered_on_the_same_episodes(sac_run, dsrl, tmp_path):
    report = tmp_path / "report.json"
    done = dsrl("evaluate", sac_run.run_dir, "--episodes", 30, "--seed", 777, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "points, 95 % interval" in done.stdout
    numbers = json.loads(report.read_text())
    by_name = {row["policy"]: row for row in numbers["rows"]}
    assert {row["episodes"] for row in numbers["rows"]} == {30} and numbers["seed"] == 777
    steered, _ = load_run(sac_run.run_dir, "final", "cpu")
    for policy, name, scale in ((steered.base, "base, N(0, I)", 1.0), (steered, "steered", 0.0)):
        alone = evaluate_in_env(policy, episodes=30, seed=777, noise_scale=scale)
        assert alone.success_rate == pytest.approx(by_name[name]["success_rate"])
    assert numbers["paired"]["difference"] == pytest.approx(
        by_name["steered"]["success_rate"] - by_name["base, N(0, I)"]["success_rate"]
    )


def test_an_exported_choice_among_candidates_acts_as_the_run_did(na_run, dsrl, tmp_path):
    done = dsrl("export", na_run.run_dir, tmp_path / "steered.pt")
    assert done.returncode == 0, done.stderr
    steered, loaded = load_run(na_run.run_dir, "final", "cpu")[0], load_policy(tmp_path / "steered.pt", device="cpu")
    assert loaded.kind == steered.kind
    scale = loaded.acting_scale
    runs = [evaluate_in_env(policy, episodes=20, seed=55, noise_scale=scale) for policy in (steered, loaded)]
    np.testing.assert_array_equal(runs[0].lengths, runs[1].lengths)


@pytest.fixture(scope="module")
def exported(sac_run, dsrl, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "steered.pt"
    done = dsrl("export", sac_run.run_dir, path)
    assert done.returncode == 0, done.stderr
    return path


def test_an_exported_policy_acts_as_the_run_did(sac_run, exported):
    steered, loaded = load_run(sac_run.run_dir, "final", "cpu")[0], load_policy(exported, device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (6, 1, 4)).astype(np.float32)
    chunks = loaded.predict(obs)
    assert chunks.shape == (6, 4, 2) and loaded.predict(obs[0]).shape == (4, 2)
    np.testing.assert_allclose(chunks, steered.predict(obs), atol=1e-6)
    runs = [evaluate_in_env(policy, episodes=20, seed=55, noise_scale=0.0) for policy in (steered, loaded)]
    np.testing.assert_array_equal(runs[0].success, runs[1].success)
    np.testing.assert_array_equal(runs[0].lengths, runs[1].lengths)


def test_an_exported_policy_needs_neither_the_run_nor_stable_baselines3(exported, dsrl):
    assert torch.load(exported, weights_only=True)["kind"] == "steered"
    done = dsrl("evaluate", exported, "--episodes", 8)
    assert done.returncode == 0 and "points, 95 % interval" in done.stdout, done.stderr
    assert dsrl("inspect", exported).returncode == 0


def test_an_exported_policy_can_be_steered_again(exported, tmp_path):
    result = finetune(short(exported, tmp_path / "again"), QUIET)
    assert names(result.run_dir) == FILES


def test_a_toy_policy_is_saved_and_steered(toy_policy, tmp_path):
    checkpoint = save_policy(toy_policy, tmp_path / "analytic.pt")
    config = short(checkpoint, tmp_path / "run", total_env_steps=1600, eval_interval=None, eval_episodes=None)
    result = finetune(config, QUIET)
    assert names(result.run_dir) == FILES
    # left to itself, it evaluates for a quarter of the training at most
    base, *steered = rows(result.run_dir)
    assert steered and 0 < int(base["eval_env_steps"]) < int(steered[-1]["eval_env_steps"]) <= 400


def test_ppo_writes_the_same_files(toy_checkpoint, tmp_path):
    config = short(toy_checkpoint, tmp_path / "ppo", algo="ppo", total_env_steps=1200, eval_interval=600)
    config = replace(config, ppo=PPOConfig(rollout_env_steps=512, batch_size=64, n_epochs=2))
    result = finetune(config, QUIET)
    assert names(result.run_dir) == FILES
    agent, base = PPO.load(result.run_dir / "final.zip", device="cpu"), load_policy(toy_checkpoint, device="cpu")
    obs = torch.randn(5, base.cond_dim, generator=torch.Generator().manual_seed(0))
    actor = read_actor(result.run_dir / "final.zip", base)
    expected, _ = agent.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(actor(obs, torch.zeros(5, 8)).numpy(), expected, atol=1e-5)
    assert rows(result.run_dir)[0]["policy"] == "base"


@pytest.mark.parametrize("algo", ["na", "sac", "ppo"])
def test_the_same_seed_gives_the_same_run(toy_checkpoint, tmp_path, algo):
    tables = []
    for name in ("first", "second"):
        config = short(toy_checkpoint, tmp_path / name, algo=algo, seed=3)
        config = replace(config, ppo=PPOConfig(rollout_env_steps=256, batch_size=32, n_epochs=2))
        finetune(config, QUIET)
        tables.append([{**row, "wall_seconds": "", "cpu_seconds": ""} for row in rows(tmp_path / name)])
    assert tables[0] == tables[1] and len(tables[0]) >= 3
