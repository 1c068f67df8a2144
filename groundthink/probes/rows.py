"""The registry: every row of the certificate, in the order in which they are asked. A row is a file and an entry."""

from __future__ import annotations

from collections.abc import Sequence

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
from groundthink.probes.row import Row

ROWS: tuple[Row, ...] = (
    row_beside.HORIZON,
    row_causality.CAUSALITY,
    row_causality.PARITY,
    row_leak.LEAK,
    row_data.DATA,
    row_data.UNTRAINED,
    row_recall.UNDERSTOOD,
    row_recall.FAR,
    row_recall.CONFUSION,
    row_transplant.TRANSPLANT,
    row_transplant.FACTORIAL,
    row_edits.READERS,
    row_edits.REWRITE,
    row_edits.ERASE,
    row_necessity.NECESSITY,
    row_beside.CUTS,
    row_beside.TWINS,
    row_distance.SHARE,
    row_distance.WINDOWS,
    row_distance.CURVE,
    row_writes.WRITES,
    row_heads.HEADS,
    row_rank.RANK,
    row_time.TIME,
    row_text.TEXT,
    row_tasks.SLOTS,
    row_tasks.OVERWRITE,
    row_tasks.ABSENT,
    row_tasks.CAPACITY,
    row_tasks.COMPOSITIONAL,
    row_tasks.SHIFT,
    row_beside.LANGUAGE,
)


def chosen_rows(rows: str | Sequence[str]) -> tuple[Row, ...]:
    """`core`, `full`, or the core and the rows with these ids.

    Raises:
        ConfigError: an id that no row has.
    """
    if rows == "full":
        return ROWS
    wanted = set() if rows == "core" else {rows} if isinstance(rows, str) else set(rows)
    unknown = wanted - {row.id for row in ROWS}
    if unknown:
        known = ", ".join(row.id for row in ROWS)
        raise ConfigError(f"no row {', '.join(sorted(unknown))}", where="rows", fix=f"core, full, or some of {known}")
    return tuple(row for row in ROWS if row.core or row.id in wanted)
