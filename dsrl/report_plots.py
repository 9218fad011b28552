"""Charts as SVG text: they take the colours of the page, need no font and no network, and can be read on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10
from typing import Literal

import numpy as np

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 36
_MOST_DOTS = 60
COLOURS = 6
"""how many the page has"""


@dataclass(frozen=True)
class Series:
    """A line, its interval, or points."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: Literal["line", "thin", "dotted", "cross", "ring"] = "line"


@dataclass(frozen=True)
class Level:
    """A horizontal line with an interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def percent(value: float) -> str:
    """``74 %``."""
    return f"{100 * value:.0f} %"


def count(value: float) -> str:
    """``12k``."""
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    levels: Sequence[Level] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_format: Callable[[float], str] = count,
    y_format: Callable[[float], str] = number,
) -> str:
    """A figure with a caption, a chart and a legend, as HTML."""
    frame = _Frame(
        x_range or _span([s.x for s in series], zero=True),
        y_range or _span([v for s in series for v in (s.y, s.low, s.high) if v is not None] + _values(levels)),
    )
    parts = [frame.axes(x_format, y_format, x_label)]
    parts += [frame.level(level) for level in levels]
    parts += [frame.band(s) for s in series if s.low is not None and s.high is not None]
    parts += [frame.draw(s, x_format, y_format) for s in series]
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{_legend(series, levels, y_format)}</figure>"


class _Frame:
    """From values to places in the picture."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{self.x(a)},{self.y(b)}" for a, b in zip(x, y, strict=True) if isfinite(b))

    def axes(self, x_format: Callable[[float], str], y_format: Callable[[float], str], x_label: str) -> str:
        parts = []
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5}" text-anchor="end">{escape(y_format(tick))}</text>')
        bottom = _HEIGHT - _BOTTOM
        for tick in ticks(*self.x_range):
            x = self.x(tick)
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{escape(x_format(tick))}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)

    def level(self, level: Level) -> str:
        y, left, right = self.y(level.value), _LEFT, _WIDTH - _RIGHT
        line = f'<line class="level" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        if level.low is None or level.high is None:
            return line
        top, bottom = self.y(level.high), self.y(level.low)
        width, height = right - left, round(bottom - top, 1)
        return f'<rect class="level-band" x="{left}" y="{top}" width="{width}" height="{height}"/>{line}'

    def band(self, s: Series) -> str:
        assert s.low is not None and s.high is not None
        if len(s.x) == 1:
            x = self.x(s.x[0])
            return (
                f'<line class="c{s.colour} thin" x1="{x}" x2="{x}" y1="{self.y(s.low[0])}" y2="{self.y(s.high[0])}"/>'
            )
        around = f"{self.points(s.x, s.low)} {self.points(s.x[::-1], s.high[::-1])}"
        return f'<polygon class="c{s.colour} band" points="{around}"/>'

    def draw(self, s: Series, x_format: Callable[[float], str], y_format: Callable[[float], str]) -> str:
        if s.style in ("cross", "ring"):
            return "".join(self._mark(s, a, b) for a, b in zip(s.x, s.y, strict=True))
        line = f'<polyline class="c{s.colour} {s.style}" points="{self.points(s.x, s.y)}"/>'
        if s.style != "line" or len(s.x) > _MOST_DOTS:
            return line
        dots = (
            f'<circle class="c{s.colour} dot" cx="{self.x(a)}" cy="{self.y(b)}" r="2.6">'
            f"<title>{escape(f'{s.label}: {y_format(b)} at {a:,.0f}')}</title></circle>"
            for a, b in zip(s.x, s.y, strict=True)
            if isfinite(b)
        )
        return line + "".join(dots)

    def _mark(self, s: Series, a: float, b: float) -> str:
        x, y = self.x(a), self.y(b)
        if s.style == "ring":
            return f'<circle class="c{s.colour} ring" cx="{x}" cy="{y}" r="3"/>'
        return f'<path class="c{s.colour} cross" d="M{x - 3} {y - 3}l6 6m0-6l-6 6"/>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two values, at most six of them."""
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = int(np.ceil(low / step - 1e-9))
    found = []
    for index in range(first, first + most + 2):
        if index * step <= high + 1e-9 * step:
            found.append(round(index * step, 12))
    return found


def _span(values: Sequence[np.ndarray], zero: bool = False) -> tuple[float, float]:
    """A range with some air that is not empty."""
    known = np.concatenate([np.asarray(v, float).ravel() for v in values] or [np.zeros(1)])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    air = 0.0 if zero else 0.06 * (high - low)
    # what is never negative is not drawn as if it were
    return (max(low - air, 0.0) if low >= 0 else low - air), high + air


def _values(levels: Sequence[Level]) -> list[np.ndarray]:
    return [np.array([v for v in (level.value, level.low, level.high) if v is not None]) for level in levels]


def _legend(series: Sequence[Series], levels: Sequence[Level], y_format: Callable[[float], str]) -> str:
    items, seen = [], set()
    for s in series:
        if s.label and (s.label, s.style) not in seen:
            seen.add((s.label, s.style))
            mark = {"cross": "×", "ring": "○", "dotted": "┄"}.get(s.style, "—")
            items.append(f'<li><span class="key c{s.colour}">{mark}</span> {escape(s.label)}</li>')
    items += [f'<li><span class="key level-key">┄</span> {escape(level.label)}</li>' for level in levels if level.label]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""
