"""C3, B1 and B5: is the task understood, is there recall beyond the horizon, and is it association or mere salience?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from groundthink.probes.bench import Bench, Point
from groundthink.probes.recall import RECALL, classify, recall, recall_row
from groundthink.probes.row import Row
from groundthink.probes.statistics import at_least
from groundthink.records import ProbeResult

NEAR = "recall@near"
GRADE_A = 0.80  # what the lower bound of recall beyond the horizon has to reach
ABOVE_CHANCE = 0.05  # grade B: what a lower bound must exceed chance by before there is recall to explain


def run_near(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """C3: pairs within half a window."""
    found = recall(bench.model, bench.near)
    yield recall_row(NEAR, found, bench.near, at_least=RECALL, meaning="Recall of pairs inside the window")


def run_far(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """B1 at one point. Where memories are transplanted, the answers are those across the boundary."""
    assert point is not None
    questions = bench.asked(point)
    found = classify(bench.said(point), questions)
    row = recall_row(f"recall@{point.name}", found, questions, at_least=GRADE_A if bench.finite else None)
    right = row.low or 0.0
    chance = max(questions.chance.values())
    grade = "A" if right >= GRADE_A else "B" if right > chance + ABOVE_CHANCE else "none"
    p = at_least(found.right.hits, found.right.n, GRADE_A)
    yield described(bench, dataclasses.replace(row, details={**row.details, "grade": grade, "p": p}))


def run_confusion(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """B5: of the answers that are stored values, are more than half the right one?"""
    assert point is not None
    found = classify(bench.said(point), bench.asked(point))
    stored = found.right.hits + found.other_in_context
    p = at_least(found.right.hits, stored, 0.5) if stored else 1.0
    passed = found.right.hits > found.other_in_context and p <= 0.05
    kind = "association" if passed else "salience at most: the right value is not said more often than the others"
    yield ProbeResult(
        f"confusion@{point.name}", found.right.hits / stored if stored else 0.0, "pass" if passed else "fail",
        f"Of {found.right.n} answers {found.right.hits} are right, {found.other_in_context} another stored value,"
        f" {found.other} none of them: {kind}.",
        n=found.right.n, threshold=0.5, details={"p": p},
    )  # fmt: skip


def described(bench: Bench, row: ProbeResult) -> ProbeResult:
    """The row with what the sentence needs to know of the task."""
    details = {"pairs": bench.task.n_pairs, "values": bench.task.vocabulary.n_values, "task": bench.task.digest}
    return dataclasses.replace(row, details={**row.details, **details})


UNDERSTOOD = Row(
    "C3",
    "Task understood",
    "Does it answer when the fact is still inside the window?",
    "precondition",
    run_near,
    core=True,
)
FAR = Row(
    "B1",
    "Recall beyond the horizon",
    "Does it answer when nothing but a memory can reach the fact?",
    "behaviour",
    run_far,
    each=True,
    core=True,
    kinds=("filler", "text"),
)
CONFUSION = Row(
    "B5",
    "Confusion",
    "When it says a stored value, is it the right one?",
    "behaviour",
    run_confusion,
    each=True,
    kinds=("filler", "text"),
)
