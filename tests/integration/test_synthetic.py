"""From a data set and a policy to synthetic data, to critics that learn from them, by the installed command."""

import json

import pytest

from dsrl.data import read_hdf5
from dsrl.run import RunFolder

pytestmark = [pytest.mark.integration]

SMALL = [
    "--preset",
    "tiny",
    "--steps",
    150,
    "--windows",
    64,
    "--window",
    8,
    "--edm.sampling-steps",
    8,
    "--device",
    "cpu",
]


def test_synthetic_data_warm_start_an_agent_which_makes_them_anew(dsrl, toy_dataset, toy_checkpoint, tmp_path):
    made, run = tmp_path / "made.hdf5", tmp_path / "run"
    done = dsrl("synthesize", "--dataset", toy_dataset, "--policy", toy_checkpoint, "--out", made, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(made.with_suffix(".json").read_text())
    assert report["dynamics judged by"] == "the simulator" and report["windows"] == 64

    budget = ["--total-env-steps", 800, "--eval-episodes", 2, "--final-episodes", 4, "--final-repeats", 1]
    flags = ["--warm-start", made, "--synthesize-every", 200, "--probe-episodes", 0, "--device", "cpu"]
    done = dsrl("finetune", "--base-policy", toy_checkpoint, "--run-dir", run, *budget, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "synthetic decisions for the critics, 25% of a batch" in done.stdout
    times = [row["synthetic/times"] for row in RunFolder.open(run).read_metrics() if "synthetic/times" in row]
    assert times and times[-1] >= 1

    # a run folder is a target as well, and the model need not be trained again
    again = tmp_path / "again.hdf5"
    flags = ["--model", made.with_suffix(".model"), "--windows", 16, "--device", "cpu"]
    done = dsrl("synthesize", "--dataset", toy_dataset, "--policy", run, "--out", again, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_hdf5(again)) == 16
    # what was made is a data set like any other
    flags = ["--steps", 5, "--hidden-dims", 16, 16, 16, "--eval-episodes", 0, "--out", tmp_path / "clone.pt"]
    assert dsrl("pretrain", "--dataset", made, *flags).returncode == 0
    done = dsrl("synthesize", "--dataset", toy_dataset, "--policy", toy_checkpoint, "--out", made)
    assert done.returncode == 2 and "exists; choose another name" in done.stderr
