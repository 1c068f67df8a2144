"""The evidence part of the page, one function a section: certificate, recall, needle map, gates, language."""

from __future__ import annotations

import math

from groundthink.report import charts, html
from groundthink.report.read import Record, Run, damaged

NO_WORSE = 0.02  # bits per byte: the largest upper bound of the difference that counts as "no worse"


def headline(run: Run) -> str:
    """The verdict and its sentence, first on the page."""
    found = run.certificate
    if found is None:
        return (
            '<div class="headline"><span class="badge info">NOT CERTIFIED YET</span>'
            "<p>This run has no certificate (records/certificate.json is missing).</p></div>"
        )
    horizon = "infinite" if found.horizon is None else f"{found.horizon} tokens"
    return (
        f'<div class="headline {html.tone(found.verdict)}">{html.badge(found.verdict)}'
        f"<p>{html.escape(found.sentence)}</p>"
        f'<span class="note">Receptive horizon R: {horizon}. Seed {html.escape(found.seed)}.</span></div>'
    )


def summary(run: Run) -> str:
    """Questions and answers of the run, if it wrote any."""
    record = run.records.get("summary")
    if record is None:
        return html.missing("Summary", "records/summary.json", "is missing")
    rows = [
        [
            html.escape(r.text("question")),
            html.escape(r.text("answer")),
            html.badge(r.text("verdict", "info")),
        ]
        for r in record.records("rows")
    ]
    return html.section("In short", html.table(["question", "answer", "verdict"], rows))


def certificate(run: Run) -> str:
    """Every probe: value, interval, n, chance, threshold, verdict."""
    found = run.certificate
    if found is None:
        return html.missing("Certificate", "records/certificate.json", "is missing")
    rows = [
        [
            html.probe(r.name),
            html.escape(html.show(r.value)),
            html.escape(html.interval(r.low, r.high)),
            html.escape(html.show(r.n)),
            html.escape(html.show(r.chance)),
            html.escape(html.show(r.threshold)),
            html.badge(r.verdict),
            html.escape(r.meaning),
        ]
        for r in found.results
    ]
    head = ["probe", "value", "95 % interval", "n", "chance", "threshold", "verdict", "meaning"]
    return html.section("Certificate", html.table(head, rows, numeric=head[1:6]))


def recall(run: Run) -> str:
    """Share of right answers against distance, with the horizon drawn in."""
    record = run.records.get("recall_curves")
    if record is None:
        return html.missing("Recall against distance", "records/recall_curves.json", "is missing")
    horizon, chance = record.number("horizon"), record.number("chance")
    curves, rows = [], []
    for curve in record.records("curves"):
        name, points = curve.text("name"), curve.records("points")
        points.sort(key=lambda p: p.number("distance"))
        if any(not p.number("distance") > 0 for p in points):
            raise damaged(curve.where, "a point has no distance above 0")
        column = {k: [p.number(k) for p in points] for k in ("distance", "rate", "low", "high", "n")}
        Record({"rate": column["rate"]}, curve.where).shares("rate")
        curves.append(charts.Series(name, column["distance"], column["rate"], column["low"], column["high"]))
        for d, rate, low, high, n in zip(*column.values(), strict=True):
            cells = [name, html.show(d), html.show(rate), html.interval(low, high), html.show(n)]
            rows.append([html.escape(c) for c in cells])
    if not any(math.isfinite(y) for c in curves for y in c.y):
        return html.missing("Recall against distance", "records/recall_curves.json", "has no measured point")
    known = math.isfinite(horizon) and horizon > 0
    axes = charts.Axes(
        "distance from the fact to the question (tokens, doubling scale)",
        "share of right answers",
        log_x=True,
        y_limits=(-0.03, 1.05),
        marks=((horizon, f"R = {html.show(horizon)}"),) if known else (),
        ticks=tuple(_distance_ticks(curves, horizon)),
        chance=chance if math.isfinite(chance) else None,
        horizon=horizon if known else None,
    )
    words = "Bars are Wilson 95 % intervals."
    if math.isfinite(chance):
        words += f" The dotted line is chance ({html.show(chance)})."
    if known:
        words += " Shaded: distances within R, where the windows alone could answer; right of R only a state can."
    chart = charts.lines(curves, axes, label="Recall against distance: " + ", ".join(c.name for c in curves))
    head = ["reader", "distance", "share", "95 % interval", "n"]
    numbers = html.folded("The numbers", html.table(head, rows, numeric=head[1:]))
    return html.section("Recall against distance", html.figure(chart, words) + numbers)


def _distance_ticks(curves: list[charts.Series], horizon: float) -> list[tuple[float, str]]:
    """Every measured distance; multiples of the horizon say so."""
    ticks = []
    for distance in sorted({x for curve in curves for x in curve.x}):
        label = html.show(distance)
        if horizon > 0 and distance == horizon + 1:
            label += "\nR+1"
        elif horizon > 0 and distance > horizon and (distance / horizon).is_integer():
            label += f"\n{int(distance / horizon)}R"
        ticks.append((distance, label))
    return ticks


def needle(run: Run) -> str:
    """Needle map: share of right answers by depth and length."""
    where = "records/needle.json"
    record = run.records.get("needle")
    if record is None:
        return html.missing("Needle in text", where, "is missing")
    depths, lengths = record.numbers("depths"), record.numbers("lengths")
    rows = record.items("rates")
    rates = [Record({f"rates[{i}]": row}, where).shares(f"rates[{i}]") for i, row in enumerate(rows)]
    if len(rates) != len(depths) or any(len(row) != len(lengths) for row in rates):
        raise damaged(f"{where}, field rates", f"it is not {len(depths)} depths by {len(lengths)} lengths")
    if not depths or not lengths:
        return html.missing("Needle in text", where, "holds no measurement")
    trained = record.number("trained_length")
    inside = sum(length <= trained for length in lengths)
    marks = ((float(inside), f"longer than in training ({html.show(trained)}) →"),)
    axes = charts.Axes(
        "length of the text (tokens)",
        "where the needle lies",
        marks=marks if 0 < inside < len(lengths) else (),
    )
    chart = charts.heat_map(
        rates,
        [_depth(d) for d in depths],
        [html.show(length) for length in lengths],
        axes=axes,
        label="Needle map: right answers in percent by depth and text length",
    )
    words = (
        f"Right answers in percent, n = {html.show(record.number('n'))} a cell, "
        f"chance {_percent(record.number('chance'))}. 0 % deep is the start of the text."
    )
    if not marks[0][0]:
        words += f" All lengths are above the trained one ({html.show(trained)})."
    cells = [
        [_depth(depth), html.show(length), html.show(rate)]
        for depth, row in zip(depths, rates, strict=True)
        for length, rate in zip(lengths, row, strict=True)
    ]
    numbers = html.table(["needle at", "length", "share"], cells, numeric=["length", "share"])
    return html.section("Needle in text", html.figure(chart, words) + html.folded("The numbers", numbers))


def _depth(depth: float) -> str:
    return f"{100 * depth:.0f} %" if 0 <= depth <= 1 else html.show(depth)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "not known"


def gates(run: Run) -> str:
    """Mean write strength and decay of each layer, by kind of token."""
    record = run.records.get("gates")
    if record is None:
        return html.missing("Gates", "records/gates.json", "is missing")
    panels: dict[str, dict[str, dict[str, float]]] = {}
    titles = {"beta": "write strength beta", "decay": "decay (share kept per token)"}
    for layer in record.records("layers"):
        for key, title in titles.items():
            if key in layer.raw and (values := layer.record(key).values()):
                panels.setdefault(title, {})[f"layer {html.show(layer.raw.get('layer'))}"] = values
    if not panels:
        return html.missing("Gates", "records/gates.json", "holds no measured layer")
    chart = charts.dots(panels, row_label="", label="Mean gates by layer and kind of token")
    words = "Means over held-out episodes. A gate that separates the kinds writes facts and skips filler."
    return html.section("Gates", html.figure(chart, words))


def language(run: Run) -> str:
    """Bits per byte of the model and its twin, and the paired difference."""
    record = run.records.get("language")
    if record is None:
        return html.missing("Language", "records/language.json", "is missing")
    rows = [[html.escape(n), html.show(v)] for n, v in record.record("bits_per_byte").values().items()]
    body = html.table(["who", "bits per byte"], rows, numeric=["bits per byte"])
    if "difference" in record.raw:
        gap = record.record("difference")
        low, mean, high = (gap.number(k) for k in ("low", "mean", "high"))
        words = (
            f"Paired difference, model minus twin: {html.show(mean)} bits per byte, 95 % interval "
            f"{html.interval(low, high)}, over {html.show(record.number('documents'))} held-out documents."
        )
        if math.isfinite(high):
            fine = high <= NO_WORSE
            words += f" The upper bound is {'at most' if fine else 'above'} {NO_WORSE}: " + (
                "no worse than the twin." if fine else "not shown to be no worse than the twin."
            )
        body += f"<p>{html.escape(words)}</p>"
    return html.section("Language", body)


def sample(run: Run) -> str:
    """What the model writes."""
    record = run.records.get("sample")
    if record is None:
        return html.missing("Text sample", "records/sample.json", "is missing")
    prompt, text = html.escape(record.text("prompt", "")), html.escape(record.text("text"))
    return html.section("Text sample", f'<pre><span class="prompt">{prompt}</span>{text}</pre>')
