"""The progress display: what it makes of events, with and without a terminal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from groundthink.cli.progress import EVERY, Display
from tests.report.synthetic import events


def feed(seconds_per_event: float, lines: list[dict[str, Any]], **more: Any) -> list[str]:
    """The plain lines of a display that sees an event every so many seconds."""
    now, shown = [0.0], []
    with Display(
        {"bootcamp": 120, "more pairs": 180}, terminal=False, clock=lambda: now[0], write=shown.append, **more
    ) as display:
        for event in lines:
            now[0] += seconds_per_event
            display.on_event(event)
    return shown


def test_a_plain_line_every_fifteen_seconds() -> None:
    steps = [{"event": "step", "step": i, "phase": "bootcamp", "loss": 2.0} for i in range(1, 101)]
    shown = feed(1.0, steps)
    assert len(shown) == math.ceil(100 / EVERY)
    assert shown[-1] == "step 91  bootcamp 90/120  loss 2.000"


def test_phases_faults_and_ends_are_told_at_once() -> None:
    shown = feed(0.001, events(steps=60))
    assert "phase bootcamp, from step 0" in shown
    assert "phase integration, from step 30" in shown
    assert "fault at step 17: gradient is not finite" in shown
    assert shown[-1].startswith("step 60  integration")
    assert "kv_recall 0" in shown[-1]
    assert "tokens/s 14,5" in shown[-1]


def test_the_end_of_a_phase_starts_nothing() -> None:
    lines = [
        {"event": "phase", "phase": "bootcamp", "step": 0, "action": "begin"},
        {"event": "phase", "phase": "bootcamp", "step": 9, "action": "end", "reason": "cap"},
        {"event": "phase", "phase": "more pairs", "step": 9, "action": "begin"},
    ]
    assert feed(0.001, lines) == ["phase bootcamp, from step 0", "phase more pairs, from step 9"]


def test_quiet_is_quiet() -> None:
    assert feed(20.0, events(steps=60), quiet=True) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_odd_events_break_nothing(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"event": None},
        {"event": "step"},
        {"event": "step", "step": 1, "phase": "[red]x", "loss": None, "tokens_per_second": math.nan},
        {"event": "evaluation", "step": 1, "metrics": None},
        {"event": "evaluation", "step": 1, "metrics": {"[/]": 0.5, "b": "text"}},
        {"event": "fault", "step": 1, "what": "[/red] $%s"},
        {"event": "no such thing", "step": "x"},
    ]
    with Display({}, terminal=terminal) as display:
        for event in [*odd, *events(steps=60)]:
            display.on_event(event)
    err = capsys.readouterr().err
    assert "[/red] $%s" in err
    assert "integration" in err
