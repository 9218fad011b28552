"""What a run leaves behind: one folder from which every number can be asked where it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsrl.errors import DsrlError
from dsrl.files import append_row, append_text, csv_text, keep_rows, read_rows, table_size, write_text, writing
from dsrl.provenance import describe_environment
from dsrl.run_lock import LOCK

EVALUATION_COLUMNS: dict[str, type] = {
    "env_steps": int,
    "policy": str,
    "deterministic": bool,
    "episodes": int,
    "success_rate": float,
    "success_low": float,
    "success_high": float,
    "mean_return": float,
    "mean_length": float,
    "held_rate": float,
    "mean_jerk": float,
    "eval_env_steps": int,
    "wall_seconds": float,
    "cpu_seconds": float,
}
"""of ``evaluations.csv``: env steps trained so far (warm-up included), who acted, success with its Wilson interval,
what else was measured, env steps that all evaluations so far have played, and the time that training took, evaluations
left out; CPU seconds are those of the learning process"""

_REQUIRED = ("config.yaml", "environment.json", "base_policy.json", "evaluations.csv", "checkpoints")
_OPTIONAL = (
    "metrics.csv",
    "best.zip",
    "final.zip",
    "learning_curve.png",
    "comparison.json",
    "tb",
    "state",
    "resumes.json",
    "comparison_episodes.npz",
    "report.html",
)
_KNOWN = frozenset({*_REQUIRED, *_OPTIONAL})


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, and how they are written: whole or not at all.

    ======================  =========================================================
    ``config.yaml``         the whole configuration
    ``environment.json``    versions, commit, machine
    ``base_policy.json``    path and sha256 of the policy that was steered
    ``evaluations.csv``     one row per evaluation, the first one is the base policy
    ``metrics.csv``         what the agent logs while it learns
    ``checkpoints/``        agents on the way
    ``best.zip final.zip``  the agents to keep
    ``learning_curve.png``  success against env steps
    ``comparison.json``     the last comparison, on fresh episodes
    ``comparison_*.npz``    its episodes one by one, with their first observations
    ``report.html``         what `dsrl report` made of it
    ``tb/``                 the metrics for tensorboard
    ``state/``              what `dsrl finetune --resume` goes on from
    ``resumes.json``        when the run was resumed, and what had changed
    ======================  =========================================================
    """

    path: Path

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], base_policy: Mapping[str, Any], force: bool = False
    ) -> RunFolder:
        """Begin a run in a new or empty folder; ``force`` replaces an earlier run, but nothing that is not a run.

        Raises:
            DsrlError: when something is there already.
        """
        run = cls(Path(path).expanduser())
        run._make_room(force)
        with writing(run.path):
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(run.config_path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        write_text(run.environment_path, json.dumps(describe_environment(), indent=2) + "\n")
        write_text(run.base_policy_path, json.dumps(dict(base_policy), indent=2, default=str) + "\n")
        write_text(run.evaluations_path, csv_text([list(EVALUATION_COLUMNS)]))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Find an earlier run, or what `dsrl push` made of one, which has no checkpoints.

        Raises:
            DsrlError: when there is none, naming what is missing.
        """
        run = cls(Path(path).expanduser())
        if not run.path.is_dir():
            raise DsrlError(f"there is no run folder {run.path}; `dsrl finetune --run-dir {run.path}` makes one")
        needed = [name for name in _REQUIRED if name != "checkpoints" or not (run.path / "agent.json").is_file()]
        missing = [name for name in needed if not (run.path / name).exists()]
        if missing:
            raise DsrlError(
                f"{run.path} is not a whole run folder: it lacks {', '.join(missing)}. "
                "Give the folder that was --run-dir of `dsrl finetune`, or run that again"
            )
        return run

    @property
    def config_path(self) -> Path:
        """The configuration as YAML."""
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        """Versions, commit and machine as JSON."""
        return self.path / "environment.json"

    @property
    def base_policy_path(self) -> Path:
        """Which policy was steered, as JSON."""
        return self.path / "base_policy.json"

    @property
    def metrics_path(self) -> Path:
        """What the agent logged."""
        return self.path / "metrics.csv"

    @property
    def evaluations_path(self) -> Path:
        """All evaluations."""
        return self.path / "evaluations.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the agents on the way."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The agent that scored best."""
        return self.path / "best.zip"

    @property
    def final(self) -> Path:
        """The agent at the end."""
        return self.path / "final.zip"

    @property
    def learning_curve(self) -> Path:
        """The picture."""
        return self.path / "learning_curve.png"

    @property
    def state(self) -> Path:
        """The folder of what a resumed run goes on from."""
        return self.path / "state"

    @property
    def comparison(self) -> Path:
        """The last comparison; a run that has one is finished."""
        return self.path / "comparison.json"

    @property
    def resumes(self) -> Path:
        """When the run was resumed."""
        return self.path / "resumes.json"

    def read_config(self) -> dict[str, Any]:
        """``config.yaml`` as a plain dict."""
        try:
            return yaml.safe_load(self.config_path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise DsrlError(f"{self.config_path} is not valid YAML: {error}") from error

    def read_base_policy(self) -> dict[str, Any]:
        """``base_policy.json`` as a plain dict."""
        try:
            return json.loads(self.base_policy_path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DsrlError(f"{self.base_policy_path} is not valid JSON: {error}") from error

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Add one row to ``evaluations.csv``.

        Raises:
            ValueError: when its keys are not exactly ``EVALUATION_COLUMNS``.
            RunFailed: when it cannot be written.
        """
        if set(row) != set(EVALUATION_COLUMNS):
            missing, unknown = EVALUATION_COLUMNS.keys() - row.keys(), row.keys() - EVALUATION_COLUMNS.keys()
            raise ValueError(f"an evaluation lacks {sorted(missing)} and has unknown {sorted(unknown)}")
        values = [None if row[name] is None else convert(row[name]) for name, convert in EVALUATION_COLUMNS.items()]
        append_text(self.evaluations_path, csv_text([values]))

    def read_evaluations(self) -> list[dict[str, Any]]:
        """All rows, typed as in ``EVALUATION_COLUMNS``; an empty cell is None."""
        return [
            {name: _parse(row.get(name), kind) for name, kind in EVALUATION_COLUMNS.items()}
            for row in read_rows(self.evaluations_path)
        ]

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add one row to ``metrics.csv``, whose columns grow with what is logged.

        Raises:
            RunFailed: when it cannot be written.
        """
        append_row(self.metrics_path, {name: float(value) for name, value in row.items()})

    def read_metrics(self) -> list[dict[str, float]]:
        """All rows of ``metrics.csv``, without the empty cells."""
        return [{k: float(v) for k, v in row.items() if v} for row in read_rows(self.metrics_path)]

    def count_rows(self) -> dict[str, dict[str, Any]]:
        """Rows and columns of both tables, for :meth:`keep_rows`."""
        tables = {"evaluations": self.evaluations_path, "metrics": self.metrics_path}
        return {name: table_size(path) for name, path in tables.items()}

    def keep_rows(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Drop the rows, and the columns, that came after :meth:`count_rows`.

        Raises:
            RunFailed: when a table cannot be written.
        """
        keep_rows(self.evaluations_path, **counts["evaluations"])
        keep_rows(self.metrics_path, **counts["metrics"])

    def check_room(self, force: bool) -> None:
        """Whether a run could begin here; nothing is changed.

        Raises:
            DsrlError: when something is there already.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise DsrlError(f"{self.path} is a file; a run needs a folder")
        names = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK)
        found = [name for name in names if not (name.startswith(".") and ".tmp" in name)]  # of a write that was killed
        if not found:
            return
        if not force:
            raise DsrlError(
                f"{self.path} is not empty (it has {found[0]}); choose another folder, or replace it with --overwrite"
            )
        if "base_policy.json" not in found and not _KNOWN.issuperset(found):
            raise DsrlError(f"{self.path} holds something that is not a run ({found[0]}); choose another folder")

    def _make_room(self, force: bool) -> None:
        self.check_room(force)
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name in _KNOWN and entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name in _KNOWN:
                entry.unlink()


def _parse(cell: str | None, kind: type) -> Any:
    """Read one cell back; ``bool("False")`` would be True."""
    if not cell:
        return None
    return cell == "True" if kind is bool else kind(cell)
