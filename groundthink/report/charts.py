"""Charts as inline SVG, drawn twice, wide and narrow for a phone; the style sheet shows one of them.

Colours are written as placeholders that become CSS variables, so one chart serves light and dark pages.
matplotlib is imported when the first chart is drawn, never before; pyplot and its global state are not used.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
import textwrap
import zlib
from collections.abc import Sequence
from typing import Any

# Placeholder colour -> CSS variable. The series are told apart by marker and dash as well as by colour.
_INK, _FAINT, _SHADE, _PAPER = "#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13"
_SERIES = tuple(f"#0a0b2{i}" for i in range(7))
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _SHADE: "--shade", _PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(_SERIES)
}
_MARKERS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: `x`, `y` of equal length, NaN where not measured; `low`, `high`: interval ends, or empty."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = dataclasses.field(default_factory=list)
    high: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Axes:
    """What a line chart shows besides its lines.

    Attributes:
        x_label, y_label: what the axes count, with the unit.
        log_x: base-2 logarithmic x axis; every x must be positive.
        y_limits: fixed ends of the y axis, or None to fit the lines.
        marks: vertical lines, (x, label); a label that has no room is dropped (captions name all of them).
        ticks: x ticks, (x, label), or empty for matplotlib's own; those that would collide are dropped.
        chance: height of the dashed chance line, or None.
        horizon: everything left of it is shaded and named, or None.
        markers: draw the single points.
    """

    x_label: str
    y_label: str
    log_x: bool = False
    y_limits: tuple[float, float] | None = None
    marks: tuple[tuple[float, str], ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    chance: float | None = None
    horizon: float | None = None
    markers: bool = True


def lines(series: list[Series], axes: Axes, *, label: str) -> str:
    """Line chart with labels at the line ends (wide) or a legend below (narrow). `label` is read aloud."""
    return _both(lambda narrow: _lines(series, axes, narrow), label)


def heat_map(
    rates: list[list[float]],
    rows: list[str],
    columns: list[str],
    *,
    axes: Axes,
    label: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """Rates [row][column] in 0..1 as coloured cells with their percentage; NaN cells stay empty.

    With `limits`, the ends of the colours, the cells are numbers of any size and show as such.
    `axes.marks` are borders between columns: (number of columns left of it, label).
    """
    return _both(lambda narrow: _heat_map(rates, rows, columns, axes, narrow, limits), label)


def dots(panels: dict[str, dict[str, dict[str, float]]], *, row_label: str, label: str) -> str:
    """Dot chart: panel -> row -> kind -> value in 0..1; kinds share colour and marker across the panels."""
    return _both(lambda narrow: _dots(panels, row_label, narrow), label)


def _both(draw: Any, label: str) -> str:
    import matplotlib

    # One unit of the drawing becomes about 1.3 pixels on the page, so 10 here is 13 there.
    style: Any = {
        "font.size": 10,
        "font.family": ["DejaVu Sans"],
        "text.parse_math": False,  # a "$" in a name is a dollar sign
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": _FAINT,
        "grid.linewidth": 0.6,
        "lines.linewidth": 2.0,
        "lines.markersize": 5.5,
        "lines.solid_capstyle": "round",
        "figure.dpi": 72,
    }
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    style |= {"axes.edgecolor": _INK, "legend.frameon": False, "axes.linewidth": 0.8}
    parts = []
    for narrow in (False, True):
        size = "narrow" if narrow else "wide"
        with matplotlib.rc_context(style):
            figure = draw(narrow)
            svg = _svg(figure, prefix=f"c{zlib.crc32((label + size).encode()):x}-")
        parts.append(f'<div class="{size}" role="img" aria-label="{html.escape(label, quote=True)}">{svg}</div>')
    return "".join(parts)


def _svg(figure: Any, prefix: str) -> str:
    """The drawing as an element for an HTML page: own ids, CSS colours, no prolog, no addresses."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view, "matplotlib always writes a viewBox"
    body = re.sub(r'(<[^<>]*?\bid=")', rf"\g<1>{prefix}", body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'<svg {view.group()} aria-hidden="true" focusable="false">{body}'


def _new(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finite(values: list[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _wrapped(label: str, narrow: bool) -> str:
    return "\n".join(textwrap.wrap(label, 38 if narrow else 90))


def _named(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 46)) or " "


def _lines(series: list[Series], axes: Axes, narrow: bool) -> Any:
    shown = [s for s in series if _finite(s.y)]
    legend = sum(0.06 + 0.16 * (1 + _named(s.name).count("\n")) for s in shown)  # inches
    figure = _new(4.1, 3.2 + legend) if narrow else _new(9.6, 4.3)
    ax = figure.subplots()
    if axes.log_x:
        ax.set_xscale("log", base=2)
        ax.minorticks_off()
    for i, line in enumerate(shown):
        _draw(ax, line, i, axes.markers)
    ax.set_xlabel(_wrapped(axes.x_label, narrow))
    ax.set_ylabel(axes.y_label)
    ax.margins(x=0.03)
    if axes.y_limits:
        ax.set_ylim(*axes.y_limits)
    else:
        ax.margins(y=0.08)
    ax.autoscale_view()
    ax.set_xlim(*ax.get_xlim())
    ax.set_ylim(*ax.get_ylim())
    _marks(ax, axes, narrow)
    if not axes.log_x:
        ax.locator_params(axis="x", integer=True)
    if axes.ticks:
        _ticks(ax, axes.ticks, narrow)
    labels = [(s.name, _last(s.y), _SERIES[i % 7]) for i, s in enumerate(shown)]
    low, high = ax.get_ylim()
    if axes.chance is not None and low <= axes.chance <= high:
        ax.axhline(axes.chance, color=_INK, linewidth=1.2, linestyle=(0, (1.5, 2)), label="chance")
        labels.append(("chance", axes.chance, _INK))
    if narrow:
        figure.legend(loc="outside lower left", fontsize=9.5, borderaxespad=0, labelspacing=0.25)
    else:
        _end_labels(ax, labels)
    return figure


def _draw(ax: Any, line: Series, i: int, markers: bool) -> None:
    look = {
        "color": _SERIES[i % 7],
        "linestyle": _DASHES[i % 4],
        "label": _named(line.name),
    }
    ax.plot(
        line.x,
        line.y,
        marker=_MARKERS[i % 7] if markers or len(_finite(line.y)) == 1 else None,
        **look,
        zorder=3 - i * 0.01,
    )
    if line.low and line.high:
        ends = [
            (x, low, high)
            for x, low, high in zip(line.x, line.low, line.high, strict=True)
            if all(map(math.isfinite, (x, low, high)))
        ]
        if ends:
            ax.vlines(*zip(*ends, strict=True), color=_SERIES[i % 7], linewidth=1.3, alpha=0.8)


def _last(values: list[float]) -> float:
    return _finite(values)[-1]


def _fraction(ax: Any, x: float) -> float:
    """Where `x` stands on the x axis, 0 left and 1 right."""
    left, right = ax.get_xlim()
    if ax.get_xscale() == "log":
        left, right, x = math.log(left), math.log(right), math.log(x)
    return (x - left) / (right - left)


def _marks(ax: Any, axes: Axes, narrow: bool) -> None:
    """The shaded horizon and the vertical lines, each label where it has room."""
    letter = 0.03 if narrow else 0.0105  # width of a letter as a share of the axis
    above = ax.get_xaxis_transform()
    if axes.horizon is not None and _fraction(ax, axes.horizon) > 0:
        ax.axvspan(ax.get_xlim()[0], axes.horizon, color=_SHADE, linewidth=0, zorder=0)
    marks = sorted(axes.marks)
    for i, (x, label) in enumerate(marks):
        start = _fraction(ax, x)
        if not 0 <= start <= 1:
            continue
        ax.axvline(x, color=_INK, linewidth=1.0, alpha=0.75 if len(marks) < 6 else 0.3, zorder=1)
        end = _fraction(ax, marks[i + 1][0]) if i + 1 < len(marks) else 1.0
        if (end - start) >= letter * len(label):
            ax.text(x, 1.015, label, transform=above, ha="left", va="bottom", fontsize=9)
        elif start >= letter * len(label) and len(marks) == 1:
            ax.text(x, 1.015, label, transform=above, ha="right", va="bottom", fontsize=9)


def _ticks(ax: Any, ticks: tuple[tuple[float, str], ...], narrow: bool) -> None:
    kept: list[tuple[float, str]] = []
    for x, label in ticks:
        widest = max(len(word) for word in label.split("\n"))
        room = (0.036 if narrow else 0.014) * (widest + 1)
        if not kept or _fraction(ax, x) - _fraction(ax, kept[-1][0]) >= room:
            kept.append((x, label))
    ax.set_xticks([x for x, _ in kept], labels=[label for _, label in kept])


def _end_labels(ax: Any, labels: list[tuple[str, float, str]]) -> None:
    """Names at the right edge, as near to their line's end as room allows, each tied to it by a thin line."""
    low, high = ax.get_ylim()
    gap = 0.062
    # A value outside the axis gets its label at the edge; far outside it would blow up the layout.
    rows = sorted((min(1.0, max(0.0, (y - low) / (high - low))), name, c) for name, y, c in labels)
    places: list[float] = []
    for height, _, _ in rows:
        places.append(max(height, places[-1] + gap) if places else height)
    if places and places[-1] > 1.0:
        places[-1] = 1.0
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    for (height, name, colour), place in zip(rows, places, strict=True):
        short = name if len(name) <= 26 else name[:13] + "…" + name[-12:]
        ax.annotate(
            short,
            xy=(1.0, height),
            xytext=(1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontweight="bold" if colour != _INK else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out more on `colour` (relative luminance of WCAG)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if luminance > 0.179 else "#ffffff"


def _heat_map(
    rates: list[list[float]],
    rows: list[str],
    columns: list[str],
    axes: Axes,
    narrow: bool,
    limits: tuple[float, float] | None,
) -> Any:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    cell = 0.34 if len(rows) <= 20 else 6.8 / len(rows)
    low, high = limits or (0.0, 1.0)
    between = (high - low) or 1.0  # one value alone has no ends
    figure = _new(4.1 if narrow else 9.6, 1.3 + cell * len(rows))
    ax = figure.subplots()
    ax.grid(visible=False)
    numbers = (
        len(columns) <= (8 if narrow else 20) and len(rows) <= 20
    )  # more would be too small to read; the table has them
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            known = math.isfinite(rate)
            shade: Any = colormaps["cividis"](min(max((rate - low) / between, 0.0), 1.0)) if known else _SHADE
            ax.add_patch(Rectangle((j, i), 1, 1, facecolor=shade, edgecolor=_PAPER, linewidth=1.5))
            if not known:
                text, ink = "–", _INK
            else:
                text, ink = f"{rate:.2g}" if limits else f"{100 * rate:.0f}", _readable_on(shade)
            if numbers:
                ax.text(j + 0.5, i + 0.53, text, ha="center", va="center", color=ink, fontsize=9)
    ax.set_xlim(0, len(columns))
    ax.set_ylim(len(rows), 0)
    ax.set_xlabel(_wrapped(axes.x_label, narrow))
    ax.set_ylabel(axes.y_label)
    step = max(1, math.ceil(len(columns) * max(map(len, columns)) / (34 if narrow else 90)))
    ax.set_xticks([j + 0.5 for j in range(0, len(columns), step)], labels=columns[::step])
    every = math.ceil(len(rows) / 20)
    ax.set_yticks([i + 0.5 for i in range(0, len(rows), every)], labels=rows[::every])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for x, label in axes.marks:
        ax.axvline(x, color=_PAPER, linewidth=5, clip_on=False)
        ax.axvline(x, color=_INK, linewidth=2, clip_on=False)
        left = x > len(columns) / 2
        ax.text(x, -0.12, label, ha="right" if left else "left", va="bottom", fontsize=9)
    return figure


def _dots(panels: dict[str, dict[str, dict[str, float]]], row_label: str, narrow: bool) -> Any:
    names = list(panels)
    rows = max(len(p) for p in panels.values())
    kinds = list(dict.fromkeys(kind for panel in panels.values() for row in panel.values() for kind in row))
    height = 0.9 + 0.34 * rows
    extra = 0.3 + 0.2 * (len(kinds) if narrow else math.ceil(len(kinds) / 4))
    if narrow:
        figure = _new(4.1, height * len(names) + extra)
        grid = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    else:
        figure = _new(9.6, height + extra)
        grid = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(grid, names, strict=True):
        layers = list(panels[name])
        for i, kind in enumerate(kinds):
            points = [(panels[name][row].get(kind, math.nan), y) for y, row in enumerate(layers)]
            look = {"color": _SERIES[i % 7], "marker": _MARKERS[i % 7], "linestyle": "none", "markersize": 7}
            ax.plot(*zip(*points, strict=True), label=kind if ax is grid[0] else None, **look, alpha=0.9)
        ax.set_title(name, loc="left", fontsize=10.5, fontweight="bold")
        ax.set_xlim(-0.04, 1.04)
        ax.set_ylim(len(layers) - 0.5, -0.5)
        ax.set_yticks(range(len(layers)), labels=layers)
        ax.set_ylabel(row_label)
        ax.tick_params(axis="y", length=0)
    columns = 1 if narrow else 4
    figure.legend(loc="outside lower left", ncols=columns, fontsize=9.5, borderaxespad=0, handletextpad=0.3)
    return figure
