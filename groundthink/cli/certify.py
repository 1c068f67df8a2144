"""`groundthink certify`: a trained model in, a certificate and its exit code out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundthink.cli.common import writing
from groundthink.cli.progress import Display
from groundthink.errors import ConfigError, ResourceError
from groundthink.records import Certificate, to_json, write_whole

OnEvent = Callable[[str, dict[str, Any]], None]
EXIT_CODES = {"CERTIFIED": 0, "PARTIAL": 10, "NOT-PROVEN": 11, "REFUTED": 12, "TASK-FAIL": 13, "INVALID": 14}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Ask a trained model where its answers come from. Twins in <folder>/twins/ stand beside it."""

    folder: Path
    """Folder of the run, of one saved model or of a transformers checkpoint; or a name on the hub."""
    task: str = "kv_recall"
    """Task of the run's recipe that is asked."""
    n: int = 400
    """Episodes behind each figure; 100 at least for a verdict that means something."""
    seed: int = 0
    """Seed of the episodes."""
    rows: tuple[str, ...] = ("full",)
    """full, core, or names of rows beside the core (see groundthink probe)."""
    multiples: tuple[int, ...] | None = None
    """Lengths to certify, as multiples of the training length; 2 and 8 if they leave room and none is given."""
    text_multiples: tuple[int, ...] | None = None
    """The same with needles in natural text; 2 where the recipe has a needle task and none is given."""
    trained_length: int | None = None
    """Tokens of the texts of training; the longest phase of the recipe if not given."""
    documents: int = 32
    """Held-out documents for the worth of the memory in text; 0 for none."""
    device: str = ""
    """Where to run, such as cuda; the CPU if not given."""
    out: Path | None = None
    """Where the certificate goes; records/certificate.json of the run if not given."""
    quiet: bool = False
    """Show no progress."""
    attention_window: int | None = None
    """Models of others: limit full attention to so many tokens, which gives the model a horizon."""
    step: bool = False
    """Models of others: continue token by token, as they generate."""
    dtype: str = "float32"
    """Models of others: type of their weights."""
    vocabulary: str = ""
    """Models of others: ids of the task as text,keys,values,filler."""


class Partial:
    """What a certificate has found so far, on disk after every row; gone once the certificate is whole."""

    def __init__(self, path: Path, display: Display) -> None:
        self.path, self._display = path, display
        self._results: list[dict[str, Any]] = []
        self._where, self._steps = "", 0

    def on_event(self, kind: str, facts: dict[str, Any]) -> None:
        """Take one event of `probes.certify`."""
        if kind == "probe":
            self._results.append(facts)
            write_whole(self.path, to_json({"partial": True, "results": self._results}))
        elif kind == "row":
            point = f" at {facts['point']}" if facts["point"] else ""
            self._where = f"{facts['id']} {facts['title']}{point}"
            self._display.on_event({"event": "step", "phase": self._where, "step": self._steps})
        elif kind == "progress":
            self._steps += 1
            self._display.on_event({"event": "step", "phase": self._where, "step": self._steps})


def run(flags: Flags) -> int:
    """Certify; the exit code says the verdict."""
    from groundthink.model.adapters import is_foreign

    if is_foreign(flags.folder):
        out = flags.out if flags.out is not None else Path(f"{flags.folder.name}.certificate.json")
        return finish(flags, out, lambda on_event: _foreign(flags, on_event))
    if flags.attention_window is not None or flags.step or flags.vocabulary or flags.dtype != "float32":
        flag = "--attention-window, --step, --dtype and --vocabulary"
        raise ConfigError(f"{flag} are for models of others", where=str(flags.folder), fix="leave them out")
    from groundthink.cli.subject import lengths, subject_of
    from groundthink.probes import certify

    subject = subject_of(
        flags.folder,
        task=flags.task,
        documents=flags.documents,
        trained_length=flags.trained_length,
        device=flags.device,
    )
    multiples = lengths(subject, flags.multiples, flags.text_multiples)

    def ask(on_event: OnEvent) -> Certificate:
        asked: dict[str, Any] = {"n": flags.n, "seed": flags.seed, "rows": flags.rows, "on_event": on_event}
        return certify(subject.model, subject.twins, **asked, **multiples, **subject.options)

    out = flags.out if flags.out is not None else subject.records / "certificate.json"
    return finish(flags, out, ask)


def _foreign(flags: Flags, on_event: OnEvent) -> Certificate:
    """A model of others."""
    from groundthink.studies.certify import certify, parse_vocabulary

    return certify(
        flags.folder,
        vocabulary=parse_vocabulary(flags.vocabulary) if flags.vocabulary else None,
        attention_window=flags.attention_window,
        step=flags.step,
        dtype=flags.dtype,
        device=flags.device,
        n=flags.n,
        seed=flags.seed,
        rows=flags.rows,
        trained_length=flags.trained_length,
        multiples=flags.multiples or (),
        on_event=on_event,
    )


def finish(flags: Flags, out: Path, ask: Callable[[OnEvent], Certificate]) -> int:
    """Ask with progress, keep the part of what breaks, write and show the certificate."""
    partial = out.with_name(f"{out.stem}.partial.json")
    try:
        with writing(partial), Display({}, quiet=flags.quiet) as display:
            certificate = ask(Partial(partial, display).on_event)
    except ResourceError as error:
        raise ResourceError(error.what, where=error.where, fix=f"{error.fix}; found so far: {partial}") from error
    with writing(out):
        write_whole(out, to_json(certificate))
    partial.unlink(missing_ok=True)
    show(certificate)
    print(f"certificate: {out}")
    return EXIT_CODES[certificate.verdict]


def show(certificate: Certificate) -> None:
    """The certificate as a table with its verdicts, statements and sentence."""
    from rich.console import Console

    console = Console()
    show_rows(list(certificate.results))
    for item in certificate.lengths:
        console.print(f"{item['point']} ({item['length']} tokens): {item['verdict']}", markup=False, highlight=False)
    for name, found in certificate.statements.items():
        said = "yes" if found["holds"] else "no"
        console.print(f"{name}: {said}, {found['because']}", markup=False, highlight=False)
    for note in certificate.setting.get("notes", ()):
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(certificate.sentence, markup=False, highlight=False)


def show_rows(results: list[Any]) -> None:
    """Probe results as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("probe", "value", "95 % interval", "n", "chance", "threshold", "verdict", box=box.SIMPLE)
    for r in results:
        ends = "" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        known = [None if x is None or x != x else x for x in (r.value, r.n, r.chance, r.threshold)]
        numbers = ["" if x is None else f"{x:.4g}" for x in known]
        cells = [r.name, numbers[0], ends, *numbers[1:], r.verdict]
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
