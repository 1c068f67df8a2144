"""The certificate: every row of the registry asked in turn; one record, one verdict, one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import ResourceError
from groundthink.probes.bench import Bench, OnEvent, Point, make_bench
from groundthink.probes.face import Model
from groundthink.probes.row import Row, not_run
from groundthink.probes.rows import chosen_rows
from groundthink.probes.statistics import detectable
from groundthink.probes.verdict import NEAR, judge, sentence
from groundthink.records import Certificate, ProbeResult, provenance, to_json
from groundthink.tasks import Vocabulary
from groundthink.tasks.needle import Needle

SHORT = ("out of memory", "can't allocate memory", "not enough memory")  # how a RuntimeError says it
FEW = 100  # episodes a cell below which a record says that its intervals are wide


def certify(
    model: Model,
    twin: Model | Mapping[str, Model] | None = None,
    *,
    vocabulary: Vocabulary,
    n_pairs: int = 16,
    n: int = 400,
    seed: int = 0,
    rows: str | Sequence[str] = "full",
    trained_length: int | None = None,
    multiples: Sequence[int] = (),
    needle: Needle | None = None,
    text_multiples: Sequence[int] = (),
    text: Sequence[Tensor] = (),
    language: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> Certificate:
    """Ask a model everything and judge it.

    Args:
        model: trained on `kv_recall` episodes with this vocabulary.
        twin: a trained model to stand beside, or several by name (`no-read`, `G-only`, `window-only`, ...).
        vocabulary: ranges of ids; at least 64 values.
        n_pairs: pairs in each episode.
        n: one-query episodes a cell.
        seed: of every episode.
        rows: `full`, `core` (preconditions, recall, transplants, cuts, twins), or `core` and the rows of these ids.
        trained_length: tokens of the texts that the model was trained on; what multiples are of.
        multiples: lengths to certify, as multiples of that; without any, recall is asked at R+1, 2R and 8R and
            memories are transplanted at 8R.
        needle: needles in natural text, for the lengths `text_multiples`.
        text_multiples: lengths to certify with needles in text.
        text: held-out documents, int64 [T] each, in the model's own ids: what the memory is worth in nats.
        language: `difference`, `low`, `high`, `n`, `against`: bits per byte against a twin, see `probes.language`.
        on_event: hears ("row", id and point) as a row begins, ("progress", where) as it goes on, and ("probe", result
            as a dictionary) as each result is found, so that a broken run leaves its part.

    Returns:
        A certificate whose result part (`result_json`) depends on the models and the seed only.

    Raises:
        TaskError: the vocabulary does not fit the task or the model.
        ConfigError: rows or lengths that there are not.
        StateError: the episodes are longer than the model was told, or it cannot be read in pieces.
        ResourceError: memory ran out; `on_event` has heard what was found until then.
    """
    chosen = chosen_rows(rows)
    twins = {} if twin is None else dict(twin) if isinstance(twin, Mapping) else {"twin": twin}
    bench = make_bench(
        model,
        twins,
        vocabulary=vocabulary,
        n_pairs=n_pairs,
        n=n,
        seed=seed,
        trained_length=trained_length,
        multiples=multiples,
        needle=needle,
        text_multiples=text_multiples,
        text=text,
        language=language,
        tell=on_event,
    )
    results: list[ProbeResult] = []
    with enough_memory(results):
        for result in all_rows(bench, chosen):
            results.append(result)
            if on_event is not None:
                on_event("probe", dataclasses.asdict(result))
    return judged(bench, results, chosen)


def result_json(certificate: Certificate) -> str:
    """The part of a certificate that is the same on every rerun: all but its provenance."""
    return to_json(dataclasses.replace(certificate, provenance={}))


@contextlib.contextmanager
def enough_memory(results: Sequence[ProbeResult]) -> Iterator[None]:
    """Say in one line that memory ran out, and after which row."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not short and not any(
            part in words for part in ("out of memory", "can't allocate memory", "not enough mem")
        ):
            raise
        after = f" after {results[-1].name}" if results else ""
        raise ResourceError(
            f"out of memory{after}",
            where="certify",
            fix="ask for shorter texts, fewer rows or a smaller n, or use a larger device",
        ) from error


def all_rows(bench: Bench, rows: Sequence[Row]) -> Iterator[ProbeResult]:
    """Every result in turn. A gate that fails ends it; a task that is not understood leaves the core."""
    understood = True
    first = [row for row in rows if not row.each]
    later = [row for row in rows if row.each]
    held: Point | None = None
    for row, point in order(first, later, bench.points):
        if held is not None and held is not point and held is not bench.shortest:
            bench.forget(held)
        held = point
        if not understood and not row.core:
            yield not_run(_label(row, point), "the task is not understood")
            continue
        if bench.tell is not None:
            bench.tell("row", {"id": row.id, "title": row.title, "point": "" if point is None else point.name})
        broken = False
        for result in row.run(bench, point):
            yield dataclasses.replace(result, details={**result.details, "row": row.id})
            broken = broken or (row.gate and result.verdict == "fail")
            understood = understood and not (result.name == NEAR and result.verdict == "fail")
        if broken:
            return  # what a leaking or inconsistent model recalls means nothing


def order(once: Sequence[Row], each: Sequence[Row], points: Sequence[Point]) -> Iterator[tuple[Row, Point | None]]:
    """Preconditions, then point by point the rows of a length, so that its snapshots are held only meanwhile."""
    yield from ((row, None) for row in once if row.group == "precondition")
    for point in points:
        yield from ((row, point) for row in each if point.kind in row.kinds and (point.cut or row.group == "behaviour"))
    yield from ((row, None) for row in once if row.group != "precondition")


def judged(bench: Bench, results: Sequence[ProbeResult], rows: Sequence[Row]) -> Certificate:
    """The certificate of these results."""
    cuts = [point.name for point in bench.cuts]
    judgement = judge(results, finite=bench.finite, cuts=cuts, points=[point.name for point in bench.points])
    horizon = bench.horizon if bench.finite else None
    text = sentence(judgement, results, horizon=horizon, cuts=cuts, twins=tuple(bench.twins))
    size = {point.name: point.length for point in bench.points}
    lengths = tuple({**item, "length": size[item["point"]]} for item in judgement.lengths)
    setting = {
        "rows": [row.id for row in rows],
        "questions": {row.id: {"title": row.title, "question": row.question, "group": row.group} for row in rows},
        "n": bench.n,
        "pairs": bench.task.n_pairs,
        "values": bench.task.vocabulary.n_values,
        "chance": dataclasses.asdict(bench.task.chance()),
        "detectable": detectable(bench.n),
        "holm": judgement.holm,
        "points": [dataclasses.asdict(point) for point in bench.points],
        "twins": sorted(bench.twins) or "twin: not supplied",
        "notes": notes(bench, results),
    }
    return Certificate(
        judgement.verdict,
        text,
        horizon,
        tuple(results),
        bench.seed,
        provenance(),
        lengths,
        judgement.statements,
        setting,
    )


def notes(bench: Bench, results: Sequence[ProbeResult]) -> list[str]:
    """What a reader has to know of the record itself."""
    found = []
    if bench.n < FEW:
        found.append(
            f"n = {bench.n} episodes a cell are few: intervals are wide, and a control that seems to fail is called"
            f" undecided unless chance explains it in less than 1 of 100; use at least {FEW}."
        )
    if not bench.twins:
        found.append("twin: not supplied.")
    if not math.isfinite(bench.model.horizon):
        found.append("The receptive horizon is infinite: the main verdict cannot be CERTIFIED.")
    found += [f"{row.name}: {row.meaning}" for row in results if "not_run" in row.details]
    return found


def _label(row: Row, point: Point | None) -> str:
    return row.id if point is None else f"{row.id}@{point.name}"
