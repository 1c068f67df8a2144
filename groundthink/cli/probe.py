"""`groundthink probe`: one question to a trained model, without a verdict; without a name, what can be asked."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import tyro

from groundthink.cli.certify import show_rows
from groundthink.cli.common import writing
from groundthink.errors import ConfigError
from groundthink.records import provenance, to_json, write_whole


@dataclasses.dataclass(frozen=True)
class Flags:
    """Ask a trained model one question of the certificate, or draw one picture. Without a name, list them."""

    name: tyro.conf.Positional[str] = ""
    """What to ask; all that can be asked is listed if not given."""
    folder: tyro.conf.Positional[Path | None] = None
    """Folder of the run, or of one saved model."""
    task: str = "kv_recall"
    """Task of the run's recipe that is asked."""
    n: int = 400
    """Episodes behind each figure."""
    seed: int = 0
    """Seed of the episodes."""
    multiples: tuple[int, ...] = ()
    """Lengths, as multiples of the training length; else R+1, 2R and 8R."""
    documents: int = 32
    """Held-out documents, where text is asked for."""
    device: str = ""
    """Where to run, such as cuda; the CPU if not given."""
    out: Path | None = None
    """Where the record goes; records/probe_<name>.json of the run if not given."""


def run(flags: Flags) -> int:
    """Ask; 0 when done, whatever the answer."""
    from groundthink.probes import PICTURES, ROWS

    known = {name: row.question for name, row in ROWS.items()}
    known |= {name: question for name, (question, _) in PICTURES.items()}
    if not flags.name:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {question}" for name, question in known.items()))
        return 0
    if flags.name not in known:
        near = difflib.get_close_matches(flags.name, known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no probe {flags.name!r}.", where="groundthink probe", fix=f"{guess}groundthink probe lists them."
        )
    if flags.folder is None:
        raise ConfigError("no model is named.", where="groundthink probe", fix="give the folder of a run.")
    record, place = _ask(flags)
    path = flags.out if flags.out is not None else place / f"probe_{flags.name}.json"
    with writing(path):
        write_whole(path, to_json({**record, "provenance": provenance()}))
    print(f"record: {path}")
    return 0


def _ask(flags: Flags) -> tuple[dict[str, Any], Path]:
    from groundthink.cli.subject import subject_of
    from groundthink.probes import PICTURES, ask_row, make_bench

    assert flags.folder is not None
    subject = subject_of(
        flags.folder, task=flags.task, documents=flags.documents, trained_length=None, device=flags.device
    )
    bench = make_bench(
        subject.model,
        subject.twins,
        n=flags.n,
        seed=flags.seed,
        multiples=flags.multiples,
        **subject.options,
    )
    if flags.name in PICTURES:
        record = PICTURES[flags.name][1](bench)
        for line in told(flags.name, record):
            print(line)
        return {"probe": flags.name, "picture": record}, subject.records
    results = list(ask_row(bench, flags.name))
    show_rows(results)
    for result in results:
        print(f"{result.name}: {result.meaning}")
    return {"probe": flags.name, "results": results}, subject.records


def told(name: str, record: dict[str, Any]) -> list[str]:
    """A picture in a few lines of text."""
    if name == "curves":
        return [
            f"{curve['name']}: " + ", ".join(f"{p['rate']:.2f} at {p['distance']}" for p in curve["points"])
            for curve in record["curves"]
        ]
    if name == "gates":
        return [
            f"layer {layer['layer']} {gate}: " + ", ".join(f"{kind} {x:.3f}" for kind, x in layer[gate].items())
            for layer in record["layers"]
            for gate in ("beta", "decay")
        ]
    if name == "needles":
        rows = zip(record["depths"], record["rates"], strict=True)
        head = "depth " + " ".join(f"{length:>6}" for length in record["lengths"])
        return [head, *(f"{depth:5.2f} " + " ".join(f"{rate:6.2f}" for rate in rates) for depth, rates in rows)]
    return [
        f"layer {head['reader']} reads layer {head['writer']}, head {head['head']}: weight {head['at_answer']:+.3f} on"
        f" the answer at {record['answer_at']}; strongest "
        + ", ".join(f"{best['weight']:+.3f} at {best['position']}" for best in head["strongest"])
        for head in record["heads"]
    ]
