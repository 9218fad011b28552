"""Every example runs, says one sentence at the end, and writes only where it was told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import quiet

from dsrl.pretrained import DEFAULT_CHECKPOINT

pytestmark = [pytest.mark.integration]

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *args, cwd):
    """Run an example in an empty folder; returns the last sentence that it printed."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, timeout=300, check=False, **quiet())
    assert done.returncode == 0, done.stdout + done.stderr
    assert [entry.name for entry in cwd.iterdir()] == ["runs"]
    return done.stdout.strip().splitlines()[-1]


def success_rates(sentence):
    return [int(number) for number in re.findall(r"(\d+)%", sentence)]


def test_01_finetune(toy_checkpoint, tmp_path):
    budget = ["--total-env-steps", 800, "--eval-episodes", 5]
    sentence = run("01_finetune.py", "--base-policy", toy_checkpoint, *budget, cwd=tmp_path)
    assert sentence.startswith("Steering changed the success rate by")
    assert list(tmp_path.glob("runs/**/final.zip"))


@pytest.mark.robosuite
@pytest.mark.skipif(not DEFAULT_CHECKPOINT.exists(), reason="the checkpoint that ships is not there yet")
def test_01_finetune_steers_the_policy_that_ships(tmp_path):
    pytest.importorskip("robosuite")
    sentence = run("01_finetune.py", "--total-env-steps", 400, "--eval-episodes", 2, cwd=tmp_path)
    assert sentence.startswith("Steering changed the success rate by")


def test_02_custom_loop(tmp_path):
    before, after = success_rates(run("02_custom_loop.py", "--generations", 12, "--test-episodes", 80, cwd=tmp_path))
    assert after >= before + 20


def test_03_own_policy(tmp_path):
    before, after = success_rates(run("03_own_policy.py", "--decisions", 1500, "--test-episodes", 60, cwd=tmp_path))
    assert after >= before + 20


@pytest.mark.parametrize("checkpoint", ["toy", pytest.param("robosuite", marks=pytest.mark.robosuite)])
def test_04_remote_policy_server(checkpoint, toy_checkpoint, tmp_path):
    pytest.importorskip("msgpack")
    if checkpoint == "robosuite":
        pytest.importorskip("robosuite")
    path = toy_checkpoint if checkpoint == "toy" else DEFAULT_CHECKPOINT
    sentence = run("04_remote_policy_server.py", "--base-policy", path, "--decisions", 40, cwd=tmp_path)
    assert re.match(r"Over the wire chunks differ by 0\.0e\+00; steered 40 of them", sentence)


def test_05_extract(tmp_path):
    before, after = success_rates(run("05_extract.py", cwd=tmp_path))
    assert after >= before + 15


def test_06_synthesize(tmp_path):
    """What is drawn is likelier under the policy the stronger the guidance, and nearly as right about the dynamics."""
    said = run("06_synthesize.py", "--episodes", 80, "--steps", 600, "--weights", 0, 3, "--windows", 128, cwd=tmp_path)
    plain, error, guided, guided_error = map(float, re.findall(r"(?:log-probability|error) (-?[\d.]+\d)", said))
    assert guided > plain + 5 and guided_error < 2 * error


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_fits_on_a_page(path):
    assert len(path.read_text().splitlines()) <= 80
