"""The training part of the page: losses and evaluations against step, speed, faults. Reads events only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from groundthink.report import charts, html
from groundthink.report.read import Record, Run

POINTS = 240  # of a drawn curve; more cannot be told apart on the page
DRAWN = 1e12  # beyond it a number is a fault, and would flatten every curve beside it
SHOWN_FAULTS = 20


def losses(run: Run) -> str:
    """Loss by source for the model, total loss for the twins."""
    curves = _loss_curves(run)
    if not curves:
        return html.missing("Loss curves", "events.jsonl", "has no step with a finite loss")
    phases = _phases(run.events)
    axes = charts.Axes("step", "loss (nats per predicted token)", marks=phases, markers=False)
    caption = f"Means over up to {POINTS} groups of steps."
    if phases:
        caption += " Phases: " + ", ".join(f"{name} from step {int(x)}" for x, name in phases) + "."
    chart = charts.lines(curves, axes, label="Training loss against step: " + ", ".join(c.name for c in curves))
    return html.section("Training", html.figure(chart, caption) + _facts(run))


def evaluations(run: Run) -> str:
    """What was measured during training: shares in one chart, everything else as last values."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in _of(run.events, "evaluation"):
        step = event.number("step")
        for name, value in event.record("metrics").values().items():
            found.setdefault(name, []).append((step, value))
    found = {name: [p for p in points if abs(p[0]) < DRAWN] for name, points in found.items()}
    found = {name: points for name, points in found.items() if points}
    if not found:
        return html.missing("Measured during training", "events.jsonl", "has no evaluation")
    shares = {n: p for n, p in found.items() if all(0 <= v <= 1 for _, v in p)}
    drawn = dict(sorted(shares.items(), key=lambda item: -item[1][-1][1])[:7])
    body = ""
    if drawn:
        curves = [charts.Series(n, [x for x, _ in p], [y for _, y in p]) for n, p in drawn.items()]
        axes = charts.Axes("step", "share", y_limits=(-0.03, 1.05), marks=_phases(run.events))
        chart = charts.lines(curves, axes, label="Measured during training: " + ", ".join(drawn))
        more = f" {len(shares) - len(drawn)} more are in the table." if len(shares) > len(drawn) else ""
        body += html.figure(chart, "Shares between 0 and 1, measured at the steps marked." + more)
    rows = [[html.escape(n), html.show(p[-1][1]), html.show(p[-1][0])] for n, p in sorted(found.items())]
    last = html.table(["measure", "last value", "at step"], rows, numeric=["last value", "at step"])
    body += html.folded("Last values", last) if drawn else last
    return html.section("Measured during training", body)


def _of(events: Sequence[Record], kind: str) -> list[Record]:
    return [event for event in events if event.raw.get("event") == kind]


def _phases(events: Sequence[Record]) -> tuple[tuple[float, str], ...]:
    found = [(e.number("step"), e.text("phase", "")) for e in _of(events, "phase") if e.raw.get("action") != "end"]
    return tuple((x, name) for x, name in found if abs(x) < DRAWN and name)


def _loss_curves(run: Run) -> list[charts.Series]:
    steps = _of(run.events, "step")
    by_source: dict[str, list[tuple[float, float]]] = {}
    for event in steps:
        parts = event.record("source_losses").values() if event.raw.get("source_losses") else {}
        for name, value in parts.items():
            by_source.setdefault(name, []).append((event.number("step"), value))
    if not by_source:
        by_source["loss"] = [(e.number("step"), e.number("loss")) for e in steps]
    for name, events in run.twins.items():
        twin = [(e.number("step"), e.number("loss")) for e in _of(events, "step")]
        shown = name if "twin" in name else f"{name} twin"
        by_source[f"{shown}, all sources"] = twin
    curves = [_thinned(name, points) for name, points in by_source.items()]
    return [curve for curve in curves if curve.x]


def _thinned(name: str, points: list[tuple[float, float]]) -> charts.Series:
    known = [p for p in points if abs(p[0]) < DRAWN and abs(p[1]) < DRAWN]  # false for NaN
    size = max(1, math.ceil(len(known) / POINTS))
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    return charts.Series(
        name,
        [statistics.fmean(x for x, _ in group) for group in groups],
        [statistics.fmean(y for _, y in group) for group in groups],
    )


def _facts(run: Run) -> str:
    steps = _of(run.events, "step")
    speeds = [v for v in (e.number("tokens_per_second") for e in steps) if math.isfinite(v)]
    tokens = [v for v in (e.number("tokens") for e in steps) if math.isfinite(v)]
    faults = _of(run.events, "fault")
    known = [v for v in (e.number("step") for e in steps) if math.isfinite(v)]
    rows = [["last step", html.show(max(known, default=None))]]
    if tokens:
        rows.append(["tokens seen", html.show(max(tokens))])
    if speeds:
        rows.append(["tokens per second, median", html.show(float(f"{statistics.median(speeds):.3g}"))])
    rows.append(["faults", str(len(faults))])
    body = html.table(["quantity", "value"], rows, numeric=["value"])
    if faults:
        lines = [", ".join(f"{k}: {html.show(v)}" for k, v in f.raw.items()) for f in faults[:SHOWN_FAULTS]]
        if len(faults) > SHOWN_FAULTS:
            lines.append(f"and {len(faults) - SHOWN_FAULTS} more")
        body += html.folded("Faults", "<pre>" + html.escape("\n".join(lines)) + "</pre>")
    return html.folded("Training in numbers", body)
