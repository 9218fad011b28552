"""From recorded episodes to a guided policy that is scored, steered and exported, by the installed command."""

import json

import pytest

pytestmark = [pytest.mark.integration]

VALUES = ["--values.steps", 1000, "--values.hidden-dims", 64, 64, "--values.lr", 1e-3, "--values.tau", 0.03]


@pytest.fixture(scope="module")
def guided(dsrl, toy_dataset, toy_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extract")
    flags = ["--out", folder / "guided.pt", "--run-dir", folder / "run", "--steps", 800, "--device", "cpu"]
    done = dsrl("extract", "--base-policy", toy_checkpoint, "--dataset", toy_dataset, *flags, *VALUES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "labels/positive_rate 0.3" in done.stdout and "wrote" in done.stdout
    return folder / "guided.pt"


def test_guidance_beats_the_base_policy_without_a_further_env_step(dsrl, guided, tmp_path):
    flags = ["--episodes", 100, "--json", tmp_path / "curve.json", "--plot", tmp_path / "curve.png", "--device", "cpu"]
    done = dsrl("evaluate", guided, "--guidance-weight", "0,1,5", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recommended weight 1, chosen on the seeds from 20000000 on" in done.stdout
    curve = json.loads((tmp_path / "curve.json").read_text())
    base, one, five = (row["success_rate"] for row in curve["rows"])
    assert one > base + 0.15
    assert five < one - 0.15, "more is not better"
    assert (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("algo", ["sac", "na"])
def test_the_agent_may_choose_the_weight_too(dsrl, guided, algo, tmp_path):
    budget = ["--total-env-steps", 400, "--eval-episodes", 2, "--final-episodes", 4, "--final-repeats", 1]
    flags = ["--run-dir", tmp_path / "run", "--probe-episodes", 0, "--device", "cpu", "--algo", algo]
    small = ["--na.fit-updates", 20, "--na.fit-actor-updates", 5] if algo == "na" else []
    done = dsrl("finetune", "--base-policy", guided, "--steer-guidance", 3, *budget, *flags, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dsrl("export", tmp_path / "run", tmp_path / "steered.pt").returncode == 0
    done = dsrl("evaluate", tmp_path / "steered.pt", "--episodes", 2, "--device", "cpu")
    assert done.returncode == 0 and "steered" in done.stdout
    done = dsrl("inspect", tmp_path / "steered.pt")
    assert (done.returncode == 0 and "steered" in done.stdout) or "selecting" in done.stdout


def test_a_guided_policy_is_steered_in_turn(dsrl, guided, tmp_path):
    budget = ["--total-env-steps", 400, "--eval-episodes", 2, "--final-episodes", 4, "--final-repeats", 1]
    flags = ["--load.guidance-weight", 0.5, "--run-dir", tmp_path / "run", "--probe-episodes", 0, "--device", "cpu"]
    done = dsrl("finetune", "--base-policy", guided, "--algo", "sac", *budget, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dsrl("export", tmp_path / "run", tmp_path / "steered.pt").returncode == 0
    done = dsrl("evaluate", tmp_path / "steered.pt", "--episodes", 2, "--device", "cpu")
    assert done.returncode == 0 and "steered" in done.stdout


def test_a_wrong_flag_is_explained(dsrl, guided, toy_dataset):
    flags = ["--dataset", toy_dataset, "--out", guided.with_name("other.pt")]
    done = dsrl("extract", "--base-policy", guided, *flags)
    assert done.returncode == 2 and "holds a policy of kind 'anchored'" in done.stderr
    done = dsrl("extract", "--base-policy", guided, *flags, "--guidance-weight", -1)
    assert done.returncode == 2 and "--guidance-weight is -1" in done.stderr
