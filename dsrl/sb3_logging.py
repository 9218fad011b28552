"""Send what stable-baselines3 logs into the run folder."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from dsrl.run import RunFolder


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


def _as_float(value: Any) -> float | None:
    if isinstance(value, str):  # "nan" and "1" would convert
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises RuntimeError for more than one element
        return None
