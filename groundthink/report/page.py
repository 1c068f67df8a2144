"""The page itself: what stands where, and the one file it is written to."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from groundthink.records import write_whole
from groundthink.report import diagnostics, evidence, html, plain, study, training
from groundthink.report.read import Run, read_run

# No script may run and nothing may be fetched, whatever a record contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SECTIONS = (
    evidence.summary,
    plain.lengths,
    plain.questions,
    evidence.recall,
    evidence.certificate,
    training.losses,
    training.evaluations,
    evidence.needle,
    evidence.gates,
    diagnostics.probes,
    evidence.language,
    evidence.sample,
)


def build(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder.

    Args:
        folder: run folder with `config.yaml`, `events.jsonl`, `records/*.json`, `twins/<name>/events.jsonl`;
            any of them may be missing, and the page then says so in one line.
        out: the HTML file; `folder/report.html` if None.

    Returns:
        The file written; it needs no other file and no network.

    Raises:
        RecordError: the folder holds no run, or a record is damaged; the message names the file.
        OSError: the page could not be written; an earlier one is untouched.
    """
    folder = Path(folder)
    return write_whole(out if out is not None else folder / "report.html", render(read_run(folder)))


def render(run: Run) -> str:
    """The page of a run as one HTML text."""
    style = resources.files("groundthink.report").joinpath("page.css").read_text(encoding="utf-8")
    title = _title(run)
    if "study" in run.records:
        body = study.headline(run) + "".join(section(run) for section in study.SECTIONS)
    else:
        body = evidence.headline(run) + "".join(section(run) for section in SECTIONS)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>\n<body><main><h1>{html.escape(title)}</h1>{body}</main>\n"
        f"{_footer(run)}</body></html>\n"
    )


def _title(run: Run) -> str:
    record = run.records.get("study") or run.records.get("summary")
    return record.text("title", run.name) if record else run.name


def _footer(run: Run) -> str:
    if "study" in run.records:
        return f"<footer><p>Run <b>{html.escape(run.name)}</b>.</p></footer>"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in run.notes)
    origin: dict[str, Any] = dict(run.certificate.provenance) if run.certificate else {}
    for event in run.events:
        if not origin and isinstance(event.raw.get("provenance"), dict):
            origin = event.record("provenance").raw
    rows = [[html.escape(k), html.escape(_flat(v))] for k, v in origin.items()]
    where = (
        html.table(["where from", "value"], rows)
        if rows
        else html.missing("Provenance", "records/certificate.json and events.jsonl", "have none")
    )
    config = run.config
    settings = (
        html.folded("Configuration of the run", f"<pre>{html.escape(config)}</pre>")
        if config is not None
        else html.missing("Configuration", "config.yaml", "is missing")
    )
    return f"<footer><p>Run <b>{html.escape(run.name)}</b>.</p>{notes}{where}{settings}</footer>"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    return html.show(value)
