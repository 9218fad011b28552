"""Behaviour cloning turns a data set into a policy, and leaves something useful when it is stopped."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, RunFailed
from dsrl.pretrain import PretrainConfig, pretrain
from dsrl.pretrained import describe, load_policy
from dsrl.training import Trainer
from dsrl.unfinished import Unfinished


@pytest.fixture
def config(tmp_path):
    """Demonstrations that always go straight for the goal at half speed; one action never changes."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(24):
        obs = rng.uniform(-1, 1, (13, 4)).astype(np.float32)
        actions = np.concatenate([0.5 * (obs[:-1, 2:] - obs[:-1, :2]), np.full((12, 1), 0.25)], 1).astype(np.float32)
        dones = np.arange(12) == 11
        episodes.append(Trajectory({"obs": obs[:-1]}, {"obs": obs[1:]}, actions, dones.astype(float), dones, True))
    data = Trajectories(tuple(episodes), {"obs": (4,)}, EnvSpec("gymnasium", "dsrl/PointReach-v0"))
    write_hdf5(tmp_path / "demos.hdf5", data)
    return PretrainConfig(
        dataset=tmp_path / "demos.hdf5",
        out=tmp_path / "base.pt",
        hidden_dims=(32,) * 3,
        horizon=1,
        n_action_steps=1,
        steps=300,
        batch_size=64,
        eval_episodes=0,
        device="cpu",
    )


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_the_policy_does_what_the_demonstrations_do(config, kind):
    policy = load_policy(pretrain(replace(config, kind=kind, steps=800, lr=3e-3)), device="cpu")
    obs = torch.rand(64, 1, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chunk = policy.sample(obs, torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(1)))[:, 0]
    expert = 0.5 * (obs[:, 0, 2:] - obs[:, 0, :2])
    error, spread = (chunk[:, :2] - expert).square().mean(), expert.square().mean()
    assert error < 0.1 * spread
    assert (chunk[:, 2].mean() - 0.25).abs() < 0.15  # a constant action keeps scale 1


def test_the_checkpoint_knows_where_it_came_from(config):
    rows = dict(describe(pretrain(replace(config, steps=5))))
    assert rows["provenance data"] == "demos.hdf5, 24 episodes, 24 successes"
    assert rows["provenance steps"] == "5"
    assert len(rows["provenance data sha256"]) == 64
    assert "'batch_size': 64" in rows["provenance config"] and str(config.dataset.parent) not in str(
        rows["provenance config"]
    )
    assert rows["environment"] == "dsrl/PointReach-v0"


def test_the_same_seed_gives_the_same_weights(config):
    hashes = [
        load_policy(
            pretrain(replace(config, steps=20, seed=seed, out=config.out.with_name(name))), device="cpu"
        ).spec.sha256
        for seed, name in ((0, "a.pt"), (0, "b.pt"), (1, "c.pt"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_global_generator_is_left_alone(config):
    torch.manual_seed(7)
    expected = torch.randn(1)
    torch.manual_seed(7)
    pretrain(replace(config, steps=2))
    assert torch.equal(torch.randn(1), expected)


def test_the_unet_reads_a_history(config):
    more = {"network": "unet", "hidden_dims": (16, 32), "horizon": 8, "n_action_steps": 4, "n_obs_steps": 2, "steps": 3}
    spec = load_policy(pretrain(replace(config, **more)), device="cpu").spec
    assert (spec.n_obs_steps, spec.horizon, spec.n_action_steps, spec.action_start) == (2, 8, 4, 1)


def test_ctrl_c_keeps_what_was_learned(config, monkeypatch, capsys):
    update = Trainer.update

    def interrupted(trainer, *batch):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return update(trainer, *batch)

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    partial = config.out.with_name("base.pt.partial")
    assert dict(describe(partial))["provenance steps"] == "7"
    assert not config.out.exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "interrupted after 7 steps" in said


def broken_off(monkeypatch, call, step, how):
    """``call`` ends in the middle, at ``step`` of the training."""
    update = Trainer.update

    def broken(trainer, *batch):
        if trainer.step == step:
            how()
        return update(trainer, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", broken)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            call()


def killed():
    raise ZeroDivisionError


@pytest.mark.parametrize("how", [lambda: signal.raise_signal(signal.SIGINT), killed])
def test_the_same_call_goes_on_to_the_same_weights(config, monkeypatch, capsys, how):
    expected = load_policy(pretrain(replace(config, out=config.out.with_name("unbroken.pt"))), device="cpu").spec.sha256
    monkeypatch.setitem(Unfinished.__init__.__kwdefaults__, "interval", 0.0)  # killed at any time
    broken_off(monkeypatch, lambda: pretrain(config), 123, how)
    assert not config.out.exists() and config.out.with_name("base.pt.unfinished").exists()
    steps = []
    update = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda *args: steps.append(args[0].step) or update(*args))
    assert load_policy(pretrain(config), device="cpu").spec.sha256 == expected
    assert steps[0] in (123, 124), "not from the start"
    assert {path.name for path in config.out.parent.iterdir()} == {"base.pt", "demos.hdf5", "unbroken.pt"}


def test_other_settings_do_not_go_on(config, monkeypatch):
    broken_off(monkeypatch, lambda: pretrain(config), 7, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(DsrlError, match=r"--batch-size was 64, is 32"):
        pretrain(replace(config, batch_size=32))
    assert load_policy(pretrain(replace(config, batch_size=32, overwrite=True)), device="cpu").spec.action_dim == 3


def test_a_loss_that_explodes_is_reported(config):
    with pytest.raises(RunFailed, match="try a smaller --lr"):
        pretrain(replace(config, lr=1e30, steps=30))
    assert [path.name for path in config.out.parent.iterdir()] == ["demos.hdf5"], "nothing to go on from"


def test_an_existing_checkpoint_is_kept(config):
    config.out.write_text("mine")
    with pytest.raises(DsrlError, match="--overwrite"):
        pretrain(config)
    assert config.out.read_text() == "mine"
    pretrain(replace(config, steps=1, overwrite=True))
    assert load_policy(config.out, device="cpu").spec.action_dim == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_action_steps": 2}, "horizon of 1 has no 2 action steps"),
        ({"hidden_dims": (8, 8)}, "odd number of equal widths"),
        ({"sampling_steps": 30}, "30 sampling steps do not fit into 20"),
        ({"steps": 0}, "--steps is 0"),
        ({"valid_share": 1.0}, "--valid-share is 1.0"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"device": "abacus"}, "cannot compute on device 'abacus'"),
    ],
)
def test_settings_that_do_not_fit_are_explained(config, settings, message):
    with pytest.raises(DsrlError, match=message):
        pretrain(replace(config, **settings))
    assert not config.out.exists()


def test_it_is_played_at_the_end(config, monkeypatch):
    import dsrl.evaluate

    class Result:
        def describe(self):
            return "3 of 4"

    seen = {}

    def play(policy, **settings):
        seen.update(settings, policy=policy)
        return Result()

    monkeypatch.setattr(dsrl.evaluate, "evaluate_in_env", play)
    path = pretrain(replace(config, steps=2, eval_episodes=4))
    assert seen["episodes"] == 4 and seen["seed"] == config.eval_seed
    assert dict(describe(path))["provenance success"] == "3 of 4"


def test_a_missing_simulator_does_not_cost_the_policy(config, monkeypatch, capsys):
    import dsrl.evaluate

    def missing(*_, **__):
        raise DsrlError("needs the extra [robosuite]")

    monkeypatch.setattr(dsrl.evaluate, "evaluate_in_env", missing)
    assert pretrain(replace(config, steps=2, eval_episodes=4)).exists()
    assert "not played: needs the extra [robosuite]" in capsys.readouterr().out
