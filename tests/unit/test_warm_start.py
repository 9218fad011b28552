"""Synthetic decisions among the batches of noise-aliased SAC."""

import json

import numpy as np
import pytest
import torch
from na_agents import POLICY, agent

from dsrl.config import FinetuneConfig
from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.demo_mix import DemoMix
from dsrl.edm import EDMConfig
from dsrl.errors import DsrlError
from dsrl.trajectory_diffusion import PRESETS, TrajectoryConfig, TrajectoryDiffusion, save_model
from dsrl.trajectory_windows import Layout
from dsrl.warm_start import WarmStart
from dsrl.wrappers import resolve_env_spec

ENV = resolve_env_spec("dsrl/PointReach-v0")


@pytest.fixture
def synthetic(tmp_path):
    """Files as ``dsrl synthesize`` leaves them, of a model that has learned nothing."""
    rng, zeros = np.random.default_rng(0), np.zeros(8, np.float32)
    obs = rng.uniform(-1, 1, (6, 9, 4)).astype(np.float32)
    actions = rng.uniform(-1, 1, (6, 8, 2)).astype(np.float32)
    windows = (
        Trajectory({"obs": o[:-1]}, {"obs": o[1:]}, a, zeros, zeros > 0) for o, a in zip(obs, actions, strict=True)
    )
    path = tmp_path / "made.hdf5"
    write_hdf5(path, Trajectories(tuple(windows), {"obs": (4,)}, ENV))
    config = TrajectoryConfig(Layout(4, 2, 8), PRESETS["tiny"], EDMConfig(sampling_steps=4))
    save_model(TrajectoryDiffusion(config, -torch.ones(2), torch.ones(2)), path.with_suffix(".model"))
    path.with_suffix(".json").write_text(json.dumps({"guidance": {"weight": 0.5}, "target_std": 0.1}))
    return path


def warm(path, model, **more):
    config = FinetuneConfig(warm_start=path, total_env_steps=400, reward="dense", **more)
    return WarmStart(config, POLICY, ENV, model.env.env_method("get_wrapper_attr", "action_space")[0])


def test_synthetic_decisions_join_demonstrations_and_their_share_falls_to_zero(synthetic):
    model = agent()
    shown = model.new_buffer(4)
    model.demos = DemoMix(shown, "ratio", 0.5)
    start = warm(synthetic, model, synthetic_share=0.4)
    assert start.attach(model) == 12, "six windows of two chunks"
    mix = model.demos
    assert mix.beside is not None and mix.beside.buffer is shown
    own = model.replay_buffer
    assert [mix.share_now(own, played) for played in (0, 50, 100, 200)] == [0.4, 0.2, 0.0, 0.0]


def test_they_are_made_anew_for_the_policy_of_the_moment(synthetic):
    model = agent()
    start = warm(synthetic, model, synthesize_every=100)
    start.attach(model)
    before = model.demos.buffer
    assert start.renew(model, POLICY, seed=1) == model.demos.buffer.rows > 0
    assert model.demos.buffer is not before
    batch = model.demos.sample(model.replay_buffer, 4, 0, unknown_noise=True) if model.replay_buffer.rows else None
    assert batch is None


def test_a_model_that_is_not_there_is_missed_before_the_run(synthetic):
    model = agent()
    synthetic.with_suffix(".json").unlink()
    with pytest.raises(DsrlError, match="does not say how the synthetic data were made"):
        warm(synthetic, model, synthesize_every=100)
    (synthetic.with_suffix(".model") / "config.json").unlink()
    with pytest.raises(DsrlError, match=r"is no trajectory model: it lacks config.json"):
        warm(synthetic, model, synthesize_every=100)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algo": "sac", "warm_start": "x.hdf5"}, "--warm-start is for --algo na"),
        ({"synthesize_every": 100}, "needs --warm-start"),
        ({"synthetic_share": 0.7}, "--synthetic-share is 0.7"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(DsrlError, match=words):
        FinetuneConfig(**settings)
