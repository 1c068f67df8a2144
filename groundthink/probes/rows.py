"""The registry: every row of the certificate, in the order in which they are asked. A new one is a file and an entry."""

from __future__ import annotations

from collections.abc import Sequence

from groundthink.errors import ConfigError
from groundthink.probes import row_beside, row_causality, row_recall, row_transplant
from groundthink.probes.row import Row

ROWS: tuple[Row, ...] = (
    row_beside.HORIZON,
    row_causality.CAUSALITY,
    row_causality.PARITY,
    row_recall.UNDERSTOOD,
    row_recall.FAR,
    row_recall.CONFUSION,
    row_beside.CUTS,
    row_beside.TWINS,
    row_transplant.TRANSPLANT,
    row_transplant.FACTORIAL,
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
