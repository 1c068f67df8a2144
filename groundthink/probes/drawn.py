"""Pictures inside a record: plain values that the report draws, listed under `details["pictures"]` of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_LINES = 7  # the report tells so many apart


def series(
    name: str,
    points: Mapping[Any, float],
    *,
    low: Mapping[Any, float] | None = None,
    high: Mapping[Any, float] | None = None,
) -> dict[str, Any]:
    """One line: number x -> y, with the ends of intervals at the same x where there are any."""
    x = sorted(points)
    line: dict[str, Any] = {"name": name, "x": [float(i) for i in x], "y": [float(points[i]) for i in x]}
    if low is not None and high is not None:
        line |= {"low": [float(low[i]) for i in x], "high": [float(high[i]) for i in x]}
    return line


def lines(
    found: Sequence[dict[str, Any]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    chance: float | None = None,
    y_limits: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Lines of `series`; `log_x` wants every x above 0."""
    return {
        "kind": "lines", "title": title, "x_label": x_label, "y_label": y_label, "log_x": log_x, "chance": chance,
        "y_limits": None if y_limits is None else list(y_limits), "series": list(found)[:MOST_LINES],
    }  # fmt: skip


def grid(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    limits: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Coloured cells [row][column]; `limits` are the ends of the colours, None for those of the values."""
    return {
        "kind": "grid", "title": title, "x_label": x_label, "y_label": y_label,
        "rows": list(rows), "columns": list(columns), "values": [[float(x) for x in row] for row in values],
        "limits": None if limits is None else list(limits),
    }  # fmt: skip


def dots(panels: Mapping[str, Mapping[str, Mapping[str, float]]], *, title: str) -> dict[str, Any]:
    """Panel -> row -> kind -> value in 0..1."""
    plain = {name: {row: dict(kinds) for row, kinds in panel.items()} for name, panel in panels.items()}
    return {"kind": "dots", "title": title, "panels": plain}
