"""One progress display for every verb that trains, fed by events; plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

EVERY = 15.0  # seconds between plain lines


class Display:
    """Shows where a run stands. Use it as a context manager and hand `on_event` to `train`.

    Args:
        phases: name of each phase -> steps it takes at most; without an entry the bar has no end.
        quiet: show nothing.
        terminal: draw a live bar; None asks the standard error stream.
        clock: seconds, for tests.
        write: where plain lines go; None writes to standard error.
    """

    def __init__(
        self,
        phases: Mapping[str, int],
        *,
        quiet: bool = False,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
    ) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._phases, self._quiet, self._clock = dict(phases), quiet, clock
        self._live = self._console.is_terminal if terminal is None else terminal
        self._write = write if write is not None else self._print
        self._facts: dict[str, str] = {}
        self._phase, self._phase_start, self._step = "", 0, 0
        self._last_line = -math.inf
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Display:
        if self._live and not self._quiet:
            self._bar = self._new_bar()
            self._task = self._bar.add_task("", total=None, facts="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take one event of `events.jsonl`; kinds and fields that it does not know are passed over."""
        kind = event.get("event")
        if isinstance(event.get("step"), int):
            self._step = event["step"]
        if kind in ("phase", "step") and event.get("action") != "end":
            self._enter(str(event.get("phase", "")))
        if kind == "step":
            self._note("loss", event.get("loss"), ".3f")
            self._note("tokens/s", event.get("tokens_per_second"), ",.0f")
        elif kind == "evaluation":
            for name, value in dict(event.get("metrics") or {}).items():
                self._note(str(name), value, ".3f")
        if not self._quiet:
            self._show(kind, event)

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase, self._phase_start = phase, self._step
            self._facts.clear()  # the next phase measures other things
            if self._bar is not None:
                self._bar.reset(self._task, total=self._phases.get(phase), description=phase)

    def _note(self, name: str, value: Any, form: str) -> None:
        if isinstance(value, (int, float)) and math.isfinite(value):
            self._facts[name] = f"{name} {value:{form}}"

    def _show(self, kind: Any, event: dict[str, Any]) -> None:
        if kind == "fault":
            self._line(f"fault at step {self._step}: {event.get('what', '')}")
        elif kind == "phase" and event.get("action") != "end":
            self._line(f"phase {self._phase}, from step {self._step}")
        if self._bar is not None:
            facts = "  ".join(self._facts.values())
            self._bar.update(self._task, completed=self._step - self._phase_start, facts=facts)
        elif self._phase and (kind in ("done", "stop") or self._clock() - self._last_line >= EVERY):
            self._line(self.line())

    def line(self) -> str:
        """Where the run stands, as one plain line."""
        steps = self._phases.get(self._phase)
        place = f"{self._step - self._phase_start}" + (f"/{steps}" if steps else "")
        return "  ".join([f"step {self._step}", f"{self._phase} {place}".strip(), *self._facts.values()])

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            return
        self._last_line = self._clock()
        self._write(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _new_bar(self) -> Any:
        from rich import progress

        return progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[facts]}", markup=False),
            console=self._console,
            refresh_per_second=4,
        )
