"""`groundthink demo`: the main job in small, from one command to a certificate and a page."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from groundthink.cli.certify import EXIT_CODES
from groundthink.cli.common import end, writing
from groundthink.cli.progress import Display


@dataclasses.dataclass(frozen=True)
class Flags:
    """Train a small hybrid and its twins, certify its memory, write the report. Minutes on two cores."""

    folder: Path | None = None
    """Where the run goes; a new runs/demo if not given. A stopped demo goes on from its checkpoints."""
    seed: int = 0
    """Seed of parameters, data and episodes."""
    n: int = 400
    """Episodes behind each figure of the certificate."""
    set: tuple[str, ...] = ()
    """Fields of the recipe to change, such as phases[1].steps=50."""
    quiet: bool = False
    """Show no progress."""


def run(flags: Flags) -> int:
    """Run the demo; the exit code says the verdict."""
    started = time.monotonic()
    folder = flags.folder if flags.folder is not None else _new_folder(Path("runs"))
    from groundthink import report
    from groundthink.studies.demo import Stopped, run_demo

    def stage(text: str) -> None:
        if not flags.quiet:
            print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    def display(_: str, config: Any) -> Display:
        return Display({phase.name: phase.steps for phase in config.phases}, quiet=flags.quiet)

    with writing(folder):
        found = run_demo(
            folder,
            seed=flags.seed,
            n=flags.n,
            overrides=flags.set,
            display=display,
            on_stage=stage,
        )
        if isinstance(found, Stopped):
            code = end(found.result, folder)
            print(f"the whole demo goes on with: groundthink demo --folder {folder}")
            return code or 130
        stage("writing the report")
        page = report.build(folder)
    show(folder)
    print(f"{found.sentence}\n\nreport: {page}\n{time.monotonic() - started:.0f} s in all")
    return EXIT_CODES[found.verdict]


def show(folder: Path) -> None:
    """The summary of a finished demo as a table."""
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    record = json.loads((folder / "records" / "summary.json").read_text(encoding="utf8"))
    table = Table("question", "answer", "verdict", box=box.SIMPLE, title=record["title"])
    for row in record["rows"]:
        table.add_row(*(Text(row[name]) for name in ("question", "answer", "verdict")))
    Console().print(table)


def _new_folder(parent: Path) -> Path:
    """runs/demo, or the first runs/demo-2, runs/demo-3 ... that is not there yet."""
    folder, number = parent / "demo", 1
    while folder.exists():
        number += 1
        folder = parent / f"demo-{number}"
    return folder
