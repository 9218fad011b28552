"""Pictures of a run: success against env steps, the base policy as the line to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsrl.files import replacing

Rows = Sequence[Mapping[str, Any]]
"""of ``evaluations.csv``, as ``RunFolder.read_evaluations`` gives them"""

_COLOURS = ("#0b6e8f", "#c8553d", "#5b8c3a", "#7a4e9c", "#b8860b", "#2f4858")
_BASE_COLOUR = "#6b6b6b"


def learning_curve(rows: Rows, out: Path, title: str) -> None:
    """Draw one run: the steered policy and, flat, the base policy, each with its Wilson interval.

    Raises:
        RunFailed: when the picture cannot be written.
    """
    figure, axes = _axes(title)
    base = [row for row in rows if row["policy"] == "base"]
    if base:
        first = base[0]
        axes.axhspan(first["success_low"], first["success_high"], color=_BASE_COLOUR, alpha=0.13, linewidth=0)
        _base_line(axes, first["success_rate"])
    curve = _steered(rows)
    if curve:
        steps, rates = _points(rows)
        low, high = ([row[name] for row in curve] for name in ("success_low", "success_high"))
        axes.fill_between(steps, low, high, color=_COLOURS[0], alpha=0.16, linewidth=0)
        # a marker each: a short run may have one point only
        axes.plot(steps, rates, color=_COLOURS[0], linewidth=2.4, marker="o", markersize=4.3, label="steered")
    _finish(figure, axes, out)


def learning_curves(runs: Mapping[str, Sequence[Rows]], out: Path, title: str) -> None:
    """Draw several seeds of several methods, ``label -> [rows of a seed, ...]``: seeds thin, their median bold.

    The base policy is the mean over all runs.

    Raises:
        RunFailed: when the picture cannot be written.
    """
    figure, axes = _axes(title)
    every = [row for seeds in runs.values() for rows in seeds for row in rows]
    base = [row["success_rate"] for row in every if row["policy"] == "base"]
    if base:
        _base_line(axes, float(np.mean(base)))
    for i, (label, seeds) in enumerate(runs.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        curves = [_points(rows) for rows in seeds]
        curves = [curve for curve in curves if len(curve[0])]
        for steps, rates in curves:
            axes.plot(steps, rates, color=colour, linewidth=0.8, alpha=0.45)
        if curves:
            name = f"{label}, median of {len(curves)} seeds" if len(curves) > 1 else label
            axes.plot(*median_curve(curves), color=colour, linewidth=2.6, label=name)
    _finish(figure, axes, out)


def weight_curve(rows: Rows, out: Path, title: str, recommended: float) -> None:
    """Draw success against the guidance weight with its Wilson intervals, and mark one weight.

    Args:
        rows: with ``weight``, ``success_rate``, ``success_low`` and ``success_high``, in the order of the weights.
        out: picture to write.
        title: above it.
        recommended: one of the weights.

    Raises:
        RunFailed: when the picture cannot be written.
    """
    figure, axes = _axes(title)
    axes.set_xlabel("guidance weight")
    axes.xaxis.set_major_formatter("{x:g}")
    weights, rates, low, high = (
        [row[name] for row in rows] for name in ("weight", "success_rate", "success_low", "success_high")
    )
    axes.fill_between(weights, low, high, color=_COLOURS[0], alpha=0.16, linewidth=0)
    axes.plot(weights, rates, color=_COLOURS[0], linewidth=2.4, marker="o", markersize=4.3)
    label = f"weight {recommended:g}, chosen on other starts"
    axes.axvline(recommended, color=_BASE_COLOUR, linewidth=1.2, linestyle=(0, (5, 3)), label=label)
    _finish(figure, axes, out)


def _steered(rows: Rows) -> list[Mapping[str, Any]]:
    """What would have been deployed; an agent may change between its actor and a choice among random candidates."""
    return sorted((row for row in rows if row["policy"] == "steered"), key=lambda row: row["env_steps"])


def _points(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Env steps and success rates of one seed."""
    curve = _steered(rows)
    return np.array([row["env_steps"] for row in curve]), np.array([row["success_rate"] for row in curve])


def median_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds that were evaluated at slightly different env steps: interpolated, where all of them have values."""
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.median([np.interp(grid, steps, rates) for steps, rates in curves], axis=0)


def _axes(title: str) -> tuple[Any, Any]:
    # not pyplot: it would choose a window system and keep every figure alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    figure = Figure(figsize=(7.2, 4.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
    axes.set_xlabel("env steps (warm-up included)")
    axes.set_ylabel("success rate")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9a9a9a")
    axes.tick_params(color="#9a9a9a", labelsize=9)
    return figure, axes


def _base_line(axes: Any, rate: float) -> None:
    axes.axhline(rate, color=_BASE_COLOUR, linewidth=1.6, linestyle=(0, (5, 3)), label=f"base policy, {rate:.0%}")


def _finish(figure: Any, axes: Any, out: Path) -> None:
    axes.set_xlim(left=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="best")
    # curves at 100 % are the ones that matter: do not cut their line in half
    for line in axes.lines:
        line.set_clip_on(False)
    with replacing(Path(out)) as temporary:
        figure.savefig(temporary)
