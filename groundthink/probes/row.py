"""What a row of the certificate is: one question, asked once or at every certified length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from groundthink.probes.bench import Bench, Point
from groundthink.records import ProbeResult

GROUPS = ("precondition", "behaviour", "causal", "text", "beside", "diagnostic")


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the registry.

    Attributes:
        id: as in the certificate's literature: `C0`, `B1`, `K1`, ...
        title: a few words.
        question: what it asks, for a reader who is no specialist.
        group: one of `GROUPS`.
        run: gives the row's results; `point` is None unless `each`.
        each: asked at every certified length, else once.
        core: asked in short certificates too.
        gate: if it fails, nothing that follows means anything.
        kinds: of points at which it can be asked, where `each`.
    """

    id: str
    title: str
    question: str
    group: str
    run: Callable[[Bench, Point | None], Iterator[ProbeResult]]
    each: bool = False
    core: bool = False
    gate: bool = False
    kinds: tuple[str, ...] = ("filler",)

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"{self.id}: no group {self.group!r}")


def not_run(name: str, why: str) -> ProbeResult:
    """The row of a question that could not be asked, and why."""
    return ProbeResult(name, math.nan, "info", f"Not run: {why}.", details={"not_run": why})
