"""The table of ``guidance.py``: every setting, and the one that was chosen on other starts than those reported."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """All tasks, one section each."""
    lines = [
        "# Guidance (CFGRL)",
        "",
        "By `benchmarks/guidance.py`. Success is the mean over seeds, in brackets the lowest and the highest seed. The",
        "chosen setting has the highest mean success, then the shortest episodes, on starts that are not reported.",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += ["", f"## {task}", "", "| method | setting | success | env steps | network calls | seeds |"]
        lines += ["|---|---|---|---|---|---|"]
        of_task = [row for row in rows if row["task"] == task]
        for method in dict.fromkeys(row["method"] for row in of_task):
            lines += _method(method, [row for row in of_task if row["method"] == method])
    return "\n".join(lines) + "\n"


def chosen(rows: Sequence[Row]) -> str | None:
    """The best setting of one method on the starts that are not reported, by the seeds that all settings have; None
    where there are none."""
    settings = {setting: found for setting, found in by_setting(rows).items() if found[0]["choice_success_rate"]}
    if not settings:
        return None
    common = set.intersection(*({row["seed"] for row in found} for found in settings.values()))

    def rank(setting: str) -> tuple[float, float]:
        found = [row for row in settings[setting] if row["seed"] in common]
        success, steps = (
            mean(float(row[f"choice_{name}"]) for row in found) for name in ("success_rate", "mean_length")
        )
        return success, -steps

    return max(settings, key=rank)


def by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """In the order of the first seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


def _method(method: str, rows: Sequence[Row]) -> list[str]:
    best, lines = chosen(rows), []
    for setting, found in by_setting(rows).items():
        rates = [float(row["success_rate"]) for row in found]
        mark = " (chosen)" if setting == best and len(by_setting(rows)) > 1 else ""
        success = f"{mean(rates):.0%} [{100 * min(rates):.0f}, {100 * max(rates):.0f}]"
        steps = mean(float(row["mean_length"]) for row in found)
        calls = found[0]["network_calls"] or "-"
        lines.append(f"| {method} | {setting}{mark} | {success} | {steps:.0f} | {calls} | {len(found)} |")
    return lines
