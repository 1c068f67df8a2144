"""`groundthink study NAME`: one table of ours beside the source's figures; without a name, what there is."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from groundthink.cli.common import writing
from groundthink.errors import ConfigError

WIDE = 120  # columns of a terminal that has room for the table
MISSED = 15  # a line of the table is not what it has to be


@dataclasses.dataclass(frozen=True)
class Flags:
    """Regenerate one table: train what it needs under several seeds, measure, print, record. Without a name, list."""

    name: tyro.conf.Positional[str] = ""
    """Which study; all are listed if not given."""
    quick: bool = False
    """The small form for a CPU: shows that the question can be answered, in at most two minutes."""
    smoke: bool = False
    """A few steps of everything: shows that the code runs, and nothing else."""
    folder: Path | None = None
    """Where it goes; runs/study-<name>, with the form's name behind, if not given. What is done there is kept."""
    seeds: int | None = None
    """How many seeds, from 0 up; those of the form if not given."""
    arms: tuple[str, ...] = ()
    """Only these arms, and what the table says of them; the others can follow in the same folder."""
    jobs: int = 1
    """Trainings at a time, each in a process of its own: small models share a GPU well. All GPUs get their share."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; a GPU if there is one."""
    corpus: tuple[str, ...] = ()
    """Files or folders with text, for studies that read text; the sources of Python if not given."""
    separator: str | None = None
    """The string between the documents of one file of the corpus."""
    tokenizer: str = "bytes"
    """"bytes", or the folder of a tokenizer."""


def run(flags: Flags) -> int:
    """Run or list; 0 when every judged line is met, 15 when one is missed, 130 when a signal stopped it."""
    if not flags.name:
        return _list()
    if flags.quick and flags.smoke:
        raise ConfigError("--quick and --smoke exclude each other", where="groundthink study", fix="give one of them")
    from groundthink import report
    from groundthink.studies.run import plan_of, run_study
    from groundthink.training.config import DataConfig

    size = "quick" if flags.quick else "smoke" if flags.smoke else "full"
    folder = flags.folder
    if folder is None:
        folder = Path("runs") / (f"study-{flags.name}" + (f"-{size}" if size != "full" else ""))
    data = None
    if flags.corpus or flags.separator is not None or flags.tokenizer != "bytes":
        data = DataConfig(
            corpus=flags.corpus or ("python-stdlib",), tokenizer=flags.tokenizer, separator=flags.separator
        )
    plan = plan_of(
        flags.name, size, folder, seeds=flags.seeds, device=flags.device, jobs=flags.jobs, data=data, arms=flags.arms
    )  # fmt: skip
    began = time.monotonic()

    def stage(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    with writing(folder):
        record = run_study(plan, on_stage=stage)
        if record is None:
            print("stopped; the same command goes on from here")
            return 130
        page = report.build(folder)
    show(record)
    print(f"record: {folder / 'records' / 'study.json'}\nreport: {page}\n{time.monotonic() - began:.0f} s in all")
    return MISSED if record["verdict"] == "fail" else 0


def show(record: dict[str, Any]) -> None:
    """The table of a study."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from groundthink.report import html
    from groundthink.report.study import COLUMNS, cells

    seeds, console = record["seeds"], Console()
    title = f"{record['title']}, {len(seeds)} seed{'s' * (len(seeds) != 1)}: {record['question']}"
    shown = [i for i, name in enumerate(COLUMNS) if name != "by seed"]  # the page has room for it
    lines = [cells(line) for line in record["lines"]]
    if console.width >= WIDE:
        table = Table(*(COLUMNS[i] for i in shown), box=box.SIMPLE, title=title)
        for words in lines:
            table.add_row(*(Text(words[i]) for i in shown))
        console.print(table)
    else:  # eight columns would leave eight letters to the first, which says what is measured
        print(title)
        for words in lines:
            found = [f"{COLUMNS[i]} {words[i]}" for i in shown[1:-1] if words[i] != html.NOTHING]
            print(f"{words[0]}\n    {words[shown[-1]]}: {', '.join(found)}")
    print(f"Source: {record['origin']}\nHardware: {'; '.join(record['hardware'])}")


def _list() -> int:
    from groundthink.studies.registry import every

    for study in every():
        print(f"{study.name}\n  {study.question}")
        for name, size in study.sizes.items():
            print(f"  {name}: {size.seeds} seed{'s' * (size.seeds != 1)}, {size.cost}")
    return 0
