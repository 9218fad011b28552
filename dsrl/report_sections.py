"""What a report says about a task and its runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from dsrl import report_page as page
from dsrl.aggregate import curve, estimate, interquartile_mean, probability_of_improvement
from dsrl.compare import BASE
from dsrl.config import FinetuneConfig, to_dict
from dsrl.episodes import Episodes
from dsrl.report_data import Method, Run, Task, flat
from dsrl.report_plots import COLOURS, Level, Series, chart, number, percent
from dsrl.start_space import telling_coordinates, worst_quarter

_DIAGNOSTICS = {
    "noise/rms": "Size of the noise, root mean square (the base policy's is 1)",
    "noise/saturated": "Share of the noise at its bound",
    "noise/kl": "Distance of the noise from N(0, I), nats",
    "critic/std": "Disagreement of the critics: standard deviation, in units of return",
    "critic/gap": "Distilled against action critic: mean difference",
    "critic/agreement": "Distilled against action critic: correlation over noises of a state",
}
_OLDER = {
    "train/divergence": "Distance of the noise from N(0, I), nats (of training batches)",
    "train/distill_loss": "Loss of the distilled critic",
}


def verdicts(task: Task) -> list[tuple[str, str]]:
    """A sentence for each method and each comparison of two, and whether it is ``good``, ``bad`` or neither."""
    if len(task.runs) == 1:
        return [_of_one(task.methods[0].label, task.runs[0])]
    found = [_of_method(method) for method in task.methods]
    first, *others = task.methods
    for other in others:
        scores = [m.finals()[np.isfinite(m.finals())] for m in (first, other)]
        if all(len(s) for s in scores):
            chance = estimate(probability_of_improvement, [scores[0]], [scores[1]])
            few = "; with a run each, that is no evidence" if max(map(len, scores)) == 1 else ""
            words = (
                f"A run of {first.label} beats one of {other.label} with probability {chance.value:.2f} "
                f"(95 % interval {chance.low:.2f} to {chance.high:.2f}{few})."
            )
            found.append((words, ""))
    return found


def _of_one(label: str, run: Run) -> tuple[str, str]:
    final, base, gain = run.final(), run.final("base"), (run.comparison or {}).get("paired")
    if not (final and base and gain):
        rows = [row for row in run.evaluations if row["policy"] == "steered"]
        last = rows[-1] if rows else None
        words = (
            "it was never evaluated"
            if last is None
            else (
                f"its last evaluation, after {last['env_steps']:,} env steps, gave {percent(last['success_rate'])} of "
                f"{last['episodes']} episodes"
            )
        )
        before = f", the base policy {percent(run.base_row['success_rate'])}" if run.base_row else ""
        return f"{label} has no final comparison (the run is not finished): {words}{before}.", ""
    points = (
        f"{100 * gain['difference']:+.0f} points, 95 % interval {100 * gain['low']:+.0f} to {100 * gain['high']:+.0f}, "
        f"p = {gain['p']:.1g}, on {final['episodes']} fresh episodes, after {run.trained:,} env steps of training"
    )
    rates = f"from {percent(base['success_rate'])} to {percent(final['success_rate'])}"
    if gain["low"] > 0:
        return f"{label} raised success {rates} ({points}).", "good"
    if gain["high"] < 0:
        return f"{label} made it worse: success went {rates} ({points}).", "bad"
    return f"{label} made no difference that could be shown: success went {rates} ({points}).", ""


def _of_method(method: Method) -> tuple[str, str]:
    if len(method.runs) == 1:
        return _of_one(method.label, method.runs[0])
    scores = method.finals()[np.isfinite(method.finals())]
    if not len(scores):
        return f"{method.label}: no run was evaluated.", ""
    middle = estimate(interquartile_mean, [scores])
    gains = [run.comparison["paired"] for run in method.runs if run.comparison and "paired" in run.comparison]
    better = sum(gain["low"] > 0 for gain in gains)
    bases = [float(row["success_rate"]) for run in method.runs if (row := run.final("base") or run.base_row)]
    runs = "1 run" if len(scores) == 1 else f"{len(scores)} runs"
    spread = (
        "" if len(scores) == 1 else f" (interquartile mean, 95 % interval {page.interval(middle.low, middle.high)})"
    )
    base = f", its base policy {percent(float(np.mean(bases)))}" if bases else ""
    shown = f"; {better} of {len(gains)} beat it beyond chance" if gains else ""
    unfinished = sum(run.comparison is None for run in method.runs)
    rest = f"; {unfinished} not finished, counted by the last evaluation" if unfinished else ""
    kind = "good" if better == len(method.runs) else ""
    return f"{method.label}, {runs}: success {percent(middle.value)}{spread}{base}{shown}{rest}.", kind


def learning_curves(task: Task) -> str:
    """Success against env steps: seeds thin, their interquartile mean bold; a run alone with its Wilson interval."""
    series: list[Series] = []
    for index, method in enumerate(task.methods):
        colour, label = index % COLOURS, method.label
        curves = [run.steered for run in method.runs if len(run.steered[0])]
        if len(curves) > 1:
            series += [Series("", x, y, colour, style="thin") for x, y in curves]
            grid, points = curve(curves)
            if len(grid):
                low, middle, high = (np.array([getattr(p, name) for p in points]) for name in ("low", "value", "high"))
                series.append(Series(f"{label}, IQM of {len(curves)} runs", grid, middle, colour, low, high))
        elif curves:
            run = next(run for run in method.runs if len(run.steered[0]))
            rows = sorted((r for r in run.evaluations if r["policy"] == "steered"), key=lambda r: r["env_steps"])
            low, high = (np.array([r[name] for r in rows], float) for name in ("success_low", "success_high"))
            series.append(Series(label, *curves[0], colour, low, high))
            x, y = run.metric("rollout/success_rate")
            if len(x) and len(task.methods) == 1:
                series.append(Series(f"{label}, its training episodes", x, y, colour, style="dotted"))
    bases = [run.base_row for run in task.runs if run.base_row]
    levels = []
    if bases:
        mean = float(np.mean([row["success_rate"] for row in bases]))
        alone = bases[0] if len(bases) == 1 else {}
        levels.append(Level(f"base policy, {percent(mean)}", mean, alone.get("success_low"), alone.get("success_high")))
    if not series:
        return page.paragraph("No evaluation of a steered policy was recorded.", "soft")
    drawn = chart(
        "Success on the evaluation episodes",
        series,
        levels=levels,
        x_label="env steps of training (warm-up included)",
        y_range=(0.0, 1.0),
        y_format=percent,
    )
    return page.charts([drawn], "one")


def finals(task: Task) -> str:
    """The last comparisons: of a run alone in full, of several in a line each."""
    if len(task.runs) == 1:
        return final_table(task.runs[0])
    heads = ("run", "method", "seed", "base", "steered", "difference", "95 %", "p", "episodes")
    rows = [_final_line(method.label, run) for method in task.methods for run in method.runs]
    whole = "".join(final_table(run) for run in task.runs)
    return (
        page.heading(3, "Last agents on fresh initial states")
        + page.table(heads, rows)
        + page.details("with all policies and measures", whole)
    )


def _final_line(label: str, run: Run) -> list[str]:
    seed = str(run.config.get("seed", "-"))
    final, base, gain = run.final(), run.final("base"), (run.comparison or {}).get("paired")
    if not (final and base and gain):
        return [run.name, label, seed, *["-"] * 5, "not finished"]
    return [
        *(run.name, label, seed, percent(base["success_rate"]), percent(final["success_rate"])),
        *(f"{100 * gain['difference']:+.0f}", page.interval(gain["low"], gain["high"]), f"{gain['p']:.1g}"),
        str(final["episodes"]),
    ]


def final_table(run: Run) -> str:
    """The last comparison of a run, and what else it says."""
    if run.comparison is None:
        return page.paragraph(f"{run.name}: no final comparison; the run is not finished.", "soft")
    heads = ("policy", "success", "95 %", "held at the end", "return", "env steps", "jerk", "ms per call", "episodes")
    rows = [_final_row(row) for row in run.comparison["rows"]]
    extra = []
    for name, gain in (run.comparison.get("paired_others") or {}).items():
        if gain["difference"] is not None and (gain["difference"] or gain["p"] < 1):
            extra.append(
                f"{name} {gain['difference']:+.3g} ({gain['low']:+.3g} to {gain['high']:+.3g}, p = {gain['p']:.1g})"
            )
    words = f"Steered minus base on the same episodes, 95 % intervals: {'; '.join(extra)}." if extra else ""
    shown = page.heading(3, f"{run.name}: last agent on fresh initial states") + page.table(heads, rows)
    return shown + (page.paragraph(words, "soft") if words else "")


def _final_row(row: Mapping[str, Any]) -> list[str]:
    shown = [row.get(name) for name in ("mean_return", "mean_length", "jerk", "decision_ms")]
    return [
        str(row["policy"]),
        percent(row["success_rate"]),
        page.interval(row["success_low"], row["success_high"]),
        percent(row["held_rate"]) if row.get("held_rate") is not None else "-",
        *("-" if value is None else number(value) for value in shown),
        str(row["episodes"]),
    ]


def noise_section(task: Task) -> str:
    """What the agents do with the noise."""
    logged = {name for run in task.runs for row in run.metrics for name in row}
    names = {name: title for name, title in _DIAGNOSTICS.items() if name in logged}
    missing = (
        ""
        if names
        else (
            "The version that made these runs did not log the noise itself; what it logged of it is shown."
            if logged & _OLDER.keys()
            else "Nothing about the noise was logged in these runs."
        )
    )
    figures = []
    for name, title in (names or {n: t for n, t in _OLDER.items() if n in logged}).items():
        series = []
        for index, method in enumerate(task.methods):
            curves = [run.metric(name) for run in method.runs]
            curves = [c for c in curves if len(c[0])]
            style: Any = "thin" if len(curves) > 1 else "line"
            label = method.label if len(task.methods) > 1 else ""
            series += [Series(label, x, y, index % COLOURS, style=style) for x, y in curves]
        levels = [Level("N(0, I)", 1.0)] if name == "noise/rms" else []
        span = (0.0, 1.0) if name == "noise/saturated" else None
        figures.append(chart(title, series, x_label="env steps", levels=levels, y_range=span))
    return page.paragraph(missing, "soft") * bool(missing) + page.charts(figures)


def starts_section(task: Task) -> str:
    """Where among the initial states base and steered policies fail."""
    without = [run.name for run in task.runs if run.episodes is None]
    words = (
        f"{', '.join(without)}: the episodes were not kept one by one. `dsrl evaluate RUN --json "
        "RUN/comparison.json` plays and keeps them."
    )
    shown = "".join(_starts_of(run, run.episodes) for run in task.runs if run.episodes is not None)
    return shown + (page.paragraph(words, "soft") if without else "")


def _starts_of(run: Run, kept: Episodes) -> str:
    policies = [name for name in (BASE, "steered") if name in kept.policies]
    telling = telling_coordinates(kept.starts, [kept.of(name) for name in policies])
    if telling is None:
        return page.paragraph(f"{run.name}: the recorded initial states do not tell failures apart.", "soft")
    columns = [kept.columns[i] for i in telling.columns]
    x, y = kept.starts[:, telling.columns[0]], kept.starts[:, telling.columns[-1]]
    spans = [(float(v.min() - 0.05 * np.ptp(v)), float(v.max() + 0.05 * np.ptp(v))) for v in (x, y)]
    figures = []
    for index, name in enumerate(policies):
        won = kept.of(name).astype(bool)
        failed, succeeded = f"fails ({int((~won).sum())})", f"succeeds ({int(won.sum())})"
        marks = [Series(succeeded, x[won], y[won], index, style="ring")]
        marks.append(Series(failed, x[~won], y[~won], index, style="cross"))
        figures.append(
            chart(
                f"{'base policy' if name == BASE else name}: {columns[-1]} (upwards) against {columns[0]}",
                marks,
                x_label=columns[0],
                x_range=spans[0],
                y_range=spans[1],
                x_format=number,
            )
        )
    return page.heading(3, run.name) + _where(kept, columns[0], x, telling.share, telling.p) + page.charts(figures)


def _where(kept: Episodes, column: str, values: np.ndarray, share: float, p: float) -> str:
    name = "steered" if "steered" in kept.policies else BASE
    low, high, failed, inside, other, outside = worst_quarter(values, kept.of(name))
    words = (
        f"Of all numbers of the first observation, quarters of {column} explain most of the success of one of the "
        f"policies ({share:.0%} of its variance; shuffled outcomes reach that with p = {p:.2g}). The "
        f"{'steered policy' if name == 'steered' else 'base policy'} fails in {failed} of {inside} episodes that start "
        f"with {column} in [{low:.3g}, {high:.3g}], and in {other} of the {outside} others."
    )
    return page.paragraph(words if p < 0.05 else f"{words} That may well be chance.", "soft")


def evaluations(run: Run) -> str:
    """``evaluations.csv`` as a table."""
    spent = [row["eval_env_steps"] for row in run.evaluations if row.get("eval_env_steps")]
    words = f"{run.name}: evaluations on the way ({max(spent):,} env steps)" if spent else f"{run.name}: evaluations"
    return page.details(words, page.values(run.name, run.evaluations))


def provenance(run: Run) -> str:
    """Settings, versions, and the command that makes the run again."""
    git = run.environment.get("git") or {}
    commit = f", commit {str(git.get('sha'))[:12]}{' with changes' if git.get('dirty') else ''}" if git else ""
    version = (run.environment.get("packages") or {}).get("dsrl", "?")
    inside = page.paragraph(f"With dsrl {version}{commit}:", "soft") + page.code(command(run.config))
    inside += page.paragraph(f"Base policy {run.base.get('path')}, sha256 {run.base.get('sha256')}.", "soft")
    inside += page.heading(3, "config.yaml") + page.code(yaml.safe_dump(dict(run.config), sort_keys=False))
    inside += page.heading(3, "versions") + page.code(json.dumps(dict(run.environment), indent=1))
    return page.details(f"{run.name}: settings, versions, command", inside)


def command(config: Mapping[str, Any]) -> str:
    """``dsrl finetune`` with every setting that is not the default."""
    defaults = flat(to_dict(FinetuneConfig()))
    words = ["dsrl finetune"]
    for name, value in flat(config).items():
        if name in ("run_dir", "overwrite") or value is None or defaults.get(name) == value:
            continue
        flag = f"--{name.replace('_', '-')}"
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        words.append(flag if value is True else " ".join([flag, *(shlex.quote(str(each)) for each in values)]))
    return " \\\n  ".join(words)
