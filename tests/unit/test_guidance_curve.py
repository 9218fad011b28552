"""The curve of the guidance weight: on which episodes it is measured and chosen, and what stands beside success."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_anchored import stirred
from test_cfgrl import make_guided

from dsrl import commands
from dsrl.cli import main
from dsrl.config import LoadConfig
from dsrl.diffusion import FlowConfig, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.evaluate import Evaluation, evaluate, evaluation_envs
from dsrl.evaluate_config import EvaluateConfig
from dsrl.guidance_curve import Chunks, WeightCurve, WeightPoint, _Look, guidance_curve
from dsrl.policy import PolicySpec
from dsrl.pretrained import save_policy
from dsrl.run import RunFolder
from dsrl.statistics import wilson

SPEC = PolicySpec({"obs": (4,)}, 2, 4, 4, env=EnvSpec("gymnasium", "dsrl/PointReach-v0"))


@pytest.fixture
def policy():
    torch.manual_seed(0)
    config = FlowConfig({"type": "mlp", "hidden_dims": [16] * 3}, sampling_steps=2)
    return stirred(FlowPolicy(SPEC, config), weight=7.0)


def played(successes, episodes=20, seed=0, returns=0.0):
    success = np.arange(episodes) < successes
    return Evaluation("", False, success, success, np.full(episodes, returns), np.full(episodes, 8), seed)


def point(weight, reported, chosen, returns=0.0):
    return WeightPoint(weight, played(reported), played(chosen, seed=500, returns=returns), Chunks(0.1, 0.2, 0.3))


def test_the_weight_is_chosen_on_other_episodes_than_those_reported():
    curve = WeightCurve((point(0.0, 5, 5), point(1.0, 9, 15), point(2.0, 19, 12)))
    assert curve.recommended.weight == 1.0
    assert "recommended weight 1, chosen on the seeds from 500 on; on those reported 45% " in curve.verdict()
    assert "against 25% with 0: +20 points" in curve.verdict()


def test_a_tie_goes_to_the_better_return_and_then_to_the_smaller_weight():
    assert WeightCurve((point(0.0, 5, 0), point(1.0, 5, 0), point(3.0, 5, 0))).recommended.weight == 0.0
    assert WeightCurve((point(0.0, 5, 0), point(1.0, 5, 0, 2.0), point(3.0, 5, 0, 1.0))).recommended.weight == 1.0


def test_every_weight_plays_the_same_episodes(policy, tmp_path):
    settings = {"episodes": 3, "seed": 50, "choice_seed": 90}
    with evaluation_envs(policy, n_envs=2) as envs:
        curve = guidance_curve(policy, envs, (0.0, 1.0, 4.0), **settings)
        for weight, each in zip((0.0, 1.0, 4.0), curve.points, strict=True):
            alone = [evaluate(policy.at_weight(weight), envs, episodes=3, seed=seed) for seed in (50, 90)]
            assert [e.lengths.tolist() for e in alone] == [e.lengths.tolist() for e in (each.reported, each.choice)]
            assert [e.returns.tolist() for e in alone] == [e.returns.tolist() for e in (each.reported, each.choice)]
        with pytest.raises(DsrlError, match="--guidance-weight is -2"):
            guidance_curve(policy, envs, (0.0, -2.0), **settings)
    curve.save(tmp_path / "curve.json")
    data = json.loads((tmp_path / "curve.json").read_text())
    assert (data["seed"], data["choice_seed"]) == (50, 90) and len(data["rows"]) == 3
    low, high = wilson(int(curve.points[0].reported.success.sum()), 3)
    assert (data["rows"][0]["success_low"], data["rows"][0]["success_high"]) == (low, high)
    curve.draw(tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_stands_beside_success_is_counted_by_hand(policy):
    with evaluation_envs(policy, n_envs=1) as envs:
        look = _Look(policy, envs)
        chunk = torch.tensor([[[0.0, 0.5], [0.0, 0.5], [0.3, 0.5], [-1.0, 0.5]]])
        look(torch.zeros(1, 4), torch.zeros(1, 4, 2), chunk)
        found = look.chunks(seed=0)
        assert found.clipped == pytest.approx(1 / 8), "one number lies at the limit of the environment"
        # second differences of the first number: 0.3, -1.6; of the other one: none
        assert found.jerk == pytest.approx((0.3**2 + 1.6**2) / 4)
        assert found.spread > 0
        policy.base.action_normalizer.scale.fill_(0.5)  # the policy's own box now ends at 0.5
        look = _Look(policy, envs)
        look(torch.zeros(1, 4), torch.zeros(1, 4, 2), chunk)
        assert look.chunks(seed=0).clipped == pytest.approx(5 / 8)


def test_the_spread_is_that_over_noise(policy):
    """A residual that answers nothing, and a base that only moves the noise."""
    with evaluation_envs(policy, n_envs=1) as envs:
        spreads = []
        for scale in (0.5, 1.0):
            policy.base.action_normalizer.scale.fill_(scale)
            look = _Look(policy, envs)
            look(torch.zeros(5, 4), torch.zeros(5, 4, 2), torch.zeros(5, 4, 2))
            spreads.append(look.chunks(seed=3).spread)
    assert spreads[1] == pytest.approx(2 * spreads[0], rel=1e-4)


def test_a_chunk_of_two_has_no_jerk():
    row = replace(point(1.0, 3, 3), chunks=Chunks(0.0, 0.0, float("nan"))).row()
    assert row["jerk"] is None and json.dumps(row, allow_nan=False)


def test_the_command_prints_the_curve(policy, tmp_path, capsys):
    path = save_policy(policy, tmp_path / "guided.pt")
    flags = ["--guidance-weight", "2,0", "--episodes", "2", "--n-envs", "1", "--device", "cpu"]
    assert main(["evaluate", str(path), *flags, "--json", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    assert "recommended weight" in said and "jerk" in said
    assert [row["weight"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_weight": "0,much"}, "--guidance-weight is '0,much'; expected numbers separated by commas"),
        (
            {"guidance_weight": "0,1", "choice_seed": 10_000_050},
            "--choice-seed 10000050 are less than 100 episodes apart",
        ),
        ({"guidance_weight": "0,1", "repeats": 2}, "leave out --repeats"),
        ({"guidance_weight": "0,1", "load": LoadConfig(guidance_weight=1.0)}, "--load.guidance-weight"),
        ({"plot": "curve.png"}, "--plot draws success"),
    ],
)
def test_settings_that_contradict_each_other_are_explained(settings, message, tmp_path):
    with pytest.raises(DsrlError, match=message):
        EvaluateConfig(tmp_path / "guided.pt", **settings)


def test_what_is_not_guided_is_refused(tmp_path):
    plain = save_policy(make_guided().base, tmp_path / "plain.pt")
    config = EvaluateConfig(plain, guidance_weight="0,1", device="cpu")
    with pytest.raises(DsrlError, match=r"plain.pt is a policy of kind 'flow', which is not guided; `dsrl extract`"):
        commands.evaluate(config)
    folder = RunFolder.create(tmp_path / "run", {}, {})
    with pytest.raises(DsrlError, match="is a run folder, which is not guided"):
        commands.evaluate(replace(config, target=folder.path))
