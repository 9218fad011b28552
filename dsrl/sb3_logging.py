"""What an agent of stable-baselines3 logs: averages, and the way into the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dsrl.run import RunFolder


class Means:
    """Averages of scalars that stay on their device until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        """One more of each."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def read(self) -> dict[str, float]:
        """All of them, brought over at once."""
        if not self._values:
            return {}
        means = torch.stack([torch.stack(v).mean() for v in self._values.values()])
        return dict(zip(self._values, means.tolist(), strict=True))


class MetricsWriter(KVWriter):
    """Writes every number that an agent logs as a row of ``metrics.csv``.

    Give it to a logger: ``Logger(str(run.path), [TensorBoardOutputFormat(str(run.path)), MetricsWriter(run)])``. The
    column ``step`` is the agent's own count, in decisions.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add one row; what is no number (videos, figures, words) has no place in a table of floats."""
        row = {"step": float(step)}
        for key, value in filter_excluded_keys(key_values, key_excluded, "csv").items():
            number = _as_float(value)
            if number is not None:
                row[key] = number
        self.run.append_metrics(row)

    def close(self) -> None:
        """Nothing stays open between two rows."""


class RunLog:
    """Metrics for the run folder and for TensorBoard, words for the console."""

    def __init__(self, folder: RunFolder, console: Console):
        self.console = console
        # what goes on from a break computes some rows again
        self._known = {(row["step"], name) for row in folder.read_metrics() for name in row}
        self.logger = Logger(
            str(folder.path), [TensorBoardOutputFormat(str(folder.path / "tb")), MetricsWriter(folder)]
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; what is not a number, and what is there already, is left out."""
        # a loss of no rows is NaN
        new = {name: v for name, v in metrics.items() if v == v and (step, name) not in self._known}
        for name, value in new.items():
            self.logger.record(name, value)
        if new:
            self.logger.dump(step)

    def say(self, words: str) -> None:
        """Print."""
        self.console.print(words)

    def show(self, metrics: Mapping[str, float], concerns: Sequence[str | None]) -> None:
        """Write and print, and say what speaks against going on."""
        self.write(0, metrics)
        self.say(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
        for concern in concerns:
            if concern:
                self.say(f"warning: {concern}")

    def close(self) -> None:
        """Write what is left."""
        self.logger.close()


def run_logger(run: RunFolder, going_on: BaseAlgorithm | None = None) -> Logger:
    """Writes into the tables of a run and for tensorboard.

    ``going_on``, an agent that was restored, keeps what it has not logged yet; what tensorboard was told of later steps
    is hidden there.
    """
    board = TensorBoardOutputFormat(str(run.path / "tb"))
    logger = Logger(str(run.path), [board, MetricsWriter(run)])
    if going_on is not None:
        board.writer.close()
        board.writer = SummaryWriter(str(run.path / "tb"), purge_step=going_on.num_timesteps + 1)
        for name in ("name_to_value", "name_to_count", "name_to_excluded"):
            getattr(logger, name).update(getattr(going_on.logger, name))
    return logger


def _as_float(value: Any) -> float | None:
    if isinstance(value, str):  # "nan" and "1" would convert
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises RuntimeError for more than one element
        return None
