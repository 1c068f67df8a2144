"""A run folder as checked values: what is there, what is missing, and which file is damaged.

No record is trusted. A damaged one raises `RecordError` with its file and field in one line; a missing
one is None. NaN, infinity and null are numbers that were not measured, and read as NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from groundthink.errors import GroundThinkError
from groundthink.records import Certificate, certificate_from_dict

# What a record of one picture, asked by itself, stands in for.
PICTURES = {"curves": "recall_curves", "needles": "needle", "gates": "gates"}
RECORDS = ("summary", "recall_curves", "needle", "gates", "language", "sample", "study")


class RecordError(GroundThinkError):
    """A record or event file that is damaged, or a folder that holds no run."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A JSON object with the place it came from; every reader raises `RecordError` on a wrong type."""

    raw: dict[str, Any]
    where: str

    def _take(self, key: str, kinds: type | tuple[type, ...], what: str) -> Any:
        if key not in self.raw:
            raise damaged(f"{self.where}, field {key}", "it is missing")
        value = self.raw[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise damaged(f"{self.where}, field {key}", f"{_short(value)} is not {what}")
        return value

    def number(self, key: str) -> float:
        """A number; NaN if the field is absent, null or not finite."""
        return as_number(self.raw.get(key), f"{self.where}, field {key}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string; `default` stands in for an absent field, if given."""
        if default is not None and key not in self.raw:
            return default
        return str(self._take(key, str, "text"))

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        return list(self._take(key, list, "a list"))

    def numbers(self, key: str) -> list[float]:
        """A list of numbers; unmeasured ones are NaN."""
        return [as_number(v, f"{self.where}, field {key}") for v in self.items(key)]

    def shares(self, key: str) -> list[float]:
        """A list of numbers in 0..1; unmeasured ones are NaN."""
        found = self.numbers(key)
        for value in found:
            if value < 0 or value > 1:
                raise damaged(f"{self.where}, field {key}", f"{value:g} is not a share between 0 and 1")
        return found

    def record(self, key: str) -> Record:
        """A nested object."""
        return Record(self._take(key, dict, "an object"), f"{self.where}, field {key}")

    def records(self, key: str) -> list[Record]:
        """A list of nested objects."""
        places = [f"{self.where}, field {key}[{i}]" for i in range(len(self.items(key)))]
        return [as_record(v, place) for v, place in zip(self.items(key), places, strict=True)]

    def values(self) -> dict[str, float]:
        """This object as name -> number, unmeasured ones left out."""
        pairs = {name: as_number(v, f"{self.where}, field {name}") for name, v in self.raw.items()}
        return {name: v for name, v in pairs.items() if math.isfinite(v)}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a page can be made of.

    Attributes:
        name: name of the run folder.
        config: text of `config.yaml`, or None.
        events: lines of `events.jsonl`, in order; empty if there is none.
        certificate: `records/certificate.json`, or None.
        records: the other records of `RECORDS` that are there, by name.
        twins: events of `twins/<name>/events.jsonl`, by name.
        notes: what a reader must know about the files (a cut last line).
        probes: the results of `records/probe_<name>.json`, questions asked one by one, by name.
    """

    name: str
    config: str | None
    events: tuple[Record, ...]
    certificate: Certificate | None
    records: dict[str, Record]
    twins: dict[str, tuple[Record, ...]]
    notes: tuple[str, ...]
    probes: dict[str, tuple[Record, ...]] = dataclasses.field(default_factory=dict)


def damaged(where: str, what: str) -> RecordError:
    """The one-line error of a damaged file."""
    return RecordError(what, where=where, fix="run the step that writes this file again, or delete it.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_number(value: Any, where: str) -> float:
    """A float; NaN for None and for what is not finite.

    Raises:
        RecordError: `value` is neither a number nor None.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise damaged(where, f"{_short(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def as_record(value: Any, where: str) -> Record:
    """`value` as an object, or `RecordError`."""
    if not isinstance(value, dict):
        raise damaged(where, f"{_short(value)} is not an object")
    return Record(value, where)


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise damaged(where, f"cannot be read: {reason}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"is not JSON: {error}") from error


def _events(path: Path, where: str) -> tuple[tuple[Record, ...], list[str]]:
    """The lines of an event file. A last line without newline was cut by a crash: left out and noted."""
    if not path.exists():
        return (), []
    text = _text(path, where)
    *lines, tail = text.split("\n")
    notes = [f"{where}: the last line was cut off and is left out."] if tail.strip() else []
    found: list[Record] = []
    broken: RecordError | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            event = as_record(_json(line, place), place)
        except RecordError as error:
            broken = broken or error
            continue
        if event.raw.get("event") == "resume":
            step = event.number("step")
            # What the crash cut, and what the resumed run did again, does not count.
            found, broken = [e for e in found if not e.number("step") > step], None
        elif broken is not None:
            raise broken
        found.append(event)
    if broken is not None:
        raise broken
    return tuple(found), notes


def _certificate(path: Path, where: str) -> Certificate | None:
    if not path.exists():
        return None
    raw = as_record(_json(_text(path, where), where), where)
    for key in ("verdict", "sentence"):
        raw.text(key)
    for item in raw.records("results"):
        for key in ("name", "verdict", "meaning"):
            item.text(key)
        for key in ("value", "low", "high", "n", "chance", "threshold"):
            item.number(key)
    raw.number("horizon")
    if "provenance" in raw.raw:
        raw.record("provenance")
    try:
        return certificate_from_dict(raw.raw)
    except ValueError as error:
        raise damaged(where, str(error)) from error


def _config(path: Path, where: str) -> str | None:
    if not path.exists():
        return None
    import yaml

    text = _text(path, where)
    try:
        yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise damaged(where, f"is not YAML: {' '.join(str(error).split())}") from error
    return text


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RecordError: the folder holds no run, or a file in it is damaged.
    """
    folder = Path(folder)
    records = folder / "records"
    if not any((folder / name).exists() for name in ("config.yaml", "events.jsonl", "records")):
        what = "holds no run" if folder.is_dir() else "is not a folder"
        raise RecordError(what, where=str(folder), fix="name a folder with config.yaml, events.jsonl or records/.")
    events, notes = _events(folder / "events.jsonl", "events.jsonl")
    twins: dict[str, tuple[Record, ...]] = {}
    for path in sorted((folder / "twins").glob("*/events.jsonl")):
        twins[path.parent.name], more = _events(path, f"twins/{path.parent.name}/events.jsonl")
        notes += more
    found: dict[str, Record] = {}
    for name in RECORDS:
        path, where = records / f"{name}.json", f"records/{name}.json"
        if path.exists():
            found[name] = as_record(_json(_text(path, where), where), where)
    probes: dict[str, tuple[Record, ...]] = {}
    for path in sorted(records.glob("probe_*.json")):
        where, name = f"records/{path.name}", path.stem.removeprefix("probe_")
        record = as_record(_json(_text(path, where), where), where)
        if "picture" not in record.raw:
            probes[name] = tuple(record.records("results"))
        elif name in PICTURES and PICTURES[name] not in found:
            found[PICTURES[name]] = record.record("picture")
    return Run(
        name=folder.resolve().name,
        config=_config(folder / "config.yaml", "config.yaml"),
        events=events,
        certificate=_certificate(records / "certificate.json", "records/certificate.json"),
        records=found,
        twins=twins,
        notes=tuple(notes),
        probes=probes,
    )
