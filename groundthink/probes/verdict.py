"""From probe results to one verdict and one sentence. Pure: an old record can be judged again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from groundthink.probes.statistics import ALPHA, holm
from groundthink.records import ProbeResult

VERDICTS = ("INVALID", "TASK-FAIL", "REFUTED", "NOT-PROVEN", "PARTIAL", "CERTIFIED")
BY_HORIZON, CAUSALLY = "CERTIFIED-BY-HORIZON", "CAUSALLY-SUPPORTED"
POINTS = ("R+1", "2R", "8R")  # distances at which recall is asked whatever the lengths
NEAR = "recall@near"
ABOVE_CHANCE = 0.05  # what a lower bound must exceed chance by before there is recall to explain
# Keep or follow this close to the accuracy is all of it; the rest is noise of a proportion.
MOSTLY = 0.80

_PRECONDITIONS = ("causality/", "parity", "leak/", "data/", "transplant/sham", "transplant/complete", "harness/")
_CAUSAL = ("follow/", "keep/", "factorial/")
_PRIMARY = ("recall@", *_CAUSAL)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the rows amount to.

    Attributes:
        verdict, reason: over all lengths.
        lengths: for each point with a boundary its `point`, `verdict` and `reason`.
        statements: `CERTIFIED-BY-HORIZON` (deductive) and `CAUSALLY-SUPPORTED`, each `holds` and `because`.
        holm: p of the primary tests after Holm's correction, by row.
    """

    verdict: str
    reason: str
    lengths: tuple[dict[str, str], ...]
    statements: dict[str, dict[str, Any]]
    holm: dict[str, float]


def judge(
    results: Sequence[ProbeResult],
    *,
    finite: bool,
    cuts: Sequence[str] = POINTS[-1:],
    points: Sequence[str] = POINTS,
) -> Judgement:
    """Judge the rows.

    INVALID: a precondition fails. TASK-FAIL: not even a pair inside the window is recalled. REFUTED: there is recall
    beyond the horizon and it does not come from the memory. NOT-PROVEN: no such recall, or nothing shows whence it
    comes. PARTIAL: some of it follows the memory, or at some lengths only. CERTIFIED: all thresholds are met, Holm's
    correction included.

    Args:
        results: of the rows.
        finite: whether the receptive horizon is.
        cuts: the points at which memories were transplanted: each gets a verdict.
        points: all points beyond the horizon.
    """
    rows = {row.name: row for row in results}
    adjusted = _holm(rows, cuts, points)
    passed = {name for name, row in rows.items() if row.verdict == "pass" and adjusted.get(name, 0.0) <= ALPHA}
    lengths: tuple[dict[str, str], ...] = ()
    broken = [row for row in results if row.name.startswith(_PRECONDITIONS) and row.verdict == "fail"]
    near = rows.get(NEAR)
    if broken:
        verdict, reason = "INVALID", " ".join(dict.fromkeys(row.meaning for row in broken))
    elif near is None:
        verdict, reason = "NOT-PROVEN", "recall was not asked."
    elif near.verdict != "pass":
        verdict = "TASK-FAIL"
        reason = f"even inside the window it is right in {interval(near)} only, so nothing is said of memory."
    else:
        found = [(point, *_at(point, rows, passed, points, cuts, finite)) for point in cuts]
        lengths = tuple({"point": p, "verdict": v, "reason": r} for p, v, r in found)
        verdict, reason = _overall(lengths)
    refuted = verdict == "REFUTED"
    valid = not broken and near is not None and near.verdict == "pass"
    statements = {
        BY_HORIZON: _by_horizon(rows, passed, points, finite=finite, valid=valid, refuted=refuted),
        CAUSALLY: _causally(rows, passed, cuts, valid=valid),
    }
    return Judgement(verdict, reason, lengths, statements, adjusted)


def sentence(
    judgement: Judgement,
    results: Sequence[ProbeResult],
    *,
    horizon: int | None,
    cuts: Sequence[str] = POINTS[-1:],
    twins: Sequence[str] = (),
) -> str:
    """What a reader may quote: verdict, setting, reason, and what stands beside."""
    rows = {row.name: row for row in results}
    far = rows.get(f"recall@{cuts[-1]}") or rows.get(f"recall@{POINTS[-1]}")
    setting = ""
    if far is not None:
        reach = "without end" if horizon is None else f"of {horizon} tokens"
        shown = {c: rows[f"recall@{c}"] for c in cuts if f"recall@{c}" in rows} or {POINTS[-1]: far}
        least = {c: str(row.details["distances"]["least"]) for c, row in shown.items()}
        told = ", ".join(least.values()) if len(least) == 1 else ", ".join(f"{d} at {c}" for c, d in least.items())
        where = "random filler" + (" or natural text" if any(c.startswith("text") for c in shown) else "")
        setting = (
            f" With {far.details['pairs']} pairs of {far.details['values']} possible values over {where},"
            f" asked at least {told} tokens later (receptive horizon {reach}):"
        )
    beside = [
        f"{label} {rows[f'recall@{POINTS[-1]}/{arm}'].value:.3f}"
        for arm, label in (
            ("S-reads-cut", "with the reads of S layers cut"),
            ("own-reads-cut", "with G's own reads cut"),
            *((f"twin:{name}", f"{name} twin") for name in twins),
        )
        if f"recall@{POINTS[-1]}/{arm}" in rows
    ]
    text = f"{judgement.verdict}.{setting} {judgement.reason}"
    if beside:
        text += f" Beside it, at {POINTS[-1]}: {', '.join(beside)}."
    return text if twins else f"{text} Twin: not supplied."


def interval(row: ProbeResult) -> str:
    """`0.950 [0.924, 0.967]`."""
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _holm(rows: Mapping[str, ProbeResult], cuts: Sequence[str], points: Sequence[str]) -> dict[str, float]:
    """Adjusted p of the primary tests: recall beyond the horizon, transplants, factorial; the rest is description.

    Each length has a verdict of its own, so its family is its own tests and those of the points that all lengths
    share; of a shared test the largest counts.
    """
    family = {
        name: float(row.details["p"])
        for name, row in rows.items()
        if name.startswith(_PRIMARY) and row.verdict != "info" and "p" in row.details
    }
    shared = [f"recall@{point}" for point in points if point not in cuts]
    found: dict[str, float] = {}
    for cut in cuts:
        own = {name: p for name, p in family.items() if name in shared or name.endswith(f"@{cut}")}
        for name, p in holm(own).items():
            found[name] = max(found.get(name, 0.0), p)
    return found


def _at(
    point: str,
    rows: Mapping[str, ProbeResult],
    passed: set[str],
    points: Sequence[str],
    cuts: Sequence[str],
    finite: bool,
) -> tuple[str, str]:
    """Verdict and reason at one point."""
    far = rows.get(f"recall@{point}")
    if not finite:
        return "NOT-PROVEN", (
            "full attention reaches back without end, so recall at no distance shows that a state carried it;"
            f" {_causal_words(point, rows)}"
        )
    if far is None or not _above_chance(far):
        found = "was not asked" if far is None else f"is {interval(far)}"
        return "NOT-PROVEN", f"recall beyond the horizon {found}, which is not above chance."
    follows = _named(rows, "follow/", point)
    keeps = _named(rows, "keep/", point)
    if not follows:
        if f"transplant/none@{point}" in rows:
            return "REFUTED", f"it is right in {interval(far)} beyond the horizon, yet no layer carries a memory."
        return "NOT-PROVEN", "the memory was not transplanted."
    accuracy = float(follows[0].details["accuracy"]["rate"])
    if any((keep.low or 0) >= MOSTLY * accuracy for keep in keeps) and not any(map(_above_chance, follows)):
        return "REFUTED", f"it keeps the old answer in {interval(keeps[0])} although its memory is another episode's."
    # Where the lengths are not given, the last of the points stands for all of them.
    asked = [point] if point not in points or len(cuts) > 1 else [p for p in points if p not in cuts or p == point]
    primary = [f"recall@{p}" for p in asked]
    primary += [row.name for row in (*follows, *keeps, *_named(rows, "factorial/", point))]
    missed = [name for name in primary if name not in passed]
    if not missed:
        return "CERTIFIED", _far_words(far, follows[0], keeps[0])
    if all(map(_above_chance, follows)):
        share = min(float(row.details["share"]) for row in follows)
        phi = rows.get(f"factorial/phi@{point}")
        part = share if phi is None else min(share, phi.value)
        return "PARTIAL", (
            f"{100 * part:.0f} % of its recall follows the memory; below the thresholds: {_words(missed, rows)}."
            f" {_far_words(far, follows[0], keeps[0])}"
        )
    return "NOT-PROVEN", f"recall beyond the horizon is {interval(far)}, but it does not follow the memory."


def _words(missed: Sequence[str], rows: Mapping[str, ProbeResult]) -> str:
    """The rows that fell short; some only once it is counted how many tests there are."""
    late = [name for name in missed if name in rows and rows[name].verdict == "pass"]
    plain = [name for name in missed if name not in late]
    parts = [", ".join(plain)] * bool(plain) + [
        f"{', '.join(late)} (for so few episodes, by Holm's correction)"
    ] * bool(late)
    return "; ".join(parts)


def _overall(lengths: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The one verdict of several lengths: the same everywhere, or PARTIAL where some lengths do better than others."""
    found = {item["verdict"] for item in lengths}
    if len(lengths) == 1:
        return lengths[0]["verdict"], lengths[0]["reason"]
    told = " ".join(f"At {item['point']}, {item['verdict']}: {item['reason']}" for item in lengths)
    if not lengths:
        return "NOT-PROVEN", "no length was asked."
    if len(found) == 1:
        return found.pop(), told
    if "REFUTED" in found:
        return "REFUTED", told
    return ("PARTIAL" if found & {"CERTIFIED", "PARTIAL"} else "NOT-PROVEN"), told


def _by_horizon(
    rows: Mapping[str, ProbeResult],
    passed: set[str],
    points: Sequence[str],
    *,
    finite: bool,
    valid: bool,
    refuted: bool,
) -> dict[str, Any]:
    """Deductive: R is finite, nothing leaks, the data do not tell, and there is recall beyond R: a state carried it.

    Where an answer outlives its memory, R may be longer than the model says; then nothing follows from it.
    """
    missed = [f"recall@{p}" for p in points if f"recall@{p}" not in passed]
    data = [name for name in rows if name.startswith("data/")]
    if not finite:
        return {"holds": False, "because": "the receptive horizon is infinite"}
    if not valid:
        return {"holds": False, "because": "a precondition fails or the task is not understood"}
    if refuted:
        because = "answers outlive the memory: another tensor has them, or the horizon is longer than the model says"
        return {"holds": False, "because": because}
    if not data:
        return {"holds": False, "because": "the data were not checked"}
    if missed:
        return {"holds": False, "because": f"below the thresholds: {_words(missed, rows)}"}
    return {"holds": True, "because": "recall at distances above R, nothing leaks, and the data do not give it away"}


def _causally(rows: Mapping[str, ProbeResult], passed: set[str], cuts: Sequence[str], *, valid: bool) -> dict[str, Any]:
    """Which state, and which binding: the transplants and the factorial, at every length; open to any horizon."""
    asked = [row.name for point in cuts for start in _CAUSAL for row in _named(rows, start, point)]
    missed = [name for name in asked if name not in passed]
    if not valid:
        return {"holds": False, "because": "a precondition fails or the task is not understood"}
    if not asked:
        return {"holds": False, "because": "no memory was transplanted"}
    if missed:
        return {"holds": False, "because": f"below the thresholds: {_words(missed, rows)}"}
    return {"holds": True, "because": "answers follow a transplanted memory, and it is the memory that they follow"}


def _named(rows: Mapping[str, ProbeResult], start: str, point: str) -> list[ProbeResult]:
    return [row for name, row in rows.items() if name.startswith(start) and name.endswith(f"@{point}")]


def _causal_words(point: str, rows: Mapping[str, ProbeResult]) -> str:
    follows, keeps = _named(rows, "follow/", point), _named(rows, "keep/", point)
    if f"transplant/none@{point}" in rows:
        return "and no layer carries a memory: there is no state to certify."
    if not follows:
        return "and no memory was transplanted."
    return (
        f"given another episode's memory, it answers from that one in {interval(follows[0])} and keeps the old answer"
        f" in {interval(keeps[0])}."
    )


def _far_words(far: ProbeResult, follow: ProbeResult, keep: ProbeResult) -> str:
    return (
        f"it is right in {interval(far)} of {far.n} episodes, chance {far.chance:.3f}; given another episode's memory,"
        f" it answers from that one in {interval(follow)} and keeps the old answer in {interval(keep)}."
    )


def _above_chance(row: ProbeResult) -> bool:
    return (row.low or 0.0) > (row.chance or 0.0) + ABOVE_CHANCE
