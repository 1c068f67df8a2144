"""The registry: every row of the certificate, in the order in which they are asked, and the diagnostics beside it.

A row is a file and an entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from groundthink.errors import ConfigError
from groundthink.probes import (
    row_beside,
    row_causality,
    row_data,
    row_distance,
    row_edits,
    row_heads,
    row_leak,
    row_necessity,
    row_rank,
    row_recall,
    row_tasks,
    row_text,
    row_time,
    row_transplant,
    row_writes,
)
from groundthink.probes.bench import Bench
from groundthink.probes.diagnostics import DIAGNOSTICS
from groundthink.probes.row import Row
from groundthink.records import ProbeResult

CERTIFICATE: dict[str, Row] = {
    "horizon": row_beside.HORIZON,
    "causality": row_causality.CAUSALITY,
    "parity": row_causality.PARITY,
    "leak": row_leak.LEAK,
    "data": row_data.DATA,
    "untrained": row_data.UNTRAINED,
    "near": row_recall.UNDERSTOOD,
    "recall": row_recall.FAR,
    "confusion": row_recall.CONFUSION,
    "transplant": row_transplant.TRANSPLANT,
    "factorial": row_transplant.FACTORIAL,
    "readers": row_edits.READERS,
    "rewrite": row_edits.REWRITE,
    "erase": row_edits.ERASE,
    "necessity": row_necessity.NECESSITY,
    "cuts": row_beside.CUTS,
    "twins": row_beside.TWINS,
    "share": row_distance.SHARE,
    "windows": row_distance.WINDOWS,
    "distance": row_distance.CURVE,
    "writes": row_writes.WRITES,
    "heads": row_heads.HEADS,
    "rank": row_rank.RANK,
    "time": row_time.TIME,
    "text": row_text.TEXT,
    "slots": row_tasks.SLOTS,
    "overwrite": row_tasks.OVERWRITE,
    "absent": row_tasks.ABSENT,
    "capacity": row_tasks.CAPACITY,
    "compositional": row_tasks.COMPOSITIONAL,
    "shift": row_tasks.SHIFT,
    "language": row_beside.LANGUAGE,
}
ROWS: dict[str, Row] = {**CERTIFICATE, **DIAGNOSTICS}  # everything that can be asked by name


def chosen_rows(rows: str | Sequence[str]) -> tuple[Row, ...]:
    """`core`, `full`, or the core and the rows with these names or ids.

    Raises:
        ConfigError: a name that no row has.
    """
    if rows in ("full", ("full",), ["full"]):
        return tuple(CERTIFICATE.values())
    wanted = set() if rows == "core" else ({rows} if isinstance(rows, str) else set(rows)) - {"core"}
    unknown = wanted - set(CERTIFICATE) - {row.id for row in CERTIFICATE.values()}
    if unknown:
        fix = f"core, full, or some of {', '.join(CERTIFICATE)}"
        raise ConfigError(f"no row {', '.join(sorted(unknown))}", where="rows", fix=fix)
    return tuple(row for name, row in CERTIFICATE.items() if row.core or wanted & {name, row.id})


def ask_row(bench: Bench, name: str) -> Iterator[ProbeResult]:
    """The results of one row, at every point where it can be asked.

    Raises:
        ConfigError: no row has this name.
    """
    if name not in ROWS:
        raise ConfigError(f"no row {name!r}", where="probe", fix=f"one of {', '.join(ROWS)}")
    row = ROWS[name]
    points = [p for p in bench.points if p.kind in row.kinds and (p.cut or row.group == "behaviour")]
    for point in points if row.each else [None]:
        yield from row.run(bench, point)
