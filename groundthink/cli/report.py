"""`groundthink report`: a run folder in, one HTML file out. Needs neither torch nor the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from groundthink.cli.common import writing


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write the HTML report of a run folder: one file, no network, no scripts."""

    folder: Path
    """Folder of the run."""
    out: Path | None = None
    """The HTML file; report.html of the run if not given."""


def run(flags: Flags) -> int:
    """Write the report; 0 when done."""
    from groundthink import report

    out = flags.out if flags.out is not None else flags.folder / "report.html"
    with writing(out):
        print(report.build(flags.folder, out))
    return 0
