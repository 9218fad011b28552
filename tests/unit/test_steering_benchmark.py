"""The benchmark of steering: what a seed that never arrives does to medians, and that results outlive their runs."""

import json
import sys
from math import inf
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield pytest.importorskip("steering_table")
    sys.modules.pop("steering_table", None)


@pytest.fixture
def steering(table):
    import steering

    yield steering
    for name in ("steering", "steering_results", "tasks"):
        sys.modules.pop(name, None)


def curve(*rates, base=0.4):
    rows = [{"policy": "base", "env_steps": "0", "success_rate": str(base), "cpu_seconds": "0"}]
    steered = enumerate(rates, 1)
    return rows + [
        {"policy": "steered", "env_steps": str(1000 * i), "success_rate": str(rate), "cpu_seconds": str(10 * i)}
        for i, rate in steered
    ]


def test_the_first_evaluation_at_the_level_counts(table):
    assert table.reached(curve(0.5, 0.9, 0.7, 1.0), 0.9, "env_steps") == (2000, 2000)
    assert table.reached(curve(0.5, 0.6), 0.9, "cpu_seconds") == (20, inf)
    assert table.reached([{**row, "cpu_seconds": ""} for row in curve(1.0)], 0.9, "cpu_seconds") is None


def test_seeds_that_never_arrive_make_bounds(table):
    assert table.median_interval([(2, 2), (8, inf), (3, 3)]) == (3, 3)
    assert table.median_interval([(2, 2), (8, inf), (8, inf)]) == (8, inf)
    assert table.ratio((2, 2), (8, inf)) == (0, 0.25)
    assert table.ratio((8, inf), (2, 2)) == (4, inf)
    assert table.median_interval([(0, 0.25), (0.5, 0.5), (4, inf)]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [((0.5, 0.5), "0.50"), ((4, inf), "> 4.00"), ((0, 0.25), "< 0.25"), ((1, 2), "1.00 to 2.00"), ((0, inf), "?")],
)
def test_bounds_are_shown_as_such(table, value, text):
    assert table.show(value, 2) == text


def test_a_seed_is_reduced_against_its_own_base_policy(table):
    seed = table.reduce_seed(curve(0.3, 0.95), [{"policy": "steered", "success_rate": "0.97"}], 0.9)
    assert (seed.steps, seed.cpu, seed.first, seed.final) == ((2000, 2000), (20, 20), 0.3, 0.97)
    assert seed.dip == pytest.approx(-0.1)


def test_base_and_controls_are_those_of_the_same_episodes(table):
    row = {"task": "can", "method": "na", "seed": "0", "policy": "base, N(0, I)", "success_rate": "0.4"}
    zero = {**row, "policy": "zero noise", "success_rate": "0.3"}
    others = [{**row, "seed": "1", "success_rate": "0.5"}, {**row, "method": "sac", "success_rate": "0.2"}]
    text = table._base_table({"can": {}}, [row, zero, *others])
    assert text.splitlines()[-1] == "| can | 40% | 30% | – | – | 45% (40% to 50%) | 90% |"


def test_seed_0_of_everything_comes_first(steering):
    keys = steering.planned(["lift", "can"], ["na", "sac"], [0, 1])
    assert [key[2] for key in keys] == [0] * 4 + [1] * 4
    assert "ppo" not in {method for task, method, _ in steering.planned(steering.PLANS, None, None) if task != "lift"}


SHA256 = "12e4" * 16


def write_run(folder, rate, controls=(), sha256=SHA256):
    folder.mkdir(parents=True, exist_ok=True)
    header = "env_steps,policy,deterministic,episodes,success_rate,success_low,success_high,mean_length,wall_seconds\n"
    rows = f"0,base,False,50,0.4,0.3,0.5,30,0.0\n1000,steered,True,50,{rate},0.8,1.0,30,5.0\n"
    (folder / "evaluations.csv").write_text(header + rows)
    (folder / "base_policy.json").write_text(json.dumps({"sha256": sha256}))
    (folder / "environment.json").write_text(json.dumps({"git": None}))
    row = {"episodes": 100, "success_rate": rate, "success_low": 0.8, "success_high": 1.0, "held_rate": 1.0}
    rows = [{**row, "policy": policy, "mean_length": 30.0} for policy in ("base, N(0, I)", *controls, "steered")]
    (folder / "comparison.json").write_text(json.dumps({"rows": rows}))


def test_our_own_method_runs_with_its_defaults(steering, tmp_path):
    assert steering.method_flags("na", "lift", tmp_path) == ["--algo", "na"]
    assert steering.method_flags("sac", "lift", tmp_path) != ["--algo", "sac"]


def test_what_needs_no_learning_is_measured_once(steering, tmp_path, monkeypatch):
    monkeypatch.setattr(steering, "base_policy", lambda *_: "policy.pt")
    controls = ("zero noise", "half the noise", "best of 8 noises, in hindsight")
    results = steering.Results(tmp_path / "runs", tmp_path / "results")
    write_run(tmp_path / "runs" / "can" / "na" / "seed0", 0.7, controls)
    results.collect()
    assert results.controls({"can": SHA256}) == {"can"}
    assert results.controls({"can": "0" * 64}) == set(), "another base policy"
    write_run(tmp_path / "runs" / "can" / "na" / "seed0", 0.9)
    results.collect()
    assert results.controls({"can": SHA256}) == {"can"}
    rates = {row["policy"]: row["success_rate"] for row in results.read()[1]}
    assert rates == {"base, N(0, I)": "0.9", "steered": "0.9", **dict.fromkeys(controls, "0.7")}
    flags = [steering.run_flags(("can", "sac", 0), tmp_path, tmp_path, controls) for controls in (True, False)]
    assert [("8" in each, "--final-controls" in each) for each in flags] == [(True, True), (False, False)]


def test_a_run_goes_on_where_it_is_on_the_same_base_policy(steering, tmp_path, monkeypatch):
    monkeypatch.setattr(steering, "base_policy", lambda *_: "policy.pt")
    results, key = steering.Results(tmp_path, tmp_path / "results"), ("can", "na", 0)
    for sha256, starts in ((None, True), ("a" * 64, True), (SHA256, False)):
        if sha256:
            write_run(results.run_dir(key), 0.9, sha256=sha256)
        begun = results.begun(key, {"can": SHA256})
        flags = steering.run_flags(key, results.run_dir(key), tmp_path, controls=False, begun=begun)
        assert ("--overwrite" in flags, "--resume" in flags) == (starts, not starts)
        assert flags[flags.index("--total-env-steps") + 1] == str(steering.budget_of(key).env_steps)
    assert results.finished(key) == 1000 < steering.budget_of(key).env_steps
    (results.run_dir(key) / "comparison.json").unlink()
    assert results.finished(key) == 0


def test_results_outlive_their_run_folders(steering, tmp_path):
    out = tmp_path / "results"
    write_run(tmp_path / "one" / "can" / "na" / "seed0", 0.95)
    steering.Results(tmp_path / "one", out).collect()
    write_run(tmp_path / "two" / "can" / "sac" / "seed1", 0.85)
    results = steering.Results(tmp_path / "two", out)
    results.collect()
    before = (results.curves_path.read_bytes(), results.final_path.read_bytes())
    results.collect()
    assert (results.curves_path.read_bytes(), results.final_path.read_bytes()) == before
    assert results.held({"can": SHA256}) == {("can", "na", 0): 1000, ("can", "sac", 1): 1000}
    assert results.held({"can": "a" * 64}) == results.held({"lift": SHA256}) == {}
    curves, final = results.read()
    assert [row["success_rate"] for row in curves] == ["0.4", "0.95", "0.4", "0.85"]
    assert {row["base_sha256"] for row in final} == {"12e412e412e4"}
    results.report()
    assert "| can | na | 1,000 (1,000) |" in (out / "steering.md").read_text()
    assert (out / "steering.png").stat().st_size > 0


def test_runs_on_another_base_policy_are_dropped_of_the_same_task_alone(steering, tmp_path):
    out = tmp_path / "results"
    for task in ("can", "lift"):
        write_run(tmp_path / "one" / task / "reference" / "seed0", 0.95, ("zero noise",))
    steering.Results(tmp_path / "one", out).collect()
    write_run(tmp_path / "two" / "can" / "na" / "seed0", 0.85, sha256="a" * 64)
    results = steering.Results(tmp_path / "two", out)
    results.collect()
    assert results.held({"can": "a" * 64, "lift": SHA256}) == {("can", "na", 0): 1000, ("lift", "reference", 0): 1000}
    for rows in results.read():
        assert {(row["task"], row["method"]) for row in rows} == {("can", "na"), ("lift", "reference")}
