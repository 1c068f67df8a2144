"""events.jsonl: every log line, decision and fault of a run, one JSON object a line, as they happened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groundthink.errors import CheckpointError

EVENTS = "events.jsonl"
Event = dict[str, Any]


class EventLog:
    """Appends events to a run's file, line by line, and tells listeners.

    Args:
        folder: of the run.
        listeners: called with each event after it is written.
    """

    def __init__(self, folder: Path, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        self.path = folder / EVENTS
        self.listeners = tuple(listeners)
        if self.path.exists() and not _ends_cleanly(self.path):
            self._append("\n")  # the last line was cut by a crash; it must not swallow the next one

    def write(self, event: str, **fields: Any) -> Event:
        """Append one event. NaN and infinity are written as null.

        Raises:
            CheckpointError: the line cannot be written, for example because the disk is full.
        """
        record: Event = {"event": event, **fields}
        self._append(json.dumps(_finite(record), allow_nan=False) + "\n")
        for listener in self.listeners:
            listener(record)
        return record

    def _append(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise CheckpointError(
                f"cannot be written: {error.strerror}",
                where=str(self.path),
                fix="free space, then resume the run",
            ) from error


def read_events(folder: Path | str) -> list[Event]:
    """The events of a run as they count: what a later resume did again is dropped, and so are cut lines.

    Raises:
        CheckpointError: there is no event file.
    """
    path = Path(folder) / EVENTS
    if not path.is_file():
        raise CheckpointError(f"there is no {EVENTS}", where=str(folder), fix="name the folder of a run")
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        if event.get("event") == "resume":
            events = [earlier for earlier in events if earlier.get("step", 0) <= event["step"]]
        events.append(event)
    return events


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_cleanly(path: Path) -> bool:
    data = path.read_bytes()
    return not data or data.endswith(b"\n")
