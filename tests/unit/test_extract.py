"""Extraction: what is learned from labels, what is refused before anything is learned, what is left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from na_agents import agent, toy_envs

import dsrl.training
import dsrl.values
from dsrl.actor_file import read_critic
from dsrl.algorithms import steering_facts
from dsrl.config import FinetuneConfig
from dsrl.data import Trajectories, Trajectory, write_hdf5
from dsrl.diffusion import FlowConfig, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, LossNotFinite, OtherBasePolicy, RunFailed
from dsrl.extract import ExtractConfig, extract
from dsrl.policy import PolicySpec
from dsrl.pretrain import PretrainConfig, pretrain
from dsrl.pretrained import describe, load_policy, save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.run import RunFolder
from dsrl.unfinished import Unfinished
from dsrl.values import ValuesConfig

ENV = EnvSpec("gymnasium", "dsrl/PointReach-v0")
VALUES = ValuesConfig(hidden_dims=(32,), steps=250, batch_size=128, lr=5e-3, tau=0.1)


def record(path, seed=0, episodes=20, offset=0.0, rewarded=True, keys=("at",), action_dim=1, steps=20):
    """Steps that have nothing to do with each other: 0.5 to the left or to the right; good is where one stands."""
    rng = np.random.default_rng(seed)
    recorded = []
    for _ in range(episodes):
        obs = rng.uniform(-1, 1, (steps + 1, len(keys))).astype(np.float32)
        side = rng.choice([-1.0, 1.0], (steps, 1))
        actions = (0.5 * side + 0.1 * rng.standard_normal((steps, action_dim)) + offset).astype(np.float32)
        good = (side * obs[:-1, :1] > 0).ravel() & rewarded
        before, after = ({key: part[:, i : i + 1] for i, key in enumerate(keys)} for part in (obs[:-1], obs[1:]))
        recorded.append(Trajectory(before, after, actions, good.astype(np.float32), np.zeros(steps, bool)))
    write_hdf5(path, Trajectories(tuple(recorded), {key: (1,) for key in keys}, ENV))
    return path


def pretrained(dataset, out, **more):
    settings = {"hidden_dims": (32,) * 3, "horizon": 1, "n_action_steps": 1, "steps": 500, "batch_size": 64, "lr": 3e-3}
    settings |= {"sampling_steps": 5, "eval_episodes": 0, "device": "cpu"}
    return pretrain(PretrainConfig(dataset, out, **settings, **more))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return pretrained(record(folder / "data.hdf5"), folder / "base.pt", kind="flow")


@pytest.fixture
def config(base, tmp_path):
    return ExtractConfig(
        base_policy=base,
        dataset=base.with_name("data.hdf5"),
        out=tmp_path / "guided.pt",
        run_dir=tmp_path / "run",
        values=VALUES,
        gamma=0.1,
        rule="threshold",
        steps=300,
        batch_size=64,
        lr=3e-3,
        device="cpu",
    )


def share_of_good(policy, weight=None):
    generator = torch.Generator().manual_seed(1)
    obs = torch.rand(500, 1, 1, generator=generator) * 2 - 1
    noise = torch.randn(500, 1, 1, generator=generator)
    chunk = policy.sample(obs, noise) if weight is None else policy.sample(obs, noise, weight)
    return float((chunk.flatten() * obs.flatten() > 0).float().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mode", ["anchored", "fresh"])
def test_what_is_good_is_done_more_often(config, mode, seed):
    guided = load_policy(extract(replace(config, mode=mode, seed=seed)), device="cpu")
    base = load_policy(config.base_policy, device="cpu")
    before, one, two = share_of_good(base), share_of_good(guided), share_of_good(guided, 2.0)
    assert before < 0.6
    assert one > before + 0.25 and two > before + 0.3, (before, one, two)
    if mode == "anchored":
        obs, noise = torch.rand(9, 1, 1), torch.randn(9, 1, 1)
        assert torch.equal(guided.sample(obs, noise, 0.0), base.sample(obs, noise))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_baseline_does_what_is_good_more_often_too(config, seed, capsys):
    config = replace(config, mode="awr", seed=seed, awr_temperature=0.5, steps=600)
    better, base = (load_policy(each, device="cpu") for each in (extract(config), config.base_policy))
    assert better.kind == "flow" and better.label_dim == 0
    assert share_of_good(better) > share_of_good(base) + 0.25
    assert "try it with: dsrl evaluate" in capsys.readouterr().out.replace("\n", " ")
    rows = RunFolder.open(config.run_dir).read_metrics()
    share = next(row["labels/effective_share"] for row in rows if "labels/effective_share" in row)
    assert 0.05 < share < 0.9 and better.spec.provenance["labels/effective_share"] == pytest.approx(share, abs=1e-4)


def test_the_baseline_has_no_guidance(config):
    with pytest.raises(DsrlError, match="--mode awr trains a policy without guidance: leave out --guidance-weight"):
        extract(replace(config, mode="awr", guidance_weight=2.0))
    assert not config.run_dir.exists()


def test_soft_labels_count_by_how_good_they_are(config):
    soft = extract(replace(config, rule="soft", temperature=0.1))
    assert share_of_good(load_policy(soft, device="cpu")) > 0.75


def test_a_diffusion_policy_is_extracted_from_too(config, tmp_path):
    base = pretrained(config.dataset, tmp_path / "diffusion.pt", kind="diffusion")
    guided = load_policy(extract(replace(config, base_policy=base)), device="cpu")
    assert guided.base.kind == "diffusion"
    assert share_of_good(guided) > share_of_good(load_policy(base, device="cpu")) + 0.25


def test_what_is_left_behind(config):
    rows = dict(describe(extract(replace(config, guidance_weight=2.0, guidance_interval=(0.1, 0.9)))))
    assert rows["kind"] == "anchored" and rows["environment"] == ENV.id
    assert rows["guidance"] == "weight 2 of at most 3, noise levels 0.1 to 0.9, clipped in every step"
    assert rows["provenance data"].startswith("data.hdf5, 20 episodes")
    assert rows["provenance steps"] == "300" and "'rule': 'threshold'" in rows["provenance config"]
    base = load_policy(config.base_policy, device="cpu")
    assert base.spec.sha256 in rows["provenance base policy"]
    assert str(config.dataset.parent) not in str(rows), "where files lie is nobody's business"
    guided = load_policy(config.out, device="cpu")
    assert guided.guidance.weight == 2.0 and guided.guidance.interval == (0.1, 0.9)
    folder = RunFolder.open(config.run_dir)
    assert folder.read_base_policy()["sha256"] == base.spec.sha256 and list(folder.path.glob("tb/*"))
    logged = set().union(*folder.read_metrics())
    wanted = {"labels/positive_rate", "labels/flip_rate", "labels/auc", "data/distance"}
    assert wanted | {"train/critic_loss", "train/loss", "valid/loss"} <= logged
    assert "labels/auc_held_out" not in logged, "all were held out"


def test_with_one_fold_the_held_out_episodes_say_how_far_the_values_carry(config):
    extract(replace(config, folds=1))
    logged = set().union(*RunFolder.open(config.run_dir).read_metrics())
    assert {"labels/positive_rate", "labels/flip_rate", "labels/auc", "labels/auc_held_out"} <= logged


def test_the_same_seed_gives_the_same_policy(config, tmp_path):
    settings = replace(config, steps=20, values=replace(VALUES, steps=50), overwrite=True)
    hashes = [
        load_policy(extract(replace(settings, seed=seed, out=tmp_path / name)), device="cpu").spec.sha256
        for seed, name in ((0, "a.pt"), (0, "b.pt"), (1, "c.pt"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_any_policy_that_acts_can_be_learned_from_afresh(tmp_path):
    """The toy policy has no network to copy."""
    data = record(tmp_path / "toy.hdf5", keys=("a", "b", "c", "d"), action_dim=2)
    config = ExtractConfig(
        save_policy(ToyPolicy(), tmp_path / "toy.pt"), data, tmp_path / "new.pt", mode="fresh", run_dir=tmp_path / "run"
    )
    with pytest.raises(DsrlError, match="no observation 'obs'"):
        extract(config)
    data = record(tmp_path / "toy.hdf5", action_dim=2, keys=("obs",))
    with pytest.raises(DsrlError, match=r"'obs' has shape \[1\] in .*toy.hdf5, the policy reads \[4\]"):
        extract(config)


# -- labels without data ----------------------------------------------------------------------------------------------


@pytest.fixture
def steered(tmp_path):
    """A base policy, observations, and a run whose critic has an opinion, however it came to it."""
    torch.manual_seed(0)
    spec = PolicySpec({"obs": (4,)}, 2, 4, 4, env=ENV)
    policy = FlowPolicy(spec, FlowConfig({"type": "mlp", "hidden_dims": [32] * 3}, sampling_steps=4)).freeze()
    base = load_policy(save_policy(policy, tmp_path / "base.pt"), device="cpu")
    envs = toy_envs(policy=base)
    model = agent(envs=envs)
    model.steering = steering_facts(FinetuneConfig(algo="na"), model, 10.0, base)
    folder = RunFolder.create(tmp_path / "agent", {}, {"sha256": base.spec.sha256})
    model.save(folder.final)
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(20):
        obs = {"obs": rng.uniform(-1, 1, (12, 4)).astype(np.float32)}
        episodes.append(Trajectory(obs, obs, np.zeros((12, 2), np.float32), np.zeros(12), np.zeros(12, bool)))
    write_hdf5(tmp_path / "seen.hdf5", Trajectories(tuple(episodes), {"obs": (4,)}, ENV))
    return ExtractConfig(
        tmp_path / "base.pt",
        tmp_path / "seen.hdf5",
        tmp_path / "guided.pt",
        labels="critic",
        agent=folder.path,
        steps=400,
        batch_size=64,
        lr=3e-3,
        run_dir=tmp_path / "run",
        device="cpu",
    )


def test_a_critic_labels_samples_of_the_base_policy(steered):
    """The data have neither rewards nor actions worth anything; what counts is what the critic likes."""
    guided, base = load_policy(extract(steered), device="cpu"), load_policy(steered.base_policy, device="cpu")
    critic, low, high = read_critic(steered.agent / "final.zip", base)
    generator = torch.Generator().manual_seed(5)
    obs = torch.rand(400, 1, 4, generator=generator) * 2 - 1
    noise = torch.randn(400, 4, 2, generator=generator)
    cond = base.encode(obs)

    def liked(weight):
        return critic(cond, guided.decode(cond, noise, weight).clamp(low, high).flatten(1)).amin(0)

    nothing, one, two = (liked(weight) for weight in (0.0, 1.0, 2.0))
    spread = float(nothing.std())
    assert float((one - nothing).mean()) > 0.2 * spread
    assert float((two - nothing).mean()) > 0.4 * spread
    rows = RunFolder.open(steered.run_dir).read_metrics()
    assert next(row["labels/positive_rate"] for row in rows if "labels/positive_rate" in row) == pytest.approx(5 / 16)


def test_an_agent_of_another_policy_is_refused(steered, config):
    with pytest.raises(OtherBasePolicy):
        extract(replace(config, labels="critic", agent=steered.agent))


def test_an_agent_that_rates_noise_is_refused(steered):
    base = load_policy(steered.base_policy, device="cpu")
    model = agent(envs=toy_envs(policy=base))
    model.steering = {"algo": "sac", "bound": 1.5, "base_policy_sha256": base.spec.sha256}
    model.save(steered.agent / "final.zip")
    with pytest.raises(DsrlError, match=r"final.zip is an agent of --algo sac, whose critic rates noise"):
        extract(steered)
    with pytest.raises(DsrlError, match=r"there is no run folder .*nowhere"):
        extract(replace(steered, agent=steered.agent / "nowhere"))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_weight": -1.0}, "--guidance-weight is -1"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance interval"),
        ({"steps": 0}, "--steps is 0"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"gamma": 0.0}, "--gamma is 0.0"),
        ({"awr_temperature": 0.0}, "--awr-temperature is 0.0"),
        ({"valid_share": 1.0}, "--valid-share is 1.0"),
        ({"candidates": 1}, "--candidates is 1"),
        ({"share": 1.0, "rule": "quantile"}, r"--share is 1.0; it must lie in \(0, 1\)"),
        ({"labels": "critic"}, "--labels critic needs the run"),
        ({"threshold": 99.0}, r"labels/positive_rate is 0%: all \d+ labels are 0"),
        ({"device": "abacus"}, "cannot compute on device 'abacus'"),
    ],
)
def test_settings_that_do_not_fit_are_explained(config, settings, message, monkeypatch):
    monkeypatch.setattr(dsrl.training.Trainer, "update", lambda *_: pytest.fail("trained"))
    with pytest.raises(DsrlError, match=message):
        extract(replace(config, **settings))
    assert not list(config.out.parent.glob("guided*")), "neither a policy nor anything to go on with"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rewarded": False}, r"data.hdf5 has no rewards: all 400 of them are 0 .*--labels critic"),
        ({"action_dim": 2}, r"data.hdf5 have actions of 2 numbers, the policy plays 1"),
        ({"keys": ("here", "there")}, r"data.hdf5 have no observation 'at'"),
    ],
)
def test_data_that_do_not_fit_are_explained(config, data, message, tmp_path):
    path = record(tmp_path / "data.hdf5", **data)
    with pytest.raises(DsrlError, match=message):
        extract(replace(config, dataset=path))
    assert not config.out.exists()


def test_a_policy_without_a_network_of_ours_is_explained(config, tmp_path):
    toy = save_policy(ToyPolicy(), tmp_path / "toy.pt")
    data = tmp_path / "four.hdf5"
    obs = {"obs": np.zeros((4, 4), np.float32)}
    episode = Trajectory(obs, obs, np.zeros((4, 2), np.float32), np.ones(4), np.zeros(4, bool))
    write_hdf5(data, Trajectories((episode,) * 2, {"obs": (4,)}, ENV))
    with pytest.raises(DsrlError, match=r"toy.pt holds a policy of kind 'toy', .* --mode fresh"):
        extract(replace(config, base_policy=toy, dataset=data))


def test_what_the_base_policy_could_not_have_done_is_named(config, tmp_path, capsys):
    short = replace(config, steps=2, values=replace(VALUES, steps=100))
    extract(short)
    assert "warning: data" not in capsys.readouterr().out
    elsewhere = record(tmp_path / "elsewhere.hdf5", offset=3.0)
    extract(replace(short, dataset=elsewhere, out=tmp_path / "b.pt", run_dir=tmp_path / "b"))
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: data/foreign_share is 100% and data/distance" in said


def test_an_existing_checkpoint_is_kept(config):
    config.out.write_text("mine")
    with pytest.raises(DsrlError, match="--overwrite"):
        extract(config)
    assert config.out.read_text() == "mine" and not config.run_dir.exists()


def test_losses_that_explode_are_reported(config, tmp_path):
    with pytest.raises(LossNotFinite, match=r"smaller --values\.lr"):
        extract(replace(config, values=replace(VALUES, lr=1e30)))
    with pytest.raises(RunFailed, match="smaller --lr"):
        extract(replace(config, lr=1e30, steps=30, run_dir=tmp_path / "b", values=replace(VALUES, steps=100)))
    assert not config.out.exists()


def test_ctrl_c_keeps_what_was_learned(config, monkeypatch, capsys):
    update = dsrl.training.Trainer.update

    def interrupted(trainer, *batch):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return update(trainer, *batch)

    monkeypatch.setattr(dsrl.training.Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(replace(config, values=replace(VALUES, steps=100)))
    partial = config.out.with_name("guided.pt.partial")
    assert dict(describe(partial))["provenance steps"] == "7" and load_policy(partial, device="cpu").kind == "anchored"
    assert not config.out.exists()
    assert "interrupted after 7 steps" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_in_the_values_says_that_the_command_goes_on(config, monkeypatch, capsys):
    def interrupted(*batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(dsrl.values.ImplicitQ, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("interrupted before the policy was trained; the same command goes on from there")


def rows(run):
    return [sorted(row.items()) for row in RunFolder(run).read_metrics()]


@pytest.mark.parametrize(
    ("mode", "loop", "step"),
    [("anchored", "values", 120), ("anchored", "values", 370), ("anchored", "policy", 210), ("goal", "policy", 210)],
)
def test_the_same_call_goes_on_to_the_same_policy(config, monkeypatch, tmp_path, mode, loop, step):
    config = replace(config, mode=mode, reached_key="at")
    unbroken = replace(config, out=tmp_path / "unbroken.pt", run_dir=tmp_path / "unbroken")
    expected = load_policy(extract(unbroken), device="cpu").spec.sha256
    kind, count = {"values": (dsrl.values.ImplicitQ, []), "policy": (dsrl.training.Trainer, [])}[loop]
    update = kind.update

    def killed(*args):
        count.append(1)
        if len(count) == step:
            raise ZeroDivisionError
        return update(*args)

    monkeypatch.setitem(Unfinished.__init__.__kwdefaults__, "interval", 0.0)
    monkeypatch.setattr(kind, "update", killed)
    with pytest.raises(ZeroDivisionError):
        extract(config)
    assert load_policy(extract(config), device="cpu").spec.sha256 == expected
    total = {"values": config.folds * VALUES.steps, "policy": config.steps}[loop]
    assert len(count) == total + 1, "each step once, and the one that was killed"
    assert rows(config.run_dir) == rows(unbroken.run_dir)
    assert not list(tmp_path.glob("*.unfinished"))
