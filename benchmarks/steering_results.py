"""What the runs of ``steering.py`` left behind, as two CSV files that outlive the run folders, and their picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from steering_table import CONTROLS, level_of, markdown

from dsrl.files import csv_text, read_rows, replacing, write_text
from dsrl.plots import median_curve

Key = tuple[str, str, int]
"""task, method, seed"""
Row = Mapping[str, Any]

CURVE_COLUMNS = (
    *("task", "method", "seed", "policy", "env_steps", "success_rate", "low", "high"),
    *("episodes", "mean_length", "wall_seconds", "cpu_seconds"),
)
FINAL_COLUMNS = (
    *("task", "method", "seed", "policy", "success_rate", "low", "high"),
    *("held_rate", "episodes", "mean_length", "base_sha256", "commit"),
)
_HASH = 12
"""letters of a base policy's hash that are written down"""
_TEXT = ("task", "method", "policy", "base_sha256", "commit")

# Okabe and Ito: told apart by everybody
_COLOURS = {
    "na": "#0072B2",
    "na-exact": "#56B4E9",
    "na-demos": "#009E73",
    "sac": "#E69F00",
    "ppo": "#CC79A7",
    "reference": "#D55E00",
}
_GREY = "#6b6b6b"


@dataclass(frozen=True)
class Results:
    """The run folders and the files in which their numbers are kept."""

    runs: Path
    folder: Path

    @property
    def curves_path(self) -> Path:
        """Every evaluation on the way."""
        return self.folder / "steering_curves.csv"

    @property
    def final_path(self) -> Path:
        """The last comparison of every run, a row per policy."""
        return self.folder / "steering_final.csv"

    def run_dir(self, key: Key) -> Path:
        """Where a run is written; its log lies beside it."""
        task, method, seed = key
        return self.runs / task / method / f"seed{seed}"

    def begun(self, key: Key, bases: Mapping[str, str]) -> bool:
        """Whether the folder of a run is here and on the base policy with this hash."""
        folder = self.run_dir(key)
        return (folder / "base_policy.json").exists() and _base_sha256(folder) == bases[key[0]]

    def finished(self, key: Key) -> int:
        """The env steps of a run that came to its end and whose folder is here; 0 of any other."""
        folder = self.run_dir(key)
        return _env_steps(read_rows(folder / "evaluations.csv")) if (folder / "comparison.json").exists() else 0

    def held(self, bases: Mapping[str, str]) -> dict[Key, int]:
        """The env steps of the runs in the CSV files, of the tasks' base policies with these hashes."""
        curves, final = self.read()
        keys = {_key(row) for row in final if _is_of(row, bases)}
        return {key: _env_steps([row for row in curves if _key(row) == key]) for key in keys}

    def controls(self, bases: Mapping[str, str]) -> set[str]:
        """The tasks whose base policy, with these hashes, was played without learning, seed 0, in all ways."""
        rows = [row for row in read_rows(self.final_path) if _is_of(row, bases) and _key(row)[1:] == ("na", 0)]
        known = {(row["task"], row["policy"]) for row in rows}
        return {task for task, _ in known if all((task, policy) in known for policy in CONTROLS)}

    def read(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """Curves and comparisons, as text."""
        return read_rows(self.curves_path), read_rows(self.final_path)

    def collect(self) -> None:
        """Merge the runs that are finished here; rows of runs whose folders are elsewhere stay what they were.

        So does what needs no learning, where a run did not measure it again. What other base policies did on the same
        task cannot be compared, and is dropped.
        """
        found = {}
        for path in self.runs.glob("*/*/seed*/comparison.json"):
            task, method, seed = path.parts[-4:-1]
            found[(task, method, int(seed.removeprefix("seed")))] = path.parent
        if not found:
            return
        compared = {key: _comparison(key, folder) for key, folder in found.items()}
        bases = {key[0]: rows[0]["base_sha256"] for key, rows in compared.items()}
        old_curves, old_final = self.read()
        old_final = [row for row in old_final if row["base_sha256"] == bases.get(row["task"], row["base_sha256"])]
        kept = {_key(row) for row in old_final} - found.keys()
        curves: list[Row] = [row for row in old_curves if _key(row) in kept]
        final: list[Row] = [row for row in old_final if _key(row) in kept]
        for key, new in compared.items():
            curves += _curve(key, found[key])
            final += new
            unmeasured = set(CONTROLS) - {row["policy"] for row in new}
            final += [row for row in old_final if _key(row) == key and row["policy"] in unmeasured]
        _write(self.curves_path, CURVE_COLUMNS, curves)
        _write(self.final_path, FINAL_COLUMNS, final)

    def report(self) -> None:
        """Print the tables and write them and the picture."""
        curves, final = self.read()
        if not final:
            print("no run is finished yet")
            return
        text = markdown(curves, final)
        print(text)
        write_text(self.folder / "steering.md", text)
        draw(curves, final, self.folder / "steering.png")


def _key(row: Row) -> Key:
    return row["task"], row["method"], int(row["seed"])


def _env_steps(curve: Sequence[Row]) -> int:
    return max((int(float(row["env_steps"])) for row in curve), default=0)


def _is_of(row: Row, bases: Mapping[str, str]) -> bool:
    """Whether a base policy with one of these hashes was steered."""
    return row["base_sha256"] == bases.get(row["task"], "")[:_HASH]


def _curve(key: Key, folder: Path) -> list[dict[str, Any]]:
    """The base policy at env step 0, then the steered one."""
    rows = []
    for row in read_rows(folder / "evaluations.csv"):
        entry = dict(zip(CURVE_COLUMNS, key, strict=False))
        entry |= {name: row.get(name, "") for name in CURVE_COLUMNS[3:]}
        rows.append(entry | {"low": row["success_low"], "high": row["success_high"]})
    return rows


def _comparison(key: Key, folder: Path) -> list[dict[str, Any]]:
    git = json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("git") or {}
    # which base policy it was, and what steered it
    origin = {"base_sha256": _base_sha256(folder)[:_HASH], "commit": (git.get("sha") or "")[:10]}
    rows = []
    for row in json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["rows"]:
        entry = dict(zip(FINAL_COLUMNS, key, strict=False))
        entry |= {name: row.get(name, "") for name in FINAL_COLUMNS[3:]}
        rows.append(entry | {"low": row["success_low"], "high": row["success_high"]} | origin)
    return rows


def _base_sha256(folder: Path) -> str:
    sha256: str = json.loads((folder / "base_policy.json").read_text(encoding="utf-8"))["sha256"]
    return sha256


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Runs in alphabetic order, so that a change of one is a small diff; the rows of a run as they are."""
    ordered = sorted(rows, key=_key)
    write_text(path, csv_text([columns, *([_cell(name, row.get(name, "")) for name in columns] for row in ordered)]))


def _cell(column: str, value: Any) -> Any:
    """Shorter numbers; text stays, also a hash that looks like a number."""
    if column in _TEXT or value in ("", None):
        return value
    number = float(value)
    return int(number) if number == int(number) else round(number, 4)


def draw(curves: Sequence[Row], final: Sequence[Row], out: Path) -> None:
    """A panel per task: success against env steps, seeds thin, their median bold, the base policy dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in curves))
    columns = min(3, len(tasks) + 1)
    figure = Figure(figsize=(4.2 * columns, 3.3 * -(-(len(tasks) + 1) // columns)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-(len(tasks) + 1) // columns), columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, tasks, strict=False):
        handles |= _panel(axes, [row for row in curves if row["task"] == task], level_of(task, final))
        axes.set_title(task, loc="left", fontsize=11, fontweight="bold")
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    order = [name for name in (*_COLOURS, "base policy", "level of the table") if name in handles]
    panels[len(tasks)].legend([handles[name] for name in order], order, frameon=False, loc="center", fontsize=10)
    figure.supxlabel("env steps (warm-up included)", fontsize=10)
    figure.supylabel("success of 50 episodes", fontsize=10)
    with replacing(out) as temporary:
        figure.savefig(temporary)


def _panel(axes: Any, rows: Sequence[Row], level: float) -> dict[str, Any]:
    """One task; returns what the legend needs."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    base = [float(row["success_rate"]) for row in rows if row["policy"] == "base"]
    handles = {
        "base policy": axes.axhline(np.mean(base), color=_GREY, linewidth=1.4, linestyle=(0, (5, 3))),
        "level of the table": axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=":"),
    }
    end = 0
    for method in (name for name in _COLOURS if any(row["method"] == name for row in rows)):
        seeds: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["method"] == method and row["policy"] == "steered":
                seeds.setdefault(row["seed"], []).append((float(row["env_steps"]), float(row["success_rate"])))
        lines = [np.array(sorted(points)).T for points in seeds.values()]
        for steps, rates in lines:
            axes.plot(steps, rates, color=_COLOURS[method], linewidth=0.7, alpha=0.45)
        if lines:
            handles[method] = axes.plot(
                *median_curve([(steps, rates) for steps, rates in lines]), color=_COLOURS[method], linewidth=2.4
            )[0]
        if method != "ppo" or not end:  # whose budget would squeeze the others
            end = max([end, *(steps[-1] for steps, _ in lines)])
    for line in axes.lines:
        line.set_clip_on(line.get_xdata()[-1] > end)  # a curve at 100 % is not cut in half
    axes.set_xlim(0, end or None)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return handles
