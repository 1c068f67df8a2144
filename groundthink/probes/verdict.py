"""From probe results to one verdict and one sentence. Pure: an old record can be judged again."""

from __future__ import annotations

from collections.abc import Sequence

from groundthink.records import ProbeResult

VERDICTS = ("INVALID", "TASK-FAIL", "REFUTED", "NOT-PROVEN", "PARTIAL", "CERTIFIED")
POINTS = ("R+1", "2R", "8R")  # distances at which recall is asked
NEAR, LAST = "recall@near", f"recall@{POINTS[-1]}"
ABOVE_CHANCE = 0.05  # what a lower bound must exceed chance by before there is recall to explain
# Keep or follow this close to the accuracy is all of it; the rest is noise of a proportion.
MOSTLY = 0.80

_PRECONDITIONS = ("causality/", "parity", "transplant/sham", "transplant/complete", "harness/")


def verdict_of(results: Sequence[ProbeResult], *, finite: bool) -> tuple[str, str]:
    """The verdict, and why.

    INVALID: a precondition fails. TASK-FAIL: not even a pair inside the window is recalled. REFUTED: there is recall
    beyond the horizon and it does not come from the memory. NOT-PROVEN: no such recall, or nothing shows whence it
    comes. PARTIAL: some of it follows the memory. CERTIFIED: all thresholds are met.

    Args:
        results: of the probes.
        finite: whether the receptive horizon is.
    """
    rows = {row.name: row for row in results}
    broken = [row for row in results if row.name.startswith(_PRECONDITIONS) and row.verdict == "fail"]
    if broken:
        return "INVALID", " ".join(row.meaning for row in broken)
    near = rows.get(NEAR)
    if near is None:
        return "NOT-PROVEN", "recall was not asked."
    if near.verdict != "pass":
        return (
            "TASK-FAIL",
            f"even inside the window it is right in {_interval(near)} only, so nothing is said of memory.",
        )
    if not finite:
        return "NOT-PROVEN", (
            "full attention reaches back without end, so recall at no distance shows that a state carried it."
        )
    return _behaviour(rows)


def _behaviour(rows: dict[str, ProbeResult]) -> tuple[str, str]:
    far = rows.get(LAST)
    if far is None or not _above_chance(far):
        found = "was not asked" if far is None else f"is {_interval(far)}"
        return "NOT-PROVEN", f"recall beyond the horizon {found}, which is not above chance."
    follows = [row for name, row in rows.items() if name.startswith("follow/")]
    keeps = [row for name, row in rows.items() if name.startswith("keep/")]
    if not follows:
        if "transplant/none" in rows:
            return "REFUTED", f"it is right in {_interval(far)} beyond the horizon, yet no layer carries a memory."
        return "NOT-PROVEN", "the memory was not transplanted."
    accuracy = float(follows[0].details["accuracy"]["rate"])
    if any((keep.low or 0) >= MOSTLY * accuracy for keep in keeps) and not any(map(_above_chance, follows)):
        return "REFUTED", f"it keeps the old answer in {_interval(keeps[0])} although its memory is another episode's."
    recalls = [rows.get(f"recall@{point}") for point in POINTS]
    passed = all(row is not None and row.verdict == "pass" for row in [*recalls, *follows, *keeps])
    if passed:
        return "CERTIFIED", _far_sentence(far, follows[0], keeps[0])
    if all(map(_above_chance, follows)):
        share = min(float(row.details["share"]) for row in follows)
        missed = [row.name for row in [*recalls, *follows, *keeps] if row is not None and row.verdict != "pass"]
        return "PARTIAL", (
            f"{100 * share:.0f} % of its recall follows the memory; below the thresholds: {', '.join(missed)}."
            f" {_far_sentence(far, follows[0], keeps[0])}"
        )
    return "NOT-PROVEN", f"recall beyond the horizon is {_interval(far)}, but it does not follow the memory."


def sentence(
    verdict: str, reason: str, results: Sequence[ProbeResult], *, horizon: int | None, twins: Sequence[str]
) -> str:
    """What a reader may quote: verdict, setting, reason, and what stands beside."""
    rows = {row.name: row for row in results}
    far = rows.get(LAST)
    setting = ""
    if far is not None:
        reach = "without end" if horizon is None else f"of {horizon} tokens"
        least = far.details["distances"]["least"]
        setting = (
            f" With {far.details['pairs']} pairs of {far.details['values']} possible values over random filler,"
            f" asked at least {least} tokens later (receptive horizon {reach}):"
        )
    beside = [
        f"{label} {rows[f'{LAST}/{arm}'].value:.3f}"
        for arm, label in (
            ("S-reads-cut", "with the reads of S layers cut"),
            ("own-reads-cut", "with G's own reads cut"),
        )
        if f"{LAST}/{arm}" in rows
    ]
    beside += [
        f"{name} twin {rows[f'{LAST}/twin:{name}'].value:.3f}" for name in twins if f"{LAST}/twin:{name}" in rows
    ]
    text = f"{verdict}.{setting} {reason}"
    if beside:
        text += f" Beside it: {', '.join(beside)}."
    return text if twins else f"{text} Twin: not supplied."


def _far_sentence(far: ProbeResult, follow: ProbeResult, keep: ProbeResult) -> str:
    return (
        f"it is right in {_interval(far)} of {far.n} episodes, chance {far.chance:.3f}; given another episode's memory,"
        f" it answers from that one in {_interval(follow)} and keeps the old answer in {_interval(keep)}."
    )


def _above_chance(row: ProbeResult) -> bool:
    return (row.low or 0.0) > (row.chance or 0.0) + ABOVE_CHANCE


def _interval(row: ProbeResult) -> str:
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
