"""`groundthink certify`: a trained model in, a certificate and its exit code out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from groundthink.cli.common import find_recipe, tasks_of, writing
from groundthink.errors import ConfigError
from groundthink.records import Certificate, to_json, write_whole

EXIT_CODES = {"CERTIFIED": 0, "PARTIAL": 10, "NOT-PROVEN": 11, "REFUTED": 12, "TASK-FAIL": 13, "INVALID": 14}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Ask a trained model where its answers come from. Twins in <folder>/twins/ stand beside it."""

    folder: Path
    """Folder of the run, or of a transformers checkpoint; or a name on the hub."""
    task: str = "kv_recall"
    """Task of the run's recipe that is asked."""
    n: int = 400
    """Episodes behind each figure."""
    seed: int = 0
    """Seed of the episodes."""
    out: Path | None = None
    """Where the certificate goes; records/certificate.json of the run if not given."""
    attention_window: int | None = None
    """Models of others: limit full attention to so many tokens, which gives the model a horizon."""
    step: bool = False
    """Models of others: continue token by token, as they generate."""
    dtype: str = "float32"
    """Models of others: type of their weights."""
    vocabulary: str = ""
    """Models of others: ids of the task as text,keys,values,filler."""


def run(flags: Flags) -> int:
    """Certify; the exit code says the verdict."""
    from groundthink.model.adapters import is_foreign

    if is_foreign(flags.folder):
        return run_foreign(flags)
    if flags.attention_window is not None or flags.step or flags.vocabulary or flags.dtype != "float32":
        flag = "--attention-window, --step, --dtype and --vocabulary"
        raise ConfigError(f"{flag} are for models of others", where=str(flags.folder), fix="leave them out")
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
            twin=twins,
            rows="core",
            n=flags.n,
            seed=flags.seed,
        )
    out = flags.out if flags.out is not None else flags.folder / "records" / "certificate.json"
    with writing(out):
        write_whole(out, to_json(certificate))
    show(certificate)
    print(f"certificate: {out}")
    return EXIT_CODES[certificate.verdict]


def run_foreign(flags: Flags) -> int:
    """Certify a model of others; the certificate goes to the current folder if `--out` does not say where."""
    from groundthink.studies.certify import certify, parse_vocabulary

    certificate = certify(
        flags.folder,
        vocabulary=parse_vocabulary(flags.vocabulary) if flags.vocabulary else None,
        attention_window=flags.attention_window,
        step=flags.step,
        dtype=flags.dtype,
        n=flags.n,
        seed=flags.seed,
    )
    out = flags.out if flags.out is not None else Path(f"{flags.folder.name}.certificate.json")
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
