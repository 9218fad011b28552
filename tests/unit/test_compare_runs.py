"""Two policies on the same episodes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from dsrl import commands
from dsrl.compare_runs import task_differences
from dsrl.episodes import Episodes
from dsrl.errors import DsrlError
from dsrl.evaluate_config import EvaluateConfig
from dsrl.pretrained import save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.statistics import paired_difference
from dsrl.wrappers import resolve_env_spec


def test_two_checkpoints_play_the_same_episodes(tmp_path, capsys):
    paths = [save_policy(ToyPolicy(), tmp_path / name) for name in ("one.pt", "two.pt")]
    out = tmp_path / "both.json"
    commands.evaluate(EvaluateConfig(paths[1], compare=paths[0], episodes=12, json=out, device="cpu"))
    written = json.loads(out.read_text())
    kept = Episodes.load(tmp_path / "both_episodes.npz")
    # one policy under two names: nothing can differ
    assert written["paired"]["difference"] == 0 and written["paired"]["p"] == 1
    np.testing.assert_array_equal(kept.success[0], kept.success[1])
    assert [row["policy"] for row in written["rows"]] == list(kept.policies) == [str(path) for path in paths]
    assert "on the same 12 episodes" in " ".join(capsys.readouterr().out.split())


def test_the_difference_is_that_of_the_target_over_the_other(tmp_path):
    from dsrl.compare_runs import Contender, compare_runs

    policy = ToyPolicy()
    env = resolve_env_spec(policy.spec.env)
    contenders = [Contender(name, policy, "sha", scale, env) for name, scale in (("noisy", 1.0), ("still", 0.0))]
    found = compare_runs(*contenders, episodes=20, seed=1, n_envs=4, reward="auto", console=Console(quiet=True))
    assert found.gains["success"] == paired_difference(found.first.success, found.second.success)
    assert found.gains["return"].difference == pytest.approx(found.second.returns.mean() - found.first.returns.mean())
    assert found.verdict().startswith("still ") and "against noisy" in found.verdict()


def test_different_tasks_are_refused_and_named(tmp_path):
    from dsrl.compare_runs import Contender, compare_runs

    env = resolve_env_spec("dsrl/PointReach-v0")
    other = replace(env, max_episode_steps=16, options={"physics_timestep": 0.005})
    contenders = [Contender(name, SimpleNamespace(), "", 1.0, e) for name, e in (("runs/a", env), ("runs/b", other))]
    with pytest.raises(
        DsrlError, match=r"runs/a and runs/b are of different tasks.*max_episode_steps is 32 and 16.*physics"
    ):
        compare_runs(*contenders, episodes=1, seed=0, n_envs=1, reward="auto", console=Console(quiet=True))


def test_what_is_observed_makes_no_other_task():
    env = resolve_env_spec("dsrl/PointReach-v0")
    assert not task_differences(env, replace(env, obs_keys=("state",), kwargs={**env.kwargs}))
    assert not task_differences(replace(env, kwargs={"robots": ("Panda",)}), replace(env, kwargs={"robots": ["Panda"]}))


def test_flags_that_do_not_go_with_a_comparison():
    with pytest.raises(DsrlError, match="--compare plays two policies once"):
        EvaluateConfig("run", compare="other", repeats=8)
