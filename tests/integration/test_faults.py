"""A run survives what happens to runs: it goes on where it was, and comes to what it would have come to.

Every run is a fork of this process, which has imported everything, so that one costs its work only.
"""

import csv
import errno
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import faulty_env
import pytest
from matplotlib import pyplot  # noqa: F401  # before the first fork
from rich.console import Console
from stable_baselines3.common.vec_env import SubprocVecEnv

import dsrl.finetune
from dsrl.checkpoint import Checkpoints
from dsrl.config import FinetuneConfig, NAConfig, PPOConfig, SACConfig
from dsrl.errors import DsrlError
from dsrl.finetune import finetune
from dsrl.pretrained import save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.resume import resumed_config
from dsrl.run import RunFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/stat").exists(), reason="needs Linux"),
]

FAULTY, RESTLESS = "faulty_env:test/Faulty-v0", "faulty_env:test/Restless-v0"
NEVER = 3600.0


def settings(run: Path, **changes) -> FinetuneConfig:
    """Every kind of event within a few seconds: warm-up, fit, evaluations, episodes of different lengths."""
    config = FinetuneConfig(
        base_policy=run.parent / "toy.pt",
        env=FAULTY,
        run_dir=run,
        total_env_steps=480,
        warmup_episodes=4,
        warmup_successes=0,
        n_envs=2,
        n_eval_envs=2,
        eval_interval=150,
        eval_episodes=2,
        final_episodes=2,
        final_repeats=1,
        probe_episodes=0,
        hidden_dims=(16,),
        gamma=0.97,
        device="cpu",
        checkpoint_interval=0.0,
        na=NAConfig(fit_updates=10, fit_actor_updates=10, batch_size=16, updates_per_env_step=0.25, pool_size=4),
        sac=SACConfig(batch_size=16, updates_per_env_step=0.25),
        ppo=PPOConfig(rollout_env_steps=80, batch_size=10, n_epochs=1),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def arena() -> Iterator[Path]:
    """A folder that other users may look into too."""
    folder = Path(tempfile.mkdtemp(prefix="dsrl-faults-"))
    folder.chmod(0o755)
    save_policy(ToyPolicy(), folder / "toy.pt")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(arena) -> Callable[..., Path]:
    """The run of an algorithm that nothing happened to."""

    def run(algo: str = "na") -> Path:
        path = arena / f"{algo}-undisturbed"
        if not path.exists():
            assert outcome(fork(partial(play, path, algo=algo))) == 0, said(path)
        return path

    return run


def play(run: Path, **changes) -> int:
    """Begin a run, or go on with it; what it says goes into a file beside it."""
    try:
        config = resumed_config(run)
    except DsrlError:  # not begun, or killed before the folder was whole
        config = replace(settings(run), overwrite=True)
    return speak(run, lambda console: finetune(replace(config, **changes), console))


def speak(run: Path, work: Callable[[Console], dsrl.finetune.FinetuneResult]) -> int:
    with run.with_suffix(".txt").open("a") as file:
        try:
            return 130 if work(Console(file=file, width=1000)).comparison is None else 0
        except DsrlError as error:
            print(error, file=file)
            return error.exit_code


def said(run: Path) -> str:
    return run.with_suffix(".txt").read_text()


def fork(work: Callable[[], int]) -> int:
    """The number of a process that does it."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    finally:
        sys.stdout.flush()
        os._exit(code)


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cpu_seconds(pid: int) -> float:
    """That a process has used; infinite once it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float("inf") if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def table(path: Path) -> list[dict[str, str]]:
    """Without what is measured in seconds or counts the calls of ``learn``."""
    if not path.exists():
        return []
    timed = ("wall_seconds", "cpu_seconds", "time/fps", "time/time_elapsed", "time/env_steps_per_second")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in (*timed, "time/iterations")} for row in rows]


def check_alike(run: Path, other: Path, names: tuple[str, ...] = ("evaluations.csv", "metrics.csv")) -> None:
    """The same evaluations, the same log of learning, and not a decision more or less in the replay buffer."""
    for name in names:
        assert table(run / name) == table(other / name), name
    assert len(table(run / "evaluations.csv")) >= 3
    logs = [sorted((folder / "state" / "replay").glob("*.rows")) for folder in (run, other)]
    assert [log.read_bytes() for log in logs[0]] == [log.read_bytes() for log in logs[1]]


@pytest.mark.parametrize(("algo", "kills"), [("na", 50), ("sac", 6), ("ppo", 6)])
def test_kills_at_random_moments_change_nothing(arena, undisturbed, algo, kills):
    """Also inside of a checkpoint: every fsync takes a while, and the moments are drawn in seconds of CPU."""
    expected, rng = undisturbed(algo), random.Random(kills)
    writing, done, lives, inside = mmap.mmap(-1, 1), 0, 0, 0
    genuine, save = os.fsync, Checkpoints.save

    def slow(file: int) -> None:
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass
        genuine(file)

    def marked(*args) -> None:
        writing[0] = 1
        save(*args)
        writing[0] = 0

    def life(run: Path) -> int:
        os.fsync, Checkpoints.save = slow, marked
        writing[0] = 0
        return play(run, algo=algo)

    while done < kills:
        run = arena / f"{algo}-killed-{lives}"
        lives, code = lives + 1, None
        while code is None:
            pid = fork(partial(life, run))
            moment = rng.uniform(0.0, 0.8) if done < kills else float("inf")
            while (used := cpu_seconds(pid)) < moment:
                time.sleep(0.002)
            if used == float("inf"):
                code = outcome(pid)
            else:
                os.kill(pid, signal.SIGKILL)
                code = None if outcome(pid) == -signal.SIGKILL else 71
                done, inside = done + 1, inside + writing[0]
                if code is None and (run / "comparison.json").exists():  # killed when all was done
                    code = 0
        assert code == 0, said(run)
        check_alike(run, expected)
        shutil.rmtree(run)
    assert algo != "na" or inside >= 5, f"only {inside} of {kills} kills struck inside of a checkpoint"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_writes_a_checkpoint_first(arena, undisturbed, sent):
    run = arena / f"interrupted-{sent}"
    pid = fork(partial(play, run, checkpoint_interval=NEVER))
    wait_until(lambda: len(table(run / "metrics.csv")) >= 1)
    os.kill(pid, signal.SIGSTOP)  # it shall not be finished before it is interrupted
    with pytest.raises(DsrlError, match=f"being written by process {pid} on"):
        finetune(resumed_config(run), Console(quiet=True))
    os.kill(pid, sent)
    os.kill(pid, signal.SIGCONT)
    assert outcome(pid) == 130 and f"dsrl finetune --resume {run}" in said(run)
    if sent == signal.SIGINT:
        damage(Checkpoints(RunFolder.open(run)).paths()[-1])
    else:
        assert outcome(fork(partial(read_only, run))) == 1 and "lock could not be written" in said(run)
    assert outcome(fork(partial(play, run))) == 0, said(run)
    assert ("is damaged" in said(run)) == (sent == signal.SIGINT)
    check_alike(run, undisturbed())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def read_only(run: Path) -> int:
    """Nobody may write there; the superuser could, and becomes somebody else."""
    run.with_suffix(".txt").chmod(0o666)
    run.chmod(0o555)
    config = resumed_config(run)
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        return speak(run, lambda console: finetune(config, console))
    finally:
        if os.getuid() != 65534:
            run.chmod(0o755)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "the contact solver has diverged"),
        ("nan", "is nan"),
        ("dies", "the process of a simulator died"),
        ("hangs", "has not answered for 20 s"),
        ("full", "the disk is full"),
    ],
)
def test_what_breaks_costs_nothing_that_was_learned(arena, undisturbed, fault, message):
    run, order = arena / f"fault-{fault}", arena / "order"

    def broken() -> int:
        if fault == "full":
            fill_the_disk(after=150)
            return play(run)
        order.write_text(fault)
        os.environ[faulty_env.ORDER] = str(order)
        if fault in ("dies", "hangs"):
            use_processes()
        return play(run, checkpoint_interval=NEVER, simulator_timeout=20.0)

    assert outcome(fork(broken)) == 1, said(run)
    assert message in said(run), said(run)
    assert f"dsrl finetune --resume {run}" in said(run)
    assert not order.exists() and (run / "final.zip").is_file()
    found = Checkpoints(RunFolder.open(run)).newest(print)
    assert found["state"]["parts"]["steps"]["env_steps"] > 200, "the state was saved when it broke"
    assert outcome(fork(partial(play, run))) == 0, said(run)
    check_alike(run, undisturbed())


def fill_the_disk(after: int) -> None:
    """From some point on nothing reaches the disk any more."""
    genuine, calls = os.fsync, iter(range(10**9))

    def full(file: int) -> None:
        if next(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(file)

    os.fsync = full


def use_processes() -> None:
    """Simulators in forks of their own: a fresh interpreter would take seconds to import everything."""
    init = SubprocVecEnv.__init__
    SubprocVecEnv.__init__ = lambda self, thunks, **_: init(self, thunks, start_method="fork")  # type: ignore[method-assign]
    dsrl.finetune.make_vec_env = partial(dsrl.finetune.make_vec_env, subprocess=True)


def test_a_simulator_that_does_not_repeat_itself_is_said_to(arena):
    run = arena / "restless"
    pid = fork(partial(play, run, env=RESTLESS))
    wait_until(lambda: len(table(run / "metrics.csv")) >= 1)
    os.kill(pid, signal.SIGTERM)
    assert outcome(pid) == 130
    assert outcome(fork(partial(play, run))) == 0, said(run)
    assert "the simulator does not repeat itself: the episodes under way in" in said(run)
    steps = [int(row["env_steps"]) for row in table(run / "evaluations.csv")]
    assert steps == sorted(set(steps)) and steps[-1] >= 480


def test_a_finished_run_takes_a_larger_budget_and_other_settings_only_by_force(arena, undisturbed):
    run = arena / "extended"
    assert outcome(fork(partial(play, run, total_env_steps=300))) == 0
    assert outcome(fork(partial(play, run))) == 2 and "is finished: 300 env steps" in said(run)
    longer = resumed_config(run)
    assert outcome(fork(partial(play, run, total_env_steps=480, gamma=0.9))) == 2
    assert "--gamma was 0.97, is 0.9" in said(run) and (run / "comparison.json").exists()
    assert outcome(fork(partial(play, run, total_env_steps=480))) == 0, said(run)
    assert resumed_config(run) == replace(longer, total_env_steps=480)
    check_alike(run, undisturbed(), names=("evaluations.csv",))  # how often the noise is looked at hangs on the budget
    forced = partial(play, run, total_env_steps=500, n_envs=1, force=True)
    assert outcome(fork(forced)) == 0, said(run)
    assert '"--n-envs was 2, is 1"' in (run / "resumes.json").read_text()
    assert resumed_config(run).n_envs == 1
