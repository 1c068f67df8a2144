"""What stands beside: the horizon, the reads cut one kind at a time, trained twins, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from groundthink.probes.bench import Bench, Point
from groundthink.probes.cuts import OWN_READ, S_READ, cut_own_reads, cut_reads, layers_with
from groundthink.probes.face import Model, device_of, mode
from groundthink.probes.intervention import carriers
from groundthink.probes.language import language as language_row
from groundthink.probes.recall import Questions, Recalled, recall, recall_row
from groundthink.probes.row import Row
from groundthink.probes.row_recall import described
from groundthink.probes.statistics import at_least
from groundthink.probes.transplant import KEEP
from groundthink.records import ProbeResult

EVIDENCE = 0.01  # p at which a blind model is said to see


def run_horizon(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """How far back each model reaches without a memory, and the R that distances are counted in."""
    reaches = {"model": bench.model.horizon, **{name: twin.horizon for name, twin in bench.twins.items()}}
    shown = {name: int(reach) if math.isfinite(reach) else None for name, reach in reaches.items()}
    own = "without end" if shown["model"] is None else f"{shown['model']} tokens back"
    meaning = f"Without a memory the model reaches {own}; distances are counted in R = {bench.horizon}."
    yield ProbeResult("horizon", float(bench.horizon), "info", meaning, details={"reaches": shown})


def run_cuts(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """The same questions with the reads of S layers cut, and with the G layers' own reads cut."""
    for arm, path, cut, who in (
        ("S-reads-cut", S_READ, cut_reads, "the reads of S layers"),
        ("own-reads-cut", OWN_READ, cut_own_reads, "the G layers' own reads"),
    ):
        if not layers_with(bench.model, path):
            yield ProbeResult(f"recall/{arm}", 0.0, "info", f"The model has nothing to cut: no layer with {who[4:]}.")
            continue
        with cut(bench.model):
            for name, questions in asked_of_all(bench).items():
                row_name = f"recall@{name}/{arm}"
                row = recall_row(row_name, recall(bench.model, questions), questions, meaning=f"Recall with {who} cut")
                yield described(bench, row)


def run_twins(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """The same questions to each twin. One without any memory must be at chance beyond R: it tests the harness."""
    if not bench.twins:
        yield ProbeResult("twin", 0.0, "info", "twin: not supplied")
    for name, twin in bench.twins.items():
        blind = math.isfinite(twin.horizon) and not has_memory(twin)
        for where, questions in asked_of_all(bench).items():
            row_name, found = f"recall@{where}/twin:{name}", recall(twin, questions)
            yield described(bench, recall_row(row_name, found, questions, meaning=f"Recall of the {name} twin"))
            if blind and where != "near":
                meaning = f"The {name} twin has no memory and cannot see so far, so it must be at chance. Recall"
                yield harness_row(f"harness/{name}@{where}", found, questions, meaning)


def run_language(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Bits per byte against a twin, where they were measured."""
    if bench.language is not None:
        yield language_row(**bench.language)


def asked_of_all(bench: Bench) -> dict[str, Questions]:
    """The questions that twins and cuts are asked: near, and each point over filler that is no long text."""
    basic = [point for point in bench.points if point.kind == "filler" and not point.name.endswith("x")]
    return {"near": bench.near, **{point.name: bench.asked(point) for point in basic}}


def harness_row(name: str, found: Recalled, questions: Questions, meaning: str) -> ProbeResult:
    """Who cannot know must be at chance: `pass` if that is shown, `fail` if the contrary is, `info` if n is too small.

    A model is never called invalid because few episodes leave a wide interval.
    """
    chance = max(questions.chance.values())
    row = recall_row(name, found, questions, at_most=chance + KEEP, meaning=meaning)
    p = at_least(found.right.hits, found.right.n, chance)
    details = {**row.details, "p_above_chance": p}
    verdict, said = row.verdict, row.meaning
    if verdict == "fail" and p >= EVIDENCE:
        verdict = "info"
        said += f" Undecided: n = {found.right.n} is too few to tell that from chance."
    return ProbeResult(name, row.value, verdict, said, row.low, row.high, row.n, row.chance, row.threshold, details)


def has_memory(model: Model) -> bool:
    """Whether any layer carries one."""
    with mode(model, training=False), torch.no_grad():
        ids = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
        return bool(carriers(model.prefill(ids)[1]))


HORIZON = Row("R", "Horizon", "How far back can it look without a memory?", "precondition", run_horizon, core=True)
CUTS = Row("cuts", "Reads cut", "Which layer's reading carries the answer?", "beside", run_cuts, core=True)
TWINS = Row("C4t", "Trained twins", "Can a model without that memory do the same?", "beside", run_twins, core=True)
LANGUAGE = Row("L", "Language", "Does text cost no more bits than with a twin?", "beside", run_language, core=True)
