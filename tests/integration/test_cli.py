"""Bad input gives one clear message, and whatever was learned survives an interruption."""

import csv
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import h5py
import pytest
import torch
from conftest import dsrl_command, quiet
from traps import Evil

from dsrl.pretrained import load_policy

pytestmark = [pytest.mark.integration]

LEARN = ["--warmup-episodes", 8, "--warmup-successes", 0]
LEARN += ["--eval-interval", 200, "--eval-episodes", 4, "--final-episodes", 4]
LEARN += ["--final-repeats", 1, "--probe-episodes", 0, "--hidden-dims", 32, 32, "--device", "cpu"]
LEARN += ["--na.updates-per-env-step", 0.25, "--na.fit-updates", 20, "--na.fit-actor-updates", 20]


def refused(done, *words, code=2):
    """One message on stderr, nothing else there, and the exit code of bad input."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    message = done.stderr.strip()
    assert message.startswith("dsrl: ") and len(message.splitlines()) == 1, message
    for word in words:
        assert word in message, message


def test_a_missing_checkpoint_names_its_neighbour(dsrl, toy_checkpoint):
    done = dsrl("finetune", "--base-policy", toy_checkpoint.with_name("tyo.pt"))
    refused(done, "no checkpoint at", "Did you mean 'toy.pt'?", "dsrl pretrain")


@pytest.mark.parametrize("verb", ["inspect", "probe", "evaluate"])
def test_every_verb_that_reads_a_checkpoint_says_so(dsrl, tmp_path, verb):
    refused(dsrl(verb, tmp_path / "nowhere.pt"), "no checkpoint at")


def test_inspect_prints_the_whole_hash_in_a_narrow_terminal(dsrl, toy_checkpoint):
    done = dsrl("inspect", toy_checkpoint, env={**quiet()["env"], "COLUMNS": "60"})
    digest = load_policy(toy_checkpoint, device="cpu").spec.sha256
    assert digest in "".join(character for character in done.stdout if character.isalnum())


def test_a_truncated_checkpoint_is_refused(dsrl, toy_checkpoint, tmp_path):
    content = toy_checkpoint.read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    refused(dsrl("finetune", "--base-policy", tmp_path / "half.pt"), "half.pt is truncated or no torch file")


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_runs_nothing(dsrl, tmp_path, container):
    trap, path = tmp_path / "created", tmp_path / "evil.pt"
    if container == "torch":
        torch.save({"format": "dsrl", "weights": Evil(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(trap)))
    refused(dsrl("finetune", "--base-policy", path), "wants to run", "system", "nothing was executed")
    assert not trap.exists()


def test_weights_with_nan_are_refused(dsrl, toy_checkpoint, tmp_path):
    checkpoint = torch.load(toy_checkpoint, weights_only=True)
    name = next(name for name in checkpoint["weights"] if name.startswith("denoiser."))
    checkpoint["weights"][name].view(-1)[0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.pt")
    refused(dsrl("finetune", "--base-policy", tmp_path / "nan.pt"), f"the tensor '{name}' holds NaN")


@pytest.mark.parametrize("verb", ["finetune", "probe", "evaluate"])
def test_a_checkpoint_that_does_not_fit_the_environment_is_refused(dsrl, toy_checkpoint, tmp_path, verb):
    target = (
        ["--base-policy", toy_checkpoint, "--run-dir", tmp_path / "run"] if verb == "finetune" else [toy_checkpoint]
    )
    done = dsrl(verb, *target, "--env", "Pendulum-v1")
    refused(done, "does not fit", "Pendulum-v1 gives [3]", "[4]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "near"),
    [("dsrl/PointRech-v0", "dsrl/PointReach-v0"), ("robosuite/Lyft", "Lift"), ("Pendulumm-v1", "Pendulum-v1")],
)
def test_an_unknown_environment_names_the_nearest(dsrl, toy_checkpoint, asked, near):
    done = dsrl("finetune", "--base-policy", toy_checkpoint, "--env", asked)
    refused(done, asked.partition("/")[2], f"Did you mean '{near}'?")


@pytest.mark.parametrize("flag", [["--bse-policy", "x"], ["--total-env-steps", "many"], ["--algo", "dqn"]])
def test_an_unknown_flag_or_value_is_refused(dsrl, flag):
    done = dsrl("finetune", *flag)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert "--help" in done.stderr
    if flag[0] == "--bse-policy":
        assert "--base-policy" in done.stderr


def test_an_unknown_command_names_the_nearest(dsrl):
    refused(dsrl("finetun"), "there is no command 'finetun'. Did you mean 'finetune'?")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bound", 0], "--bound is 0.0; it must be positive"),
        (["--bound", "nan"], "--bound is nan; it must be positive"),
        (["--gamma", 1.5], "--gamma is 1.5"),
        (["--warmup-episodes", 0], "--warmup-episodes is 0"),
        (["--na.targets", "td", "--na.pool-size", 0], "--na.backup max needs a pool"),
        (["--preset", "refrence"], "Did you mean 'reference'?"),
        (["--n-envs", 0], "--n-envs is 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(dsrl, toy_checkpoint, flags, message):
    refused(dsrl("finetune", "--base-policy", toy_checkpoint, *flags), message)


def test_probe_refuses_a_bound_of_zero(dsrl, toy_checkpoint):
    refused(dsrl("probe", toy_checkpoint, "--bound", 0), "bound", "must be positive")


def test_a_data_set_without_the_needed_keys_is_refused(dsrl, toy_dataset, tmp_path):
    path = tmp_path / "demos.hdf5"
    for removed in ("actions", "obs"):
        shutil.copy(toy_dataset, path)
        with h5py.File(path, "a") as file:
            del file[f"data/demo_0/{removed}"]
        refused(dsrl("pretrain", "--dataset", path, "--out", tmp_path / "x.pt"), "demo_0", f"no '{removed}'")
    with h5py.File(path, "w"):
        pass
    refused(dsrl("pretrain", "--dataset", path, "--out", tmp_path / "x.pt"), "no group 'data'")
    assert not (tmp_path / "x.pt").exists()


def test_demonstrations_with_nan_are_refused(dsrl, toy_dataset, tmp_path):
    path = tmp_path / "demos.hdf5"
    shutil.copy(toy_dataset, path)
    with h5py.File(path, "a") as file:
        file["data/demo_3/obs/state"][1, 2] = float("nan")
    refused(dsrl("pretrain", "--dataset", path, "--out", tmp_path / "x.pt"), "demo_3/obs/state holds NaN")


def test_an_existing_run_folder_is_kept(dsrl, toy_checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluations.csv").write_text("precious")
    done = dsrl("finetune", "--base-policy", toy_checkpoint, "--run-dir", tmp_path / "run")
    refused(done, "is not empty", "--overwrite")
    assert (tmp_path / "run" / "evaluations.csv").read_text() == "precious"


def test_a_folder_that_is_no_run_is_refused(dsrl, tmp_path):
    refused(dsrl("export", tmp_path, tmp_path / "x.pt"), "not a whole run folder", "config.yaml")
    refused(dsrl("export", tmp_path / "nowhere", tmp_path / "x.pt"), "there is no run folder")


def test_a_configuration_with_an_unknown_key_names_the_nearest(dsrl, tmp_path):
    (tmp_path / "config.yaml").write_text("algo: sac\nsac:\n  learning_rat: 0.1\n")
    done = dsrl("finetune", "--config", tmp_path / "config.yaml")
    refused(done, "unknown setting 'sac.learning_rat'. Did you mean 'learning_rate'?")


def test_debug_shows_the_traceback(dsrl, tmp_path):
    done = dsrl("inspect", tmp_path / "nowhere.pt", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr and "no checkpoint at" in done.stderr


def test_an_agent_that_cannot_be_written_is_a_message(dsrl, toy_checkpoint, tmp_path):
    """A limit on the size of files stands for a full disk: what was written before stays."""
    run, limit = tmp_path / "run", (20_000, 20_000)
    flags = ["--base-policy", toy_checkpoint, "--run-dir", run, "--total-env-steps", 2000, *LEARN]
    done = dsrl("finetune", *flags, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    refused(done, "could not be written", f"dsrl finetune --resume {run}", code=1)
    assert table(run)[0]["policy"] == "base" and not list(run.rglob("*.tmp*"))


def test_numbers_that_cannot_be_written_are_a_message(dsrl, toy_checkpoint, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = dsrl("evaluate", toy_checkpoint, "--episodes", 2, "--json", tmp_path / "file" / "report.json")
    refused(done, "report.json could not be written", code=1)
    done = dsrl("evaluate", toy_checkpoint, "--episodes", 2, "--json", tmp_path / "new" / "report.json")
    assert done.returncode == 0 and (tmp_path / "new" / "report.json").is_file(), done.stderr


def test_a_config_file_of_a_run_repeats_it(dsrl, toy_checkpoint, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    budget = ["--total-env-steps", 400, *LEARN]
    done = dsrl("finetune", "--base-policy", toy_checkpoint, "--run-dir", first, "--seed", 5, *budget)
    assert done.returncode == 0, done.stderr
    assert "points, 95 % interval" in done.stdout and str(first / "learning_curve.png") in done.stdout
    done = dsrl("finetune", "--config", first / "config.yaml", "--run-dir", second)
    assert done.returncode == 0, done.stderr
    assert table(first) == table(second)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_learned(toy_checkpoint, dsrl, tmp_path, sent):
    run = tmp_path / "run"
    flags = ["--base-policy", toy_checkpoint, "--run-dir", run, "--total-env-steps", 1_000_000, *LEARN]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": quiet()["env"]}
    with subprocess.Popen(dsrl_command("finetune", *flags), **options) as process:
        try:
            wait_until(lambda: len(table(run)) >= 3 or process.poll() is not None)
            process.send_signal(sent)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err and "interrupted" in out + err
    assert (run / "best.zip").is_file() and (run / "final.zip").is_file() and (run / "learning_curve.png").is_file()
    assert not list(run.glob(".*")), "a file that was half written is left"
    assert table(run)[0]["policy"] == "base" and len(table(run)) >= 3
    done = dsrl("evaluate", run, "--agent", "final", "--episodes", 4)
    assert done.returncode == 0, done.stderr


def test_an_interruption_before_the_first_evaluation_keeps_the_last_agent(toy_checkpoint, dsrl, tmp_path):
    run = tmp_path / "run"
    flags = ["--base-policy", toy_checkpoint, "--run-dir", run, *LEARN, "--warmup-episodes", 900_000]
    command = dsrl_command("finetune", *flags, "--total-env-steps", 1_000_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=quiet()["env"]) as process:
        try:
            wait_until(lambda: (run / "metrics.csv").is_file() or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130
    refused(dsrl("evaluate", run, "--agent", "best"), "ended before it had a best.zip", "--agent final")
    assert dsrl("evaluate", run, "--episodes", 2).returncode == 0


SIMULATOR = """
import os
import gymnasium
from dsrl.wrappers.toy import PointReach

class Breaks(PointReach):
    steps, fault = 0, os.environ.get("FAULT")

    def step(self, action):
        Breaks.steps += 1
        if Breaks.steps > 1500 and self.fault == "raise":
            raise RuntimeError("the contact solver has diverged")
        obs, *rest = super().step(action)
        return (obs * float("nan") if Breaks.steps > 1500 else obs, *rest)

gymnasium.register("test/Breaks-v0", Breaks, max_episode_steps=32)
"""


@pytest.fixture
def simulator(tmp_path):
    """A module that registers an environment which breaks after a while, and the process environment that finds it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "breaking_simulator.py").write_text(SIMULATOR)
    return {**quiet()["env"], "PYTHONPATH": str(tmp_path / "modules")}


@pytest.mark.parametrize(
    ("fault", "message"), [("raise", "the contact solver has diverged"), ("nan", "observation 'state'[0] is nan")]
)
def test_a_simulator_that_fails_does_not_cost_what_was_learned(simulator, toy_checkpoint, tmp_path, fault, message):
    run = tmp_path / "run"
    flags = ["finetune", "--base-policy", toy_checkpoint, "--env", "test/Breaks-v0", "--run-dir", run]
    flags += ["--total-env-steps", 5000, *LEARN]
    code = "import sys, breaking_simulator; from dsrl.cli import main; sys.exit(main(sys.argv[1:]))"
    options = {**quiet(), "env": {**simulator, "FAULT": fault}}
    done = subprocess.run([sys.executable, "-c", code, *map(str, flags)], **options, check=False)
    refused(done, message, str(run), code=1)
    assert (run / "final.zip").is_file() and table(run)[0]["policy"] == "base"


def test_an_environment_of_ones_own_is_named_with_its_module(dsrl, simulator, toy_checkpoint):
    """As in gymnasium.make: what stands before the colon is imported first."""
    done = dsrl(
        "evaluate", toy_checkpoint, "--env", "breaking_simulator:test/Breaks-v0", "--episodes", 2, env=simulator
    )
    assert done.returncode == 0, done.stderr
    done = dsrl("evaluate", toy_checkpoint, "--env", "no_such_module:test/Breaks-v0", env=simulator)
    refused(done, "no_such_module")


def test_the_command_line_does_not_import_torch():
    code = "import sys, dsrl.cli; sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_lists_the_commands(dsrl):
    done = dsrl("--help")
    assert done.returncode == 0
    for verb in ("finetune", "evaluate", "probe", "export", "inspect", "collect", "pretrain"):
        assert f"  {verb} " in done.stdout


def table(run):
    """``evaluations.csv`` without its columns of times; empty when there is none yet."""
    if not (run / "evaluations.csv").is_file():
        return []
    with (run / "evaluations.csv").open(newline="") as file:
        return [{**row, "wall_seconds": "", "cpu_seconds": ""} for row in csv.DictReader(file)]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)
