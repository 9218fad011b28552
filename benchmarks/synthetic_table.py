"""The tables and the picture of ``synthetic.py``: ``synthetic.md`` and ``synthetic.png`` from its CSV files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from matplotlib.figure import Figure

from dsrl.files import read_rows, write_text

Row = Mapping[str, Any]


def write_results(folder: Path) -> None:
    """Of all parts that have rows."""
    sections = {part: section(rows) for part, section in SECTIONS.items() if (rows := read_rows(folder / _name(part)))}
    intro = "By `benchmarks/synthetic.py`; the rows are in the CSV files beside this page. In brackets: all seeds."
    write_text(folder / "synthetic.md", "\n\n".join(["# Synthetic data", intro, *sections.values()]) + "\n")
    if "mechanism" in sections:
        picture(read_rows(folder / _name("mechanism")), folder / "synthetic.png")


def _name(part: str) -> str:
    return f"synthetic_{part}.csv"


def mechanism(rows: Sequence[Row]) -> str:
    plain = {row["seed"]: float(row["dynamics_mse"]) for row in rows if row["setting"] == "unguided"}
    lines = []
    for setting, found in by(rows, "setting").items():
        error = (
            "0" if setting == "recorded" else spread(found, lambda r: float(r["dynamics_mse"]) / plain[r["seed"]], 2)
        )
        lines.append([setting, spread(found, lambda r: float(r["log_prob"]), 1), error, str(len(found))])
    return _section(
        "Mechanism",
        "Point mass: mean log-probability per env step under the target, and the error of the dynamics over that of "
        "unguided windows.\n`noise` and `cosine` are schedules, the number is the weight; `plain`: not normalised.",
        ["windows", "log-probability", "error of the dynamics", "seeds"],
        lines,
    )


def fqe(rows: Sequence[Row]) -> str:
    lines = [
        [
            data,
            spread(found, lambda r: float(r["rmse"]), 2),
            spread(found, lambda r: float(r["bias"]), 2),
            str(len(found)),
        ]
        for data, found in by(rows, "data").items()
    ]
    return _section(
        "Fitted Q evaluation",
        f"Point mass: error of the value of the target policy, mean over {rows[0]['fits']} critics per seed. The "
        f"values themselves have\na standard deviation of {mean(float(row['truth_std']) for row in rows):.2f}.",
        ["data", "root mean square", "bias", "seeds"],
        lines,
    )


def offline(rows: Sequence[Row]) -> str:
    lines = [
        [
            *(task, agent, method),
            spread(found, lambda r: float(r["return"]), 0),
            interval([float(row["return"]) for row in found]),
            share(found),
            str(len(found)),
        ]
        for (task, agent, method), found in sorted(by(rows, "task", "agent", "method").items(), key=_as_listed)
    ]
    return _section(
        "Offline agents",
        "Mean return of 20 episodes at the same number of gradient steps, its 95 % interval over seeds (Student's t), "
        "and\nthe share of the CPU time that sampling took.",
        ["task", "agent", "data", "return", "interval", "sampling", "seeds"],
        lines,
    )


def _as_listed(entry: tuple[Sequence[str], Any]) -> tuple[str, str, int]:
    task, agent, method = entry[0]
    return task, agent, ("real", "unguided", "guided").index(method)


def interval(values: Sequence[float]) -> str:
    """Of the mean over two to five seeds."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values))
    if quantile is None:
        return "?"
    half = quantile * stdev(values) / len(values) ** 0.5
    return f"[{mean(values) - half:,.0f}, {mean(values) + half:,.0f}]"


def share(rows: Sequence[Row]) -> str:
    return f"{mean(float(row['sampling_share']) for row in rows):.0%}"


def throughput(rows: Sequence[Row]) -> str:
    lines = [
        [row["device"], row["preset"], row["batch"], "yes" if row["guided"] == "True" else "no",
         f"{float(row['transitions_per_second']):,.0f}"]
        for row in rows
    ]  # fmt: skip
    return _section(
        "Throughput",
        "Windows of 16 env steps, 32 sampling steps, one thread, the fastest of four times.",
        ["device", "preset", "windows at once", "guided", "transitions per second"],
        lines,
    )


def na(rows: Sequence[Row]) -> str:
    lines = [
        [
            start,
            f"{middle(found)} ({', '.join(row['steps_to_80'] or 'never' for row in found)})",
            spread(found, lambda r: 100 * float(r["first"]), 0),
            spread(found, lambda r: 100 * float(r["last"]), 0),
            f"{mean(float(row['wall_seconds']) for row in found):.0f}",
            str(len(found)),
        ]
        for start, found in by(rows, "warm start").items()
    ]
    return _section(
        "Warm start of noise-aliased SAC",
        "The policy that ships, 5,000 env steps: env steps until an evaluation of 50 episodes reaches 80 %, median; "
        "the first\nevaluation behind the warm-up and the last one, in per cent; seconds of training.",
        ["warm start", "env steps to 80 %", "first", "last", "wall s", "seeds"],
        lines,
    )


def middle(rows: Sequence[Row]) -> str:
    found = median(float(row["steps_to_80"] or "inf") for row in rows)
    return "never" if found == float("inf") else f"{found:,.0f}"


SECTIONS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "mechanism": mechanism,
    "fqe": fqe,
    "offline": offline,
    "na": na,
    "throughput": throughput,
}


def by(rows: Iterable[Row], *keys: str) -> dict[Any, list[Row]]:
    """Rows by one column, or by several, in the order of the first; within each by seed."""
    found: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row.get("seed", 0))):
        found.setdefault(row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys), []).append(row)
    return found


def spread(rows: Sequence[Row], value: Callable[[Row], float], digits: int) -> str:
    """The mean over seeds, and all of them."""
    values = [value(row) for row in rows]
    return f"{mean(values):,.{digits}f} ({', '.join(f'{each:,.{digits}f}' for each in values)})"


def _section(title: str, text: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *lines]
    return "\n".join([f"## {title}", "", text, "", *(f"| {' | '.join(line)} |" for line in table)])


def picture(rows: Sequence[Row], out: Path) -> None:
    """Log-probability against the error of the dynamics, over the weights of either schedule."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for schedule, color in (("noise", "C0"), ("cosine", "C1")):
        for seed, found in by(rows, "seed").items():
            kept = [row for row in found if row["setting"] == "unguided" or row["setting"].split()[:-1] == [schedule]]
            points = sorted((float(row["log_prob"]), float(row["dynamics_mse"])) for row in kept)
            label = f"schedule {schedule}" if seed == rows[0]["seed"] else None
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, linewidth=1, label=label)
    axes.set(yscale="log", xlabel="log-probability under the target", ylabel="error of the dynamics")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
