"""Pieces of the report as HTML; everything that comes from a file or a user is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from dsrl.film_strip import Strip, data_uri

_RATES = {"success_rate", "success_low", "success_high", "held_rate"}
_HEADS = {
    "env_steps": "env steps",
    "success_rate": "success",
    "success_low": "low",
    "success_high": "high",
    "mean_return": "return",
    "mean_length": "length",
    "held_rate": "held",
    "mean_jerk": "jerk",
    "eval_env_steps": "steps of evaluation",
    "wall_seconds": "wall, s",
    "cpu_seconds": "CPU, s",
}


def page(title: str, body: str, footer: str) -> str:
    """The whole document; ``body`` is HTML, the others are text."""
    template = Template(files("dsrl").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body, footer=escape(footer))


def heading(level: int, text: str) -> str:
    """``<h2>``."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """``<p>``, of a class of the page's."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def charts(figures: Iterable[str], kind: str = "") -> str:
    """Figures side by side where there is room."""
    found = "".join(figures)
    return f'<div class="charts {kind}">{found}</div>' if found else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Words and numbers as they are; a column of which nothing is known (``-``) is left out."""
    rows = list(rows)
    known = [i for i in range(len(heads)) if any(row[i] != "-" for row in rows)]
    heads, rows = [heads[i] for i in known], [[row[i] for i in known] for row in rows]
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def values(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a CSV file; what stands in it is kept beside what is shown (``data-value``)."""
    columns = [column for column in (rows[0] if rows else ()) if any(row.get(column) is not None for row in rows)]
    head = "".join(f"<th>{escape(_HEADS.get(column, column))}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td data-name="{escape(column)}" data-value="{escape(str(row.get(column)))}">'
            f"{escape(_shown(column, row.get(column)))}</td>"
            for column in columns
        )
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="table"><table data-run="{escape(name)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def details(summary: str, inside: str) -> str:
    """Folded away until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def code(text: str) -> str:
    """A block that wraps."""
    return f"<pre>{escape(text)}</pre>"


def strip(words: str, film: Strip) -> str:
    """The frames of an episode with what it is."""
    images = "".join(
        f'<img src="{data_uri(frame)}" alt="{escape(f"{words}, env step {step}")}" title="env step {step}">'
        for step, frame in zip(film.steps, film.frames, strict=True)
    )
    return f'{paragraph(words, "soft")}<div class="strip">{images}</div>'


def interval(low: float, high: float) -> str:
    """``[79, 92]`` of rates."""
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def _shown(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column in _RATES:
        return f"{100 * value:.1f} %"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
