"""What a report is made from: run folders as they are, grouped by task and method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsrl.compare_runs import task_differences
from dsrl.env_spec import EnvSpec
from dsrl.episodes import Episodes, episodes_path
from dsrl.errors import DsrlError
from dsrl.run import RunFolder

Curve = tuple[np.ndarray, np.ndarray]
"""env steps and values"""
# what two seeds of one method may differ in
_NOT_THE_METHOD = frozenset(
    ("seed", "run_dir", "base_policy", "overwrite", "device", "n_eval_envs", "eval_interval", "eval_episodes")
)
_LONGEST_LABEL = 3
_MOST_POINTS = 300


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    """of the folder, told apart from the others of the report"""
    folder: RunFolder
    config: Mapping[str, Any]
    env: EnvSpec
    base: Mapping[str, Any]
    """``base_policy.json``"""
    environment: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, float]]
    comparison: Mapping[str, Any] | None
    """None: the run was not finished"""
    episodes: Episodes | None

    @property
    def steered(self) -> Curve:
        """Success of the steered policy against env steps."""
        rows = sorted((r for r in self.evaluations if r["policy"] == "steered"), key=lambda row: row["env_steps"])
        return np.array([r["env_steps"] for r in rows]), np.array([r["success_rate"] for r in rows], float)

    @property
    def base_row(self) -> Mapping[str, Any] | None:
        """The first evaluation, of the base policy."""
        return next((row for row in self.evaluations if row["policy"] == "base"), None)

    @property
    def trained(self) -> int:
        """Env steps, as far as they were recorded."""
        if final := (self.comparison or {}).get("trained_env_steps"):
            return int(final)
        counted = [row["time/env_steps"] for row in self.metrics if "time/env_steps" in row]
        return int(max([row["env_steps"] for row in self.evaluations] + counted, default=0))

    def metric(self, name: str) -> Curve:
        """One column of ``metrics.csv`` against env steps; of a long one every n-th value."""
        rows = [row for row in self.metrics if name in row and "time/env_steps" in row]
        if len(rows) > _MOST_POINTS:
            rows = [rows[i] for i in np.linspace(0, len(rows) - 1, _MOST_POINTS).round().astype(int)]
        return np.array([row["time/env_steps"] for row in rows]), np.array([row[name] for row in rows])

    def final(self, policy: str = "steered") -> Mapping[str, Any] | None:
        """A row of the last comparison; the base policy is that of ``N(0, I)``."""
        rows = (self.comparison or {}).get("rows", ())
        return next((row for row in rows if row["policy"] == policy or row["policy"].startswith(f"{policy},")), None)


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seeds only."""

    label: str
    runs: tuple[Run, ...]

    def finals(self) -> np.ndarray:
        """Success of the last comparison of every run, or of its last evaluation where there is none."""
        return np.array([run_score(run) for run in self.runs], float)


@dataclass(frozen=True)
class Task:
    """Runs whose numbers can be compared."""

    name: str
    methods: tuple[Method, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them."""
        return tuple(run for method in self.methods for run in method.runs)


def run_score(run: Run) -> float:
    """Success of the last comparison, or of the last evaluation; NaN when neither is there."""
    if row := run.final():
        return float(row["success_rate"])
    rates = run.steered[1]
    return float(rates[-1]) if len(rates) else float("nan")


def read_run(path: Path, name: str) -> Run:
    """Read a folder; nothing in it is executed.

    Raises:
        DsrlError: when it is no run, or a file of it cannot be read, with its name.
    """
    folder = RunFolder.open(path)
    config = _reading(folder.config_path, folder.read_config)
    comparison = folder.path / "comparison.json"
    kept = episodes_path(comparison)
    base = folder.read_base_policy()
    return Run(
        name=name,
        folder=folder,
        config=_reading(folder.config_path, lambda: dict(config)),
        env=_reading(folder.base_policy_path, lambda: EnvSpec.from_robomimic(base["env"])),
        base=base,
        environment=_reading(folder.environment_path, lambda: json.loads(folder.environment_path.read_text("utf-8"))),
        evaluations=_reading(folder.evaluations_path, lambda: _evaluations(folder)),
        metrics=_reading(folder.metrics_path, folder.read_metrics),
        comparison=_reading(comparison, lambda: _comparison(comparison)) if comparison.exists() else None,
        episodes=Episodes.load(kept) if kept.exists() else None,
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All folders, each with the shortest name that tells it apart.

    Raises:
        DsrlError: when a folder is no run, or is given twice.
    """
    whole = [Path(path).expanduser().resolve() for path in paths]
    twice = [str(path) for i, path in enumerate(whole) if path in whole[:i]]
    if twice:
        raise DsrlError(f"{twice[0]} is given twice; a report shows a run once")
    return [read_run(given, name) for given, name in zip(paths, _short_names(whole), strict=True)]


def group(runs: Sequence[Run]) -> list[Task]:
    """Runs of one task together, and in it those of one method."""
    tasks: list[list[Run]] = []
    for run in runs:
        place = next((task for task in tasks if not task_differences(task[0].env, run.env)), None)
        if place is None:
            tasks.append([run])
        else:
            place.append(run)
    ids = [task[0].env.id for task in tasks]
    names = [name if ids.count(name) == 1 else f"{name} ({ids[: i + 1].count(name)})" for i, name in enumerate(ids)]
    return [Task(name, _methods(members)) for name, members in zip(names, tasks, strict=True)]


def not_comparable(tasks: Sequence[Task]) -> list[str]:
    """What may not be compared in this report, in sentences."""
    found = []
    if len(tasks) > 1:
        others = [f"{t.name} ({'; '.join(task_differences(tasks[0].runs[0].env, t.runs[0].env))})" for t in tasks[1:]]
        found.append(
            f"These runs are of different tasks: {tasks[0].name}; {'; '.join(others)}. Success rates, returns and env "
            "steps of one task say nothing about another; each task is shown for itself."
        )
    for task in tasks:
        if len({run.base.get("sha256") for run in task.runs}) > 1:
            found.append(f"{task.name}: the runs steer different base policies; compare gains, not success rates.")
        if len({run.config.get("reward") for run in task.runs}) > 1:
            found.append(f"{task.name}: the runs use different rewards; their returns cannot be compared.")
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"na": {"tau": 1}}`` -> ``{"na.tau": 1}``."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values


def _methods(runs: Sequence[Run]) -> tuple[Method, ...]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(_method_key(run), sort_keys=True, default=str), []).append(run)
    keys = [_method_key(members[0]) for members in found.values()]
    varying = [key for key in keys[0] if len({json.dumps(k.get(key), default=str) for k in keys}) > 1]
    labels = []
    for key in keys:
        words = [f"{name} {key[name]}" for name in varying if name not in ("algo", "base") and name in key]
        labels.append(", ".join([_algorithm(key), *(words if len(words) <= _LONGEST_LABEL else [])]))
    # too many differences to name: then by a run
    labels = [
        label if labels.count(label) == 1 else f"{label} as in {members[0].name}"
        for label, members in zip(labels, found.values(), strict=True)
    ]
    return tuple(Method(label, tuple(members)) for label, members in zip(labels, found.values(), strict=True))


def _algorithm(key: Mapping[str, Any]) -> str:
    return str(key.get("algo", "agent")).upper()


def _method_key(run: Run) -> dict[str, Any]:
    """What makes a method: its settings, without those of the agents that were not used, and the base policy."""
    unused = {"na", "sac", "ppo"} - {run.config.get("algo")}
    kept = {k: v for k, v in run.config.items() if k not in _NOT_THE_METHOD and k not in unused}
    return {**flat(kept), "base": run.base.get("sha256")}


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    rows = folder.read_evaluations()
    for row in rows:
        for name in ("env_steps", "policy", "episodes", "success_rate", "success_low", "success_high"):
            if row[name] is None:
                raise ValueError(f"a row lacks {name}")
    return rows


def _comparison(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    rates = dict.fromkeys(("success_rate", "success_low", "success_high"), float)
    for row in found["rows"]:
        row.update({name: kind(row[name]) for name, kind in {"policy": str, "episodes": int, **rates}.items()})
    for name in ("difference", "low", "high", "p") if "paired" in found else ():
        found["paired"][name] = float(found["paired"][name])
    return found


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        raise DsrlError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it is not what a run writes. Leave this run out "
            "of the report, or take the file from a copy"
        ) from error


def _short_names(paths: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
