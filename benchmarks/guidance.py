"""The benchmark of guidance (CFGRL), resumable: ``python benchmarks/guidance.py [--tasks large] [--seeds 0 1]``.

Runs one after another, seed 0 of everything first. What is finished is merged into ``benchmarks/results/guidance.csv``
after every run; a run that it holds is not repeated. ``guidance.md`` beside it is the table. The mazes need the
[ogbench] extra; their data are recorded when they are not there, which takes five minutes each on a free core.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import guidance_anchored as anchored
import guidance_mazes as mazes
from guidance_table import chosen, markdown
from mazes import FOLDER as MAZES

from dsrl.errors import DsrlError
from dsrl.files import csv_text, read_rows, write_text

Key = tuple[str, str, int]
"""task, method, seed"""
COLUMNS = (
    *("task", "method", "seed", "setting", "success_rate", "low", "high", "episodes", "mean_length"),
    *("choice_success_rate", "choice_mean_length", "network_calls", "cpu_seconds", "commit"),
)
SWEPT = (0, 1, 2)
"""seeds for which every temperature of AWR is trained; others get the one that was best for these on other starts"""
AWR = {"awr-gauss": mazes.awr_gauss, "awr-flow": mazes.awr_flow}
SINGLE = {"cfgrl": mazes.cfgrl, "flow-bc": mazes.flow_bc, "best-of-n": mazes.best_of_n, **AWR}
GOALS = {"goal": mazes.goal, "hierarchical": mazes.hierarchical}
ANCHORED = {
    "anchored": anchored.extracted,
    "one-fold": anchored.one_fold,
    "awr": anchored.awr,
    "steered-base": anchored.steered_base,
    "steered-guided": anchored.steered_guided,
    "steered-weight": anchored.steered_weight,
}
SEEDS = {"large": (0, 1, 2, 3, 4), "teleport": (0, 1, 2, 3, 4)}
"""of every other task three"""
TASKS: dict[str, dict[str, Callable[..., list[dict[str, Any]]]]] = {
    "large": SINGLE,
    "teleport": SINGLE,
    "goals-large": GOALS,
    "goals-giant": GOALS,
    "cube": ANCHORED,
    "lift": ANCHORED,
}


def planned(tasks: Sequence[str], methods: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Key]:
    """The runs, seed 0 of every task and method first."""
    keys = [
        (task, method, seed)
        for task in tasks
        for method in TASKS[task]
        if methods is None or method in methods
        for seed in seeds or SEEDS.get(task, (0, 1, 2))
    ]
    return sorted(keys, key=lambda key: key[2])  # stable: within a seed as listed


def run(key: Key, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One method on one task with one seed: its rows."""
    task, method, seed = key
    call = TASKS[task][method]
    if TASKS[task] is ANCHORED:
        return call(anchored.Manipulation(task, args.bases, args.runs / task), seed)
    has_goals = task.startswith("goals-")
    maze = mazes.Maze(task.removeprefix("goals-"), has_goals, args.mazes, args.runs / "mazes", args.episodes)
    if method not in AWR:
        return call(maze, seed)
    temperatures = mazes.TEMPERATURES if seed in SWEPT else [swept(args.results / "guidance.csv", task, method)]
    return call(maze, seed, temperatures)


def swept(path: Path, task: str, method: str) -> float:
    """The temperature that was best where all of them were tried.

    Raises:
        DsrlError: when they were not.
    """
    rows = [row for row in read_rows(path) if (row["task"], row["method"]) == (task, method)]
    rows = [row for row in rows if int(row["seed"]) in SWEPT]
    if {int(row["seed"]) for row in rows} != set(SWEPT):
        raise DsrlError(f"{task} {method} must be swept with the seeds {SWEPT} first")
    best = chosen(rows)
    assert best is not None, "every run is played on other starts too"
    return float(best.removeprefix(mazes.BETA))


def held(path: Path) -> set[Key]:
    """The runs of the CSV."""
    return {(row["task"], row["method"], int(row["seed"])) for row in read_rows(path)}


def merge(path: Path, key: Key, rows: Sequence[dict[str, Any]], cpu_seconds: float) -> None:
    """Put the rows of one run into the CSV, which stays sorted."""
    task, method, seed = key
    about = {"task": task, "method": method, "seed": seed, "cpu_seconds": round(cpu_seconds), "commit": commit()}
    kept = [row for row in read_rows(path) if (row["task"], row["method"], int(row["seed"])) != key]
    kept += [{**about, **row} for row in rows]
    kept.sort(key=lambda row: (row["task"], row["method"], int(row["seed"])))
    write_text(path, csv_text([COLUMNS, *([_cell(row.get(name, "")) for name in COLUMNS] for row in kept)]))


def commit() -> str:
    """Of the sources, as far as git knows."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip()


def _cell(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=sorted({name for task in TASKS.values() for name in task}))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--episodes", type=int, default=50, help="in a maze, reported, and as many to choose a setting")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/guidance"))
    parser.add_argument("--mazes", type=Path, default=MAZES, help="recorded data of the mazes")
    parser.add_argument("--bases", type=Path, default=anchored.FOLDER, help="base policies and demos, see tasks.py")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--table", action="store_true", help="write the table of the CSV, run nothing")
    return parser.parse_args()


def main() -> int:
    args = _parse()
    path = args.results / "guidance.csv"
    todo = [] if args.table else [key for key in planned(args.tasks, args.methods, args.seeds) if key not in held(path)]
    failed = []
    for key in todo:
        name, begun = " ".join(map(str, key)), time.process_time()
        print(name, flush=True)
        try:
            rows = run(key, args)
        except (DsrlError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
            print(f"failed: {failed[-1]}", flush=True)
            continue
        merge(path, key, rows, time.process_time() - begun)
    write_text(args.results / "guidance.md", markdown(read_rows(path)))
    print("\n".join(f"failed: {each}" for each in failed) or f"results in {path}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
