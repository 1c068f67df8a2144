"""Small pieces of HTML. Everything that comes from a record passes through `escape`, without exception."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

GOOD = {"CERTIFIED", "pass", "yes", "proven"}
BAD = {"REFUTED", "TASK-FAIL", "INVALID", "NOT-PROVEN", "fail", "no"}
NOTHING = "–"


def escape(text: object) -> str:
    """Text that is inert between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def probe(name: str) -> str:
    """A probe's name that may wrap at its slashes, and only there."""
    return escape(name).replace("/", "/<wbr>")


def show(value: Any) -> str:
    """A number as a reader wants it; a dash for what was not measured. Plain text, not yet escaped."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) and abs(value) > 10**300:
        return "beyond 1e300"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value))
    if 0.1 <= abs(value) < 10:
        text = f"{value:.3f}"
        # 0.9996 must not read as 1: "all of them" is a different claim.
        return text if not text.endswith(".000") else f"{value:.6g}"
    return f"{value:.3g}" if abs(value) < 0.1 or abs(value) >= 1e6 else f"{value:.4g}"


def interval(low: Any, high: Any) -> str:
    """`low to high`, or a dash if an end is not known."""
    ends = show(low), show(high)
    return NOTHING if NOTHING in ends else f"{ends[0]} to {ends[1]}"


def tone(verdict: str) -> str:
    """`good`, `bad` or `info`: the colour class of a verdict."""
    return "good" if verdict in GOOD else "bad" if verdict in BAD else "info"


def badge(verdict: str) -> str:
    """The verdict as a word with a sign, so that colour is never alone."""
    sign = {"good": "✓ ", "bad": "✗ ", "info": ""}[tone(verdict)]
    return f'<span class="badge {tone(verdict)}">{sign}{escape(verdict)}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()) -> str:
    """A table of ready HTML cells; columns named in `numeric` are set flush right. Cards when narrow."""

    def cell(name: str, content: str, first: bool) -> str:
        kinds = ["number"] if name in numeric else ["meaning"] if name == "meaning" else []
        kinds += ["nothing"] if content == NOTHING else []  # a card leaves it out
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        if first:
            return f'<th scope="row">{content}</th>'
        return f'<td{kind} data-label="{escape(name)}">{content}</td>'

    top = "".join(f'<th scope="col"{" class=number" if name in numeric else ""}>{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(cell(n, c, i == 0) for i, (n, c) in enumerate(zip(head, row, strict=True))) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def section(title: str, body: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def missing(title: str, file: str, what: str) -> str:
    """The one line that stands where a section would have been."""
    return f'<p class="missing"><b>{escape(title)}</b>: not in this run ({escape(file)} {escape(what)}).</p>'


def figure(chart: str, caption: str) -> str:
    """A chart (ready SVG) with its caption (plain text)."""
    together = escape(caption.replace(" %", "\u202f%"))
    return f"<figure>{chart}<figcaption>{together}</figcaption></figure>"


def folded(title: str, body: str) -> str:
    """`body` behind a line that opens it."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
