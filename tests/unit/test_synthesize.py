"""Synthetic data: the files that are left, what they are measured by, and what is refused before the long work."""

import io
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from dsrl.data import Trajectories, Trajectory, read_hdf5, write_hdf5
from dsrl.edm import EDMConfig
from dsrl.errors import DsrlError
from dsrl.policy_guidance import PolicyGuidance
from dsrl.pretrained import save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.synthesize import SynthesizeConfig, synthesize
from dsrl.synthetic_diagnostics import diagnose, fitted_step, scales_of, simulator_step
from dsrl.training import Trainer
from dsrl.trajectory_windows import cut_windows
from dsrl.transitions import cut_transitions
from dsrl.wrappers import make_env, resolve_env_spec
from dsrl.wrappers.one_step import one_step

ENV = "dsrl/PointReach-v0"


def play(env, policy, seed, generator):
    """One episode of the toy policy, a little unsteady."""
    obs, _ = env.reset(seed=seed)
    seen, actions, rewards, ends, done = [obs], [], [], [], False
    while not done:
        noise = torch.randn(1, *policy.spec.noise_shape, generator=generator)
        for action in policy.sample(torch.as_tensor(seen[-1])[None, None], noise)[0]:
            action = (action + 0.1 * torch.randn(2, generator=generator)).clamp(-1, 1).numpy()
            obs, reward, end, cut, _ = env.step(action)
            seen.append(obs)
            actions.append(action)
            rewards.append(reward)
            ends.append(end)
            done = end or cut
            if done:
                break
    seen = np.stack(seen)
    parts = {"state": seen[:-1]}, {"state": seen[1:]}, np.stack(actions), np.array(rewards, np.float32), np.array(ends)
    return Trajectory(*parts, success=bool(ends[-1]), seed=seed)


@pytest.fixture(scope="module")
def recorded():
    env, policy, generator = make_env(ENV, reward="dense"), ToyPolicy(), torch.Generator().manual_seed(0)
    episodes = tuple(play(env, policy, seed, generator) for seed in range(24))
    return Trajectories(episodes, {"state": (4,)}, resolve_env_spec(ENV))


@pytest.fixture(scope="module")
def config(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_hdf5(folder / "data.hdf5", recorded)
    toy = save_policy(ToyPolicy(), folder / "toy.pt")
    small = {"preset": "tiny", "steps": 40, "batch_size": 32, "windows": 48, "window": 8}
    return SynthesizeConfig(
        folder / "data.hdf5", toy, folder / "made.hdf5", edm=EDMConfig(sampling_steps=6), device="cpu", **small
    )


def run(config):
    """What is printed, on one line."""
    text = io.StringIO()
    synthesize(config, Console(file=text, width=10_000, markup=False))
    return text.getvalue()


@pytest.fixture(scope="module")
def made(config):
    return run(config)


def test_what_is_written_is_read_as_any_data_set(config, made):
    data = read_hdf5(config.out)
    assert len(data) == 48 and max(map(len, data.episodes)) <= 8
    assert data.env == resolve_env_spec(ENV)
    assert all(np.abs(episode.actions).max() <= 1 for episode in data.episodes)
    assert {float(r) for episode in data.episodes for r in episode.rewards} <= {0.0, 1.0}, "a sparse reward"
    rewarded = replace(data.episodes[0], rewards=np.ones(len(data.episodes[0]), np.float32))
    cut = cut_transitions(replace(data, episodes=(rewarded, *data.episodes[1:])), ToyPolicy(), 0.99)
    assert len(cut) == data.n_steps and cut.chunk.shape[1] == 8


def test_both_diagnostics_stand_beside_it(config, made):
    report = json.loads(config.out.with_suffix(".json").read_text())
    assert report["dynamics judged by"] == "the simulator"
    for part in ("synthetic", "unguided", "recorded"):
        assert np.isfinite([report[part]["log_prob"], report[part]["dynamics_mse"]]).all()
    assert report["recorded"]["dynamics_mse"] < 1e-9 < report["synthetic"]["dynamics_mse"]
    assert report["recorded"]["termination_agreement"] == 1
    assert report["transitions per second"] > 0


def test_a_trained_model_is_used_again(config, made, tmp_path):
    again = replace(config, out=tmp_path / "again.hdf5", model=config.out.with_suffix(".model"), window=None)
    run(again)
    for one, other in zip(read_hdf5(config.out).episodes, read_hdf5(again.out).episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    assert again.out.with_suffix(".model").is_dir(), "--synthesize-every goes on with the model beside the data"
    with pytest.raises(DsrlError, match=r"--window is 12, the model .* draws windows of 8"):
        run(replace(again, window=12, overwrite=True))
    said = run(replace(again, overwrite=True, guidance=PolicyGuidance(500.0)))
    assert "of the actions lie at their limits with --guidance.weight 500" in said


@pytest.mark.parametrize("where", ["training", "drawing"])
def test_an_interrupted_call_goes_on(config, made, tmp_path, monkeypatch, where):
    again, steps, update = replace(config, out=tmp_path / "again.hdf5"), [], Trainer.update

    def stopped(trainer, *columns):
        steps.append(trainer.step)
        if trainer.step == 30 and where == "training":
            signal.raise_signal(signal.SIGINT)
        return update(trainer, *columns)

    monkeypatch.setattr(Trainer, "update", stopped)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if where == "drawing":
            patched.setattr("dsrl.synthesize._draw", lambda *_: signal.raise_signal(signal.SIGINT))
        run(again)
    monkeypatch.setattr(Trainer, "update", lambda *args: steps.append(args[0].step) or update(*args))
    run(again)
    assert steps == list(range(config.steps)), "each step once"
    for one, other in zip(read_hdf5(config.out).episodes, read_hdf5(again.out).episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    assert not list(tmp_path.glob("*.unfinished"))


def with_data(config, tmp_path, change):
    data = read_hdf5(config.dataset)
    path = tmp_path / "other.hdf5"
    write_hdf5(path, replace(data, episodes=tuple(change(episode) for episode in data.episodes)))
    return replace(config, dataset=path, out=tmp_path / "x.hdf5")


def test_what_cannot_work_is_refused_before_anything_is_trained(config, made, tmp_path):
    fresh = replace(config, out=tmp_path / "x.hdf5")
    refusals = {
        "made.hdf5 exists; choose another name": config,
        "cannot be written": replace(config, out=config.dataset / "x.hdf5"),
        "no window of 64 env steps: its longest episode has": replace(fresh, window=64),
        "--window is 10 env steps, the policy plays chunks of 4": replace(fresh, window=10),
        "actions of 3 numbers, the policy plays 2": with_data(
            config, tmp_path, lambda e: replace(e, actions=np.zeros((len(e), 3), np.float32))
        ),
    }
    for words, wrong in refusals.items():
        with pytest.raises(DsrlError, match=words):
            run(wrong)
    worthless = with_data(config, tmp_path, lambda e: replace(e, rewards=0 * e.rewards))
    with pytest.raises(DsrlError, match="has no rewards: all"):
        run(worthless)
    assert not worthless.out.exists() and not worthless.out.with_suffix(".model").exists()
    broken = with_data(config, tmp_path, lambda e: replace(e, rewards=e.rewards * np.nan))
    with pytest.raises(DsrlError, match="holds NaN or infinite values"):
        run(broken)


def test_data_without_terminations_are_warned_about(config, tmp_path):
    endless = with_data(config, tmp_path, lambda e: replace(e, terminated=np.zeros(len(e), bool)))
    said = run(replace(endless, steps=5, windows=4))
    assert "no episode of" in said and "terminates, so no synthetic window will" in said


def test_success_is_judged_by_what_the_environment_says(recorded):
    windows = cut_windows(recorded, 4)
    scales = scales_of(windows, (0.0, 1.0), -torch.ones(2), torch.ones(2))
    step = simulator_step(recorded.env, "dense", windows, scales)
    honest = diagnose(windows, None, step, scales, most=100_000)
    assert (honest.success_precision, honest.success_recall) == (1, 1)
    # every second success is kept quiet, and as many are made up
    earned = windows.reward.flatten().nonzero().squeeze(1)
    assert len(earned) > 4
    reward = windows.reward.clone()
    reward.view(-1)[earned[::2]] = 0
    silent = diagnose(windows._replace(reward=reward), None, step, scales, most=100_000)
    assert silent.success_precision == 1
    assert silent.success_recall == pytest.approx(1 - len(earned[::2]) / len(earned))
    liar = diagnose(windows._replace(reward=torch.ones_like(reward)), None, step, scales, most=100_000)
    assert liar.success_recall == 1 and liar.success_precision == pytest.approx(len(earned) / reward.numel(), rel=1e-3)


def test_without_a_simulator_a_fitted_model_tells_wrong_dynamics_from_right_ones(recorded):
    windows = cut_windows(recorded, 4)
    scales = scales_of(windows, (0.0, 1.0), -torch.ones(2), torch.ones(2))
    step = fitted_step(windows, scales, steps=300)
    right = diagnose(windows, None, step, scales).dynamics_mse
    wrong = windows._replace(action=-windows.action)
    assert right < 0.01 and diagnose(wrong, None, step, scales).dynamics_mse > 5 * right
    assert simulator_step(None, "dense", windows, scales) is None
    drifted = windows._replace(obs=windows.obs + torch.linspace(0, 1, 5)[:, None])
    assert simulator_step(recorded.env, "dense", drifted, scales) is None, "it does not repeat what was recorded"


@pytest.mark.parametrize("name", [ENV, "Pendulum-v1", "Hopper-v5", "InvertedDoublePendulum-v5", "Reacher-v5"])
def test_one_step_from_an_observation_is_the_step_of_the_simulator(name):
    if name.endswith("-v5"):
        pytest.importorskip("mujoco")
    env = make_env(name, reward="dense")
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for _ in range(12):
        action = env.action_space.sample()
        after, reward, end, _, _ = env.step(action)
        rows.append((obs, action, after, reward, end))
        obs = env.reset()[0] if end else after
    before, actions, following, rewards, ends = map(np.array, zip(*rows, strict=True))
    simulator = one_step(resolve_env_spec(name), "dense")
    found = simulator(before, actions)
    np.testing.assert_allclose(found[0], following, atol=1e-4)
    np.testing.assert_allclose(found[1], rewards, atol=1e-4)
    np.testing.assert_array_equal(found[2], ends)
