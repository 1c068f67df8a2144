"""`groundthink certify`: a trained model in, a certificate and its exit code out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from groundthink.cli.common import find_recipe, tasks_of, writing
from groundthink.records import Certificate, to_json, write_whole

EXIT_CODES = {"CERTIFIED": 0, "PARTIAL": 10, "NOT-PROVEN": 11, "REFUTED": 12, "TASK-FAIL": 13, "INVALID": 14}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Ask a trained model where its answers come from. Twins in <folder>/twins/ stand beside it."""

    folder: Path
    """Folder of the run."""
    task: str = "kv_recall"
    """Task of the run's recipe that is asked."""
    n: int = 400
    """Episodes behind each figure."""
    seed: int = 0
    """Seed of the episodes."""
    out: Path | None = None
    """Where the certificate goes; records/certificate.json of the run if not given."""


def run(flags: Flags) -> int:
    """Certify; the exit code says the verdict."""
    from groundthink.probes import certify
    from groundthink.training import load

    model = load(flags.folder)
    task = next(iter(tasks_of(find_recipe(flags.folder), flags.task).values()))
    twins = {folder.name: load(folder) for folder in sorted((flags.folder / "twins").glob("*")) if folder.is_dir()}
    with writing(flags.folder / "records"):
        certificate = certify(
            model,
            vocabulary=task.vocabulary,
            n_pairs=task.n_pairs,
            twins=twins,
            n=flags.n,
            seed=flags.seed,
        )
    out = flags.out if flags.out is not None else flags.folder / "records" / "certificate.json"
    with writing(out):
        write_whole(out, to_json(certificate))
    show(certificate)
    print(f"certificate: {out}")
    return EXIT_CODES[certificate.verdict]


def show(certificate: Certificate) -> None:
    """The certificate as a table with its verdict and sentence."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("probe", "value", "95 % interval", "n", "chance", "threshold", "verdict", box=box.SIMPLE)
    for r in certificate.results:
        ends = "" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        numbers = ["" if x is None else f"{x:.4g}" for x in (r.value, r.n, r.chance, r.threshold)]
        cells = [r.name, numbers[0], ends, *numbers[1:], r.verdict]
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    console.print(certificate.sentence, markup=False, highlight=False)
