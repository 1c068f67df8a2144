"""K3, K4 and the reader transplant, at every certified length; see `key_edits` and `readers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from groundthink.probes.bench import Bench, Point
from groundthink.probes.cuts import layers_with
from groundthink.probes.key_edits import KEYS, erase_rows, rewrite_rows
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.readers import reader_rows
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult

Rows = tuple[ProbeResult, ...]


def _at(bench: Bench, point: Point | None, name: str, rows: Callable[[Prefilled], Rows]) -> Iterator[ProbeResult]:
    assert point is not None
    if not layers_with(bench.model, KEYS):
        yield not_run(f"{name}@{point.name}", "the model shows no keys under which it writes")
        return
    for row in rows(bench.prefilled(point)):
        yield dataclasses.replace(row, name=f"{row.name}@{point.name}")


def run_rewrite(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """K3."""
    yield from _at(bench, point, "rewrite", lambda prefilled: rewrite_rows(prefilled, seed=bench.seed))


def run_erase(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """K4."""
    yield from _at(bench, point, "erase", lambda prefilled: erase_rows(prefilled, seed=bench.seed))


def run_readers(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Two memories with the same writes, one for each kind of reader."""
    yield from _at(bench, point, "readers", reader_rows)


REWRITE = Row(
    "K3", "One fact rewritten", "Change one fact in the memory: does that answer change, and no other?",
    "causal", run_rewrite, each=True,
)  # fmt: skip
ERASE = Row(
    "K4", "One fact erased", "Erase one fact from the memory: is it gone, and no other?",
    "causal", run_erase, each=True,
)  # fmt: skip
READERS = Row(
    "K1r", "Who reads", "Does a later layer read the memory, or the layer that writes it?",
    "causal", run_readers, each=True,
)  # fmt: skip
