"""A run folder is whole, typed, and never loses what was written."""

import errno
import json
import os
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from dsrl import files
from dsrl.errors import DsrlError, RunFailed
from dsrl.files import append_text, replacing, write_text
from dsrl.plots import learning_curve, learning_curves
from dsrl.run import EVALUATION_COLUMNS, RunFolder
from dsrl.sb3_logging import MetricsWriter

BASE = {"path": "base.pt", "sha256": "0" * 64}


def evaluation(env_steps=0, policy="base", deterministic=False, rate=0.5) -> dict:
    return {
        "env_steps": env_steps,
        "policy": policy,
        "deterministic": deterministic,
        "episodes": 50,
        "success_rate": rate,
        "success_low": max(0.0, rate - 0.1),
        "success_high": min(1.0, rate + 0.1),
        "mean_return": -12.5,
        "mean_length": 30.25,
        "held_rate": 0.8,
        "mean_jerk": 0.0125,
        "eval_env_steps": 3025,
        "wall_seconds": 1.5,
        "cpu_seconds": 1.25,
    }


@pytest.fixture
def full_disk(monkeypatch):
    """Every file that is opened for writing through pathlib takes half of what it is given, then the disk is full."""
    from pathlib import Path

    genuine = Path.open

    def opened(self, mode="r", *args, **kwargs):
        file = genuine(self, mode, *args, **kwargs)
        if mode.startswith("r"):
            return file
        write = file.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, text):
                write(text[: len(text) // 2])
                file.flush()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(Path, "open", opened)


def test_a_new_run_can_be_opened_again(tmp_path):
    config = {"seed": 3, "hidden_dims": [128, 128], "env": None, "sac": {"tau": 0.005}}
    RunFolder.create(tmp_path / "a" / "run", config, BASE)
    run = RunFolder.open(str(tmp_path / "a" / "run"))
    assert run.read_config() == config
    assert list(run.read_config()) == list(config)
    assert run.read_base_policy() == BASE
    assert run.checkpoints.is_dir()
    assert run.read_evaluations() == [] and run.read_metrics() == []
    assert run.evaluations_path.read_text() == ",".join(EVALUATION_COLUMNS) + "\n"
    assert not list(run.path.glob(".*"))  # no temporary file stays


def test_the_machine_is_written_down(run_folder):
    environment = json.loads(run_folder.environment_path.read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["packages"]["dsrl"] and environment["cpu"]
    assert environment["torch_threads"] == 1
    assert environment["git"] is None or len(environment["git"]["sha"]) == 40


def test_evaluations_come_back_as_they_went_in(run_folder):
    rows = [evaluation(), evaluation(2500, "steered", True, 0.75), evaluation(2500, "steered", False, 0.7)]
    for row in rows:
        run_folder.append_evaluation(row)
    assert run_folder.read_evaluations() == rows


def test_numpy_numbers_are_numbers(run_folder):
    row = evaluation() | {"env_steps": np.int64(4), "deterministic": np.bool_(False), "success_rate": np.float32(0.5)}
    run_folder.append_evaluation(row)
    assert run_folder.read_evaluations() == [evaluation(4)]


def test_an_evaluation_with_other_columns_is_refused(run_folder):
    row = evaluation()
    del row["mean_length"]
    with pytest.raises(ValueError, match=r"lacks \['mean_length'\] and has unknown \['speed'\]"):
        run_folder.append_evaluation(row | {"speed": 1.0})


def test_metrics_grow_new_columns(run_folder):
    run_folder.append_metrics({"step": 1, "a": 0.5})
    run_folder.append_metrics({"b,c": 2.0, "step": 2})
    run_folder.append_metrics({"step": 3, "a": np.float32(0.25)})
    assert run_folder.metrics_path.read_text() == 'step,a,"b,c"\n1.0,0.5,\n2.0,,2.0\n3.0,0.25,\n'
    assert run_folder.read_metrics() == [{"step": 1.0, "a": 0.5}, {"step": 2.0, "b,c": 2.0}, {"step": 3.0, "a": 0.25}]


def test_a_line_cut_off_by_a_crash_is_left_out(run_folder):
    run_folder.append_evaluation(evaluation())
    with run_folder.evaluations_path.open("a") as file:
        file.write("2500,steered,Tr")
    assert run_folder.read_evaluations() == [evaluation()]


def test_a_row_after_a_crash_does_not_grow_on_the_torn_line(run_folder):
    run_folder.append_metrics({"step": 1.0})
    with run_folder.metrics_path.open("a") as file:
        file.write("2.")
    run_folder.append_metrics({"step": 3.0})
    assert run_folder.read_metrics() == [{"step": 1.0}, {"step": 3.0}]


def test_a_folder_that_is_not_empty_is_refused(run_folder):
    with pytest.raises(DsrlError, match="not empty"):
        RunFolder.create(run_folder.path, {}, BASE)


def test_an_empty_folder_will_do(tmp_path):
    RunFolder.create(tmp_path, {}, BASE)


def test_force_begins_a_run_anew_and_keeps_foreign_files(run_folder):
    run_folder.append_evaluation(evaluation())
    run_folder.append_metrics({"a": 1.0})
    for path in (
        run_folder.best,
        run_folder.final,
        run_folder.checkpoints / "latest.zip",
        run_folder.path / "notes.md",
    ):
        path.write_text("mine")
    run = RunFolder.create(run_folder.path, {"seed": 1}, BASE, force=True)
    assert run.read_config() == {"seed": 1}
    assert run.read_evaluations() == [] and run.read_metrics() == []
    assert not run.best.exists() and not run.final.exists() and not list(run.checkpoints.iterdir())
    assert (run.path / "notes.md").read_text() == "mine"


def test_force_never_touches_what_is_not_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DsrlError, match="not a run"):
        RunFolder.create(tmp_path, {}, BASE, force=True)
    assert (tmp_path / "checkpoints").is_dir()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DsrlError, match="is a file"):
        RunFolder.create(tmp_path / "run", {}, BASE)
    with pytest.raises(RunFailed, match="could not be written"):
        RunFolder.create(tmp_path / "run" / "below", {}, BASE)


def test_opening_names_what_is_missing(run_folder, tmp_path):
    with pytest.raises(DsrlError, match="there is no run folder"):
        RunFolder.open(tmp_path / "nowhere")
    run_folder.base_policy_path.unlink()
    run_folder.evaluations_path.unlink()
    with pytest.raises(DsrlError, match=r"lacks base_policy\.json, evaluations\.csv"):
        RunFolder.open(run_folder.path)


def test_broken_yaml_is_a_message(run_folder):
    run_folder.config_path.write_text("a: [1")
    with pytest.raises(DsrlError, match="not valid YAML"):
        run_folder.read_config()


def test_a_full_disk_says_so_and_loses_nothing(run_folder, full_disk):
    before = run_folder.evaluations_path.read_bytes()
    with pytest.raises(RunFailed, match=r"the disk is full: .*evaluations\.csv .* intact"):
        run_folder.append_evaluation(evaluation())
    assert run_folder.evaluations_path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file_in_place(tmp_path, request):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    request.getfixturevalue("full_disk")
    with pytest.raises(RunFailed, match=r"the disk is full: .*a\.txt"):
        write_text(path, "new and longer")
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_bytes() == b"old"


def test_a_full_disk_at_creation_is_a_message(tmp_path, full_disk):
    with pytest.raises(RunFailed, match=r"the disk is full: .*config\.yaml"):
        RunFolder.create(tmp_path / "run", {}, BASE)


def test_another_failure_is_named(tmp_path):
    with pytest.raises(RunFailed, match="No such file or directory"):
        append_text(tmp_path / "nowhere" / "a.csv", "1\n")


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.zip"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        assert temporary.suffix == ".zip"  # stable-baselines3 and matplotlib look at it
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.zip"]


def test_what_an_agent_logs_lands_in_the_metrics(run_folder):
    logger = Logger(str(run_folder.path), [MetricsWriter(run_folder)])
    logger.record("train/loss", torch.tensor(0.5))
    logger.record("train/word", "fast")
    logger.record("train/vector", np.ones(3))
    logger.record("train/hidden", 1.0, exclude="csv")
    logger.dump(step=128)
    logger.record("rollout/success", np.float64(1.0))
    logger.dump(step=256)
    logger.close()
    assert run_folder.read_metrics() == [{"step": 128.0, "train/loss": 0.5}, {"step": 256.0, "rollout/success": 1.0}]


def test_learning_curves_are_pictures(run_folder):
    rows = [evaluation()] + [
        evaluation(steps, "steered", deterministic, rate)
        for steps, rate in ((2500, 0.6), (5000, 1.0))
        for deterministic in (True, False)
    ]
    learning_curve(rows, run_folder.learning_curve, "one")
    learning_curves({"SAC": [rows, rows[:3]], "none yet": [[]]}, run_folder.path / "many.png", "many")
    learning_curve([], run_folder.path / "empty.png", "nothing was evaluated")
    for name in ("learning_curve.png", "many.png", "empty.png"):
        assert (run_folder.path / name).read_bytes().startswith(b"\x89PNG")


def test_reading_a_run_needs_no_torch():
    code = (
        "import sys, dsrl.run, dsrl.plots; assert not {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_may_be_any_mapping(run_folder):
    run_folder.append_metrics(OrderedDict(a=1.0))
    assert files.read_rows(run_folder.metrics_path) == [{"a": "1.0"}]
