"""The benchmark of steering: tasks x methods x seeds, resumable: ``python benchmarks/steering.py [--jobs 2]``.

Seed 0 of everything comes first, so that a benchmark that is cut short is still balanced. What is finished is merged
into ``benchmarks/results/steering_{curves,final}.csv`` after every run; a run that these files hold is not repeated,
even where its folder is gone, as long as the base policy is the same and the plan no longer. A run that was broken off,
or whose plan has grown, goes on. The end is ``steering.md`` and ``steering.png`` beside them. Flags that are not listed
by ``--help`` go to ``dsrl finetune``.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from steering_results import Key, Results
from steering_table import markdown
from tasks import FOLDER, TASKS, base_policy, demonstrations

from dsrl.pretrained import load_policy

METHODS = ("na", "na-60", "na-exact", "na-demos", "sac", "ppo", "reference")


@dataclass(frozen=True)
class Budget:
    """Of one run of one method."""

    env_steps: int
    eval_interval: int


@dataclass(frozen=True)
class Plan:
    """How much of the benchmark one task is."""

    seeds: tuple[int, ...] = (0, 1, 2)
    na: Budget = Budget(8_000, 1_000)
    reference: Budget = Budget(16_000, 2_000)
    """also of plain SAC"""
    ppo: Budget = Budget(40_000, 5_000)
    warmup: Budget = Budget(12_000, 12_000)
    """of na-60: twice what 60 episodes of the base policy take at most, since a warm-up may take half of a run"""
    methods: tuple[str, ...] = field(default=("na", "na-60", "na-demos", "sac", "reference"))
    """without --methods"""

    def budget(self, method: str) -> Budget:
        """What a run of that method may spend."""
        special = {"ppo": self.ppo, "na-60": self.warmup}
        return special.get(method, self.na if method.startswith("na") else self.reference)


PLANS = {
    "lift": Plan(reference=Budget(12_000, 2_000), warmup=Budget(9_600, 9_600), methods=METHODS),
    "can": Plan(na=Budget(16_000, 2_000), reference=Budget(20_000, 2_000), warmup=Budget(16_800, 16_800)),
    "pick-place": Plan(seeds=(0, 1, 2, 3, 4)),
    "hand-insert": Plan(
        seeds=(0, 1, 2, 3, 4),
        na=Budget(20_000, 1_000),
        reference=Budget(32_000, 2_000),
        warmup=Budget(9_600, 9_600),
    ),
    "hammer": Plan(warmup=Budget(10_800, 10_800)),
}


def method_flags(method: str, task: str, bases: Path) -> list[str]:
    """What makes a method, as flags of ``dsrl finetune``; its demonstrations are played when they are not there."""
    if method == "reference":
        return ["--preset", "reference"]
    if method == "na-60":
        # what the base policy's own episodes are worth: the first evaluation, before anything is steered
        return ["--algo", "na", "--warmup-episodes", "60"]
    if method == "na-exact":
        # the published target, which decodes the actor's noise in every gradient step, all else as in "na"
        return ["--algo", "na", "--na.targets", "td", "--na.pool-size", "0", "--na.backup", "actor"]
    if method == "na-demos":
        return ["--algo", "na", "--demos", str(demonstrations(TASKS[task], bases))]
    if method in ("sac", "ppo"):
        # what suited them best on Lift
        return ["--algo", method, "--gamma", "0.97", "--warmup-episodes", "30"]
    return ["--algo", method]


def run_flags(key: Key, run_dir: Path, bases: Path, controls: bool, begun: bool = False) -> list[str]:
    """All flags of one run, or of going on with one; with ``controls`` it also plays what needs no learning."""
    task, method, seed = key
    budget = budget_of(key)
    if begun:
        return ["--resume", str(run_dir), "--total-env-steps", str(budget.env_steps)]
    flags = {
        "base-policy": base_policy(TASKS[task], bases),
        "run-dir": run_dir,
        "seed": seed,
        "n-envs": 4,
        "total-env-steps": budget.env_steps,
        "eval-interval": budget.eval_interval,
        "eval-episodes": 50,
        "final-episodes": 100,
        "final-repeats": 8 if controls else 1,
        "probe-episodes": 0,
        "device": "cpu",  # CPU seconds are compared
    }
    named = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    others = "--final-controls" if controls else "--no-final-controls"
    return [*named, others, "--overwrite", *method_flags(method, task, bases)]


def hashes(tasks: Iterable[str], bases: Path) -> dict[str, str]:
    """Of the tasks' base policies."""
    return {task: load_policy(base_policy(TASKS[task], bases), device="cpu").spec.sha256 for task in tasks}


def planned(tasks: Iterable[str], methods: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Key]:
    """The runs, seed 0 of every task and method first."""
    keys = [
        (task, method, seed)
        for task in tasks
        for method in methods or PLANS[task].methods
        for seed in seeds or PLANS[task].seeds
    ]
    return sorted(keys, key=lambda key: key[2])  # stable: within a seed as listed


def budget_of(key: Key) -> Budget:
    """What a whole run may spend."""
    return PLANS[key[0]].budget(key[1])


class Children:
    """The runs under way, in sessions of their own: Ctrl-C reaches them only through :meth:`stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: list[str], log: Path) -> int | None:
        """Run to the end and return the exit status; None when it was stopped or never started."""
        if self._stopped:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as out:
            with self._lock:
                if self._stopped:
                    return None
                child = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
                self._running.add(child)
            status = child.wait()
        with self._lock:
            self._running.discard(child)
            return None if self._stopped else status

    def stop(self) -> None:
        """Ask all of them to end, and make those that do not within a minute."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


def run_all(keys: Sequence[Key], results: Results, bases: Path, jobs: int, extra: Sequence[str]) -> list[Key]:
    """Run what is missing, ``jobs`` at a time, and collect after each; returns those that failed."""
    failed: list[Key] = []
    dsrl = str(Path(sys.executable).with_name("dsrl"))
    children = Children()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures, policies = {}, hashes({key[0] for key in keys}, bases)
            known = results.controls(policies)
            for key in keys:
                run_dir = results.run_dir(key)
                # they are properties of the base policy: one run per task measures them
                controls = key[1:] == ("na", 0) and key[0] not in known
                # base policies and demonstrations are made here, one after another: two runs may share them
                flags = run_flags(key, run_dir, bases, controls, results.begun(key, policies))
                command = [dsrl, "finetune", *flags, *extra]
                futures[pool.submit(children.run, command, run_dir.with_suffix(".log"))] = key
            for done, future in enumerate(as_completed(futures), 1):
                key, status = futures[future], future.result()
                if status:
                    failed.append(key)
                outcome = f"FAILED ({status}), see {results.run_dir(key).with_suffix('.log')}" if status else "done"
                print(f"[{done}/{len(keys)}] {' '.join(map(str, key))}: {outcome}", flush=True)
                results.collect()
        except BaseException:
            children.stop()
            raise
    return failed


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--tasks", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="left out: those of the plan, not every one on every task"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="left out: those of the plan")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/steering"))
    parser.add_argument("--bases", type=Path, default=FOLDER, help="base policies, see tasks.py")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--again", action="store_true", help="also what the CSV holds, unless its run folder is here")
    parser.add_argument("--collect-only", action="store_true", help="write results of what is finished, start nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of the CSV, change nothing")
    return parser.parse_known_args()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    args, extra = _parse()
    results = Results(args.runs, args.results)
    if args.table:
        print(markdown(*results.read()))
        return 0
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell starts what it runs in the background deaf to the first
        signal.signal(name, _interrupt)
    failed: list[Key] = []
    interrupted = False
    if not args.collect_only:
        keys = planned(args.tasks, args.methods, args.seeds)
        held = {} if args.again else results.held(hashes(args.tasks, args.bases))
        missing = [key for key in keys if max(held.get(key, 0), results.finished(key)) < budget_of(key).env_steps]
        print(f"{len(missing)} of {len(keys)} runs to do, {args.jobs} at a time, in {args.runs}", flush=True)
        try:
            failed = run_all(missing, results, args.bases, args.jobs, extra)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted; the runs under way were stopped, the finished ones are kept")
    results.collect()
    results.report()
    for key in failed:
        print(f"failed: {' '.join(map(str, key))}, see {results.run_dir(key).with_suffix('.log')}")
    return 130 if interrupted else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
