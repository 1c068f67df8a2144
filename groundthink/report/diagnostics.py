"""Questions that were asked one by one: their numbers, and the pictures that their records carry."""

from __future__ import annotations

import math

from groundthink.report import charts, html
from groundthink.report.read import Record, Run, as_record, damaged

MOST = 8  # pictures of one probe; a deep model has more, and they stay in its record
HEAD = ["probe", "value", "95 % interval", "n", "chance", "threshold", "verdict", "meaning"]


def probes(run: Run) -> str:
    """Every `records/probe_<name>.json`; empty if nothing was asked by itself."""
    body = "".join(_probe(name, results) for name, results in run.probes.items() if results)
    return html.section("Diagnostics", body) if body else ""


def _probe(name: str, results: tuple[Record, ...]) -> str:
    rows, pictures = [], []
    for result in results:
        numbers = [html.show(result.number(key)) for key in ("value", "n", "chance", "threshold")]
        between = html.interval(result.number("low"), result.number("high"))
        cells = [html.escape(x) for x in (numbers[0], between, *numbers[1:])]
        verdict = html.badge(result.text("verdict"))
        rows.append([html.probe(result.text("name")), *cells, verdict, html.escape(result.text("meaning"))])
        details = result.record("details") if "details" in result.raw else as_record({}, result.where)
        if "pictures" in details.raw:
            pictures += details.records("pictures")
    drawn = [_figure(picture, f"{name} {i}") for i, picture in enumerate(pictures[:MOST])]
    more = len(pictures) - MOST
    note = (
        f'<p class="note">{more} more pictures are in records/probe_{html.escape(name)}.json.</p>' if more > 0 else ""
    )
    return f"<h3>{html.probe(name)}</h3>" + html.table(HEAD, rows, numeric=HEAD[1:6]) + "".join(drawn) + note


def _figure(picture: Record, place: str) -> str:
    kind, title = picture.text("kind"), picture.text("title")
    draw = {"lines": _lines, "grid": _grid, "dots": _dots}.get(kind)
    if draw is None:
        raise damaged(f"{picture.where}, field kind", f"{kind!r} is not lines, grid or dots")
    # A drawing's ids are made from its label, so no two labels may be the same.
    chart = draw(picture, f"{title} ({place})")
    return html.figure(chart, f"{title}.") if chart else ""


def _lines(picture: Record, label: str) -> str:
    log = picture.raw.get("log_x") is True
    found = []
    for one in picture.records("series"):
        columns = {key: one.numbers(key) for key in ("x", "y", "low", "high") if key in one.raw}
        if "x" not in columns or "y" not in columns or len({len(x) for x in columns.values()}) != 1:
            raise damaged(one.where, "x, y and the ends of intervals are not of one length")
        if not all(math.isfinite(x) and (x > 0 or not log) for x in columns["x"]):
            raise damaged(f"{one.where}, field x", "a place on the axis is no number, or not above 0")
        found.append(charts.Series(one.text("name"), **columns))
    if not any(math.isfinite(y) for line in found for y in line.y):
        return ""
    chance, ends = picture.number("chance"), _limits(picture, "y_limits")
    axes = charts.Axes(
        picture.text("x_label"),
        _short(picture.text("y_label"), 48),
        log_x=log,
        y_limits=ends,
        ticks=tuple((x, html.show(x)) for x in sorted({x for line in found for x in line.x})) if log else (),
        chance=chance if math.isfinite(chance) else None,
        markers=log,
    )
    return charts.lines(found, axes, label=label)


def _grid(picture: Record, label: str) -> str:
    rows, columns = ([_short(html.show(x)) for x in picture.items(key)] for key in ("rows", "columns"))
    where = f"{picture.where}, field values"
    values = [Record({"row": row}, where).numbers("row") for row in picture.items("values")]
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise damaged(where, f"it is not {len(rows)} rows by {len(columns)} columns")
    known = [x for row in values for x in row if math.isfinite(x)]
    if not known:
        return ""
    limits = _limits(picture, "limits") or (min(known), max(known))
    axes = charts.Axes(picture.text("x_label"), _short(picture.text("y_label")))
    return charts.heat_map(values, rows, columns, axes=axes, label=label, limits=limits)


def _dots(picture: Record, label: str) -> str:
    panels: dict[str, dict[str, dict[str, float]]] = {}
    found = picture.record("panels")
    for title in found.raw:
        panel = found.record(title)
        panels[_short(title)] = {_short(row): panel.record(row).values() for row in panel.raw}
    if not any(kinds for panel in panels.values() for kinds in panel.values()):
        return ""
    return charts.dots(panels, row_label="", label=label)


def _short(label: str, most: int = 30) -> str:
    """A label that leaves the drawing some room; its middle goes first."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def _limits(picture: Record, key: str) -> tuple[float, float] | None:
    if picture.raw.get(key) is None:
        return None
    ends = picture.numbers(key)
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise damaged(f"{picture.where}, field {key}", f"{ends} are no two ends, the lower one first")
    return ends[0], ends[1]
