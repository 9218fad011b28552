"""How fast each method of ``steering.py`` reaches the level of its task: the arithmetic, and the tables in Markdown.

A seed that never reaches the level needs at least its whole budget, so every number is an interval, ``(low, high)``:
one point when it was measured, without an end when it was not reached. Medians and ratios of intervals are bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean, median
from typing import Any

Row = Mapping[str, Any]
Interval = tuple[float, float]

LEVEL = 0.9
REFERENCE = "reference"
_HINDSIGHT = "best of 8 noises, in hindsight"
CONTROLS = ("base, N(0, I)", "zero noise", "half the noise", _HINDSIGHT)
_TASKS = ("lift", "can", "pick-place", "hand-insert", "hammer")
_METHODS = ("na", "na-60", "na-exact", "na-demos", "sac", "ppo", REFERENCE)

_BASE_TEXT = """\
Base policies and what needs no learning, on the 100 fresh episodes of seed 0, and the base policy on those of every
seed of NA. The level is 90 %, or the best of 8 noises where that is less."""
_METHOD_TEXT = """\
Env steps and CPU seconds of training to the first evaluation (50 episodes) at the level: median over seeds, all seeds
in brackets. First: the first steered evaluation, median; off-policy agents have it right after their warm-up. Lowest:
the lowest evaluation minus the base policy, worst seed. Final: last agent on 100 fresh episodes. Ratios are to the
reference: 0.25 is a quarter of it. A seed that never reaches the level counts as more than its budget, so that `>` and
`<` are bounds."""


@dataclass(frozen=True)
class Seed:
    """One run, reduced."""

    steps: Interval
    """env steps to the first evaluation that reaches the level"""
    cpu: Interval | None
    """CPU seconds of training up to there; None where they were not measured"""
    first: float
    """success at the first evaluation of the steered policy"""
    dip: float
    """lowest evaluation on the way minus the base policy on the same episodes"""
    final: float
    """success of the last agent on fresh episodes"""


def level_of(task: str, final: Sequence[Row]) -> float:
    """What counts as solved: 90 %, or what the base policy has in it where that is less."""
    found = [row for row in final if (row["task"], row["method"], row["policy"]) == (task, "na", _HINDSIGHT)]
    return min([LEVEL, *(float(row["success_rate"]) for row in found if int(row["seed"]) == 0)])


def reached(curve: Sequence[Row], level: float, column: str) -> Interval | None:
    """``column`` at the first steered evaluation of at least ``level``; after the last one, when there is none."""
    steered = sorted((row for row in curve if row["policy"] == "steered"), key=lambda row: float(row["env_steps"]))
    hit = next((row for row in steered if float(row["success_rate"]) >= level - 1e-9), None)
    cell = (hit or steered[-1])[column]
    if cell in ("", None):
        return None
    return float(cell), float(cell) if hit else inf


def median_interval(intervals: Sequence[Interval]) -> Interval:
    """Where the median lies."""
    return median(low for low, _ in intervals), median(high for _, high in intervals)


def ratio(value: Interval, to: Interval) -> Interval:
    """Where ``value / to`` lies."""
    return value[0] / to[1] if to[1] else inf, value[1] / to[0] if to[0] else inf


def reduce_seed(curve: Sequence[Row], final: Sequence[Row], level: float) -> Seed:
    """The numbers of one run."""
    steps = reached(curve, level, "env_steps")
    if steps is None:
        raise ValueError("an evaluation lacks its env steps")
    base = next(float(row["success_rate"]) for row in curve if row["policy"] == "base")
    steered = [row for row in curve if row["policy"] == "steered"]
    return Seed(
        steps=steps,
        cpu=reached(curve, level, "cpu_seconds"),
        first=float(min(steered, key=lambda row: float(row["env_steps"]))["success_rate"]),
        dip=min(float(row["success_rate"]) for row in steered) - base,
        final=next(float(row["success_rate"]) for row in final if row["policy"] == "steered"),
    )


def reduce_all(curves: Sequence[Row], final: Sequence[Row]) -> dict[str, dict[str, list[Seed]]]:
    """``task -> method -> seeds``, in the order of the tables."""
    keys = {(row["task"], row["method"], int(row["seed"])) for row in final}
    order = {name: i for i, name in enumerate((*_TASKS, *_METHODS))}
    table: dict[str, dict[str, list[Seed]]] = {}
    for key in sorted(keys, key=lambda key: (order.get(key[0], 99), order.get(key[1], 99), key)):
        own = [
            [row for row in rows if (row["task"], row["method"], int(row["seed"])) == key] for rows in (curves, final)
        ]
        seed = reduce_seed(*own, level_of(key[0], final))
        table.setdefault(key[0], {}).setdefault(key[1], []).append(seed)
    return table


def cost(seeds: Sequence[Seed], name: str) -> Interval | None:
    """Median over seeds of ``steps`` or ``cpu``; None when it was not measured for all of them."""
    values = [getattr(seed, name) for seed in seeds]
    return None if not values or None in values else median_interval(values)


def ratios(table: Mapping[str, Mapping[str, Sequence[Seed]]], method: str, name: str) -> dict[str, Interval]:
    """``task -> cost of the method / cost of the reference``, where both were measured."""
    found = {}
    for task, methods in table.items():
        own, reference = cost(methods.get(method, ()), name), cost(methods.get(REFERENCE, ()), name)
        if own is not None and reference is not None:
            found[task] = ratio(own, reference)
    return found


def show(value: Interval | None, digits: int = 0) -> str:
    """An interval in a table: ``7``, ``> 7``, ``< 7``, ``5 to 7``, or ``?`` when nothing is known."""
    if value is None:
        return "–"
    low, high = (f"{end:,.{digits}f}" for end in value)
    if value[0] == value[1]:
        return low
    if value[1] == inf:
        return f"> {low}" if value[0] > 0 else "?"
    return f"{low} to {high}" if value[0] > 0 else f"< {high}"


def markdown(curves: Sequence[Row], final: Sequence[Row]) -> str:
    """The tables of everything that was measured."""
    table = reduce_all(curves, final)
    parts = [_BASE_TEXT, _base_table(table, final), _METHOD_TEXT, _method_table(table)]
    parts += ["Over tasks, the median of those ratios:", _overall_table(table)]
    return "\n\n".join(parts) + "\n"


def _base_table(table: Mapping[str, Mapping[str, Sequence[Seed]]], final: Sequence[Row]) -> str:
    lines = []
    for task in table:
        own = [row for row in final if (row["task"], row["method"]) == (task, "na")]
        rates = {row["policy"]: float(row["success_rate"]) for row in own if int(row["seed"]) == 0}
        base = [float(row["success_rate"]) for row in own if row["policy"] == CONTROLS[0]]
        cells = [f"{rates[name]:.0%}" if name in rates else "–" for name in CONTROLS]
        cells.append(_spread(mean(base), base) if base else "–")
        lines.append([task, *cells, f"{level_of(task, final):.0%}"])
    header = ["task", "base", "zero noise", "half the noise", "best of 8, in hindsight", "base, every seed", "level"]
    return _table(header, lines)


def _spread(middle: float, rates: Sequence[float]) -> str:
    return f"{middle:.0%} ({min(rates):.0%} to {max(rates):.0%})"


def _method_table(table: Mapping[str, Mapping[str, Sequence[Seed]]]) -> str:
    header = ["task", "method", "env steps to the level", "ratio", "CPU s", "ratio", "first", "lowest", "final"]
    lines = []
    for task, methods in table.items():
        for method, seeds in methods.items():
            final = [seed.final for seed in seeds]
            line = [task, method, f"{show(cost(seeds, 'steps'))} ({', '.join(show(s.steps) for s in seeds)})"]
            for name in ("steps", "cpu"):
                if name == "cpu":
                    line.append(show(cost(seeds, "cpu")))
                line.append(show(ratios(table, method, name).get(task), 2))
            line += [f"{median(s.first for s in seeds):.0%}", f"{100 * min(s.dip for s in seeds):+.0f}"]
            lines.append([*line, _spread(median(final), final)])
    return _table(header, lines)


def _overall_table(table: Mapping[str, Mapping[str, Sequence[Seed]]]) -> str:
    lines = []
    for method in _METHODS:
        seeds = [seed for methods in table.values() for seed in methods.get(method, ())]
        if not seeds:
            continue
        line = [method]
        for name in ("steps", "cpu"):
            values = list(ratios(table, method, name).values())
            line.append(show(median_interval(values), 2) + f" ({len(values)} tasks)" if values else "–")
        hit = sum(seed.steps[1] < inf for seed in seeds)
        lines.append([*line, f"{hit} of {len(seeds)}", f"{100 * min(seed.dip for seed in seeds):+.0f}"])
    return _table(["method", "env steps, ratio", "CPU s, ratio", "runs that reach the level", "lowest"], lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
