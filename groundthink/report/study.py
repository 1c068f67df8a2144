"""The page of a study: its table beside the source's figures, and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groundthink.report import charts, html
from groundthink.report.read import Record, Run

COLUMNS = ("what", "source", "ours", "95 % interval", "n", "chance", "by seed", "wanted", "verdict")


def cells(line: Mapping[str, Any]) -> list[str]:
    """One line of the table as plain words, in the order of COLUMNS."""
    by_seed = ", ".join(html.show(value) for value in line["by_seed"].values())
    return [
        str(line["label"]),
        str(line["source"]),
        html.show(line["value"]),
        html.interval(line["low"], line["high"]),
        html.show(line["n"]),
        html.show(line["chance"]),
        by_seed,
        str(line["wanted"]) or html.NOTHING,
        str(line["verdict"]),
    ]


def headline(run: Run) -> str:
    """The question and how it came out."""
    record = _record(run)
    verdict = record.text("verdict")
    told = {"pass": "every judged line is met", "fail": "a judged line is missed", "info": "nothing was judged"}
    word = told.get(verdict, verdict)
    return (
        f'<div class="headline {html.tone(verdict)}">{html.badge(verdict)}<p>{html.escape(record.text("question"))}</p>'
        f'<span class="note">Form: {html.escape(record.text("size"))}. Seeds: '
        f"{html.escape(', '.join(map(str, record.items('seeds'))))}. In short: {word}.</span></div>"
    )


def table(run: Run) -> str:
    """Every line beside the source's figure."""
    record = _record(run)
    rows = []
    for line in record.records("lines"):
        for key in ("label", "source", "wanted", "verdict"):
            line.text(key)
        for key in ("value", "low", "high", "n", "chance"):
            line.number(key)
        line.record("by_seed").values()
        *words, verdict = cells(line.raw)
        rows.append([*map(html.escape, words), html.badge(verdict)])
    told = f"Source: {record.text('origin')} A share: the trials of all seeds with their Wilson interval. Any other:"
    told += " the mean of the seeds with Student's t over them. A bound must be met by every seed."
    note = f'<p class="note">{html.escape(told)}</p>'
    return html.section("Table", html.table(COLUMNS, rows, numeric=COLUMNS[2:7]) + note)


def curves(run: Run) -> str:
    """The curves, if there are any."""
    body = ""
    for curve in _record(run).records("curves"):
        series = [
            charts.Series(s.text("name"), *(s.numbers(key) for key in ("x", "y", "low", "high")))
            for s in curve.records("series")
        ]
        axes = charts.Axes(
            curve.text("x_label"),
            curve.text("y_label"),
            log_x=curve.raw.get("log_x") is True,
            y_limits=(0.0, 1.02) if curve.raw.get("share") is True else None,
        )
        body += html.figure(
            charts.lines(series, axes, label=curve.text("title")),
            f"{curve.text('title')}, with 95 % intervals.",
        )
    return html.section("Curves", body) if body else ""


def origin(run: Run) -> str:
    """What it was made with and on."""
    record = _record(run)
    told = {name: record.raw.get(name) for name in ("hardware", "commits", "seconds", "settings", "data")}
    rows = [[html.escape(name), html.escape(_words(value))] for name, value in told.items() if value is not None]
    return html.section("Made with", html.table(["what", "value"], rows))


SECTIONS = (table, curves, origin)


def _record(run: Run) -> Record:
    return run.records["study"]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return html.show(value)
