"""K5: is recall gone when the memory is zeroed, averaged, drowned in noise or shuffled? Supporting evidence only.

Zeroing breaks models that merely need a memory of some size, so each intervention comes with a control: pairs that
follow it, inside the window, must be answered as before.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from groundthink.errors import StateError
from groundthink.probes.bench import Bench, Point
from groundthink.probes.intervention import Intervention
from groundthink.probes.interventions import Mean, Noise, ShuffleRows, Zero
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import MARGIN, Paired
from groundthink.probes.transplant import KEEP
from groundthink.records import ProbeResult

WHAT = {
    "zero": "set to zero",
    "mean": "averaged over episodes",
    "noise": "replaced by noise of the same norm",
    "shuffle_rows": "taken from another episode",
}


def run_necessity(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Each intervention at the boundary, and the same on pairs that come after it."""
    assert point is not None
    prefilled = bench.prefilled(point)
    if not prefilled.layers():
        yield not_run(f"necessity@{point.name}", "no layer carries a memory")
        return
    control = _control(bench)
    for change in (Zero(), Mean(), Noise(seed=bench.seed), ShuffleRows(seed=bench.seed)):
        name = f"necessity/{change.name}@{point.name}"
        try:
            yield _row(bench, name, prefilled, control, change)
        except StateError as error:
            yield not_run(name, str(error).rstrip("."))


def _control(bench: Bench) -> Prefilled | None:
    """Questions inside the window, with the boundary before the asked pair; None if the text is too short."""
    name = "prefilled near"
    if name not in bench.kept:
        questions = bench.near
        at = int((questions.prompts.shape[1] - questions.distances.max() - 2).item())
        bench.kept[name] = Prefilled(bench.model, questions, at=at) if at > 0 else None
    return bench.kept[name]


def _row(bench: Bench, name: str, prefilled: Prefilled, control: Prefilled | None, change: Intervention) -> ProbeResult:
    def arm(block: Block) -> Tensor:
        return block.said(change(block.mine))

    def averaged(block: Block) -> Tensor:
        """Over donors: a mean over the recipients would hold a part of each one's own memory."""
        return block.said(change(block.mine, block.snapshot("values")))

    said = prefilled.said(change.name, averaged if isinstance(change, Mean) else arm)
    right = prefilled.share(said, prefilled.questions.answers)
    chance = prefilled.questions.chance["in_context"]
    answers = prefilled.questions.answers
    pair = Paired.of((prefilled.base() == answers).tolist(), (said == answers).tolist())
    details: dict[str, object] = {"mcnemar": pair.mcnemar(), "accuracy": prefilled.accuracy().as_dict()}
    passed, told = right.high <= chance + KEEP and pair.mcnemar() <= 0.05, ""
    if control is not None:
        near = control.questions.answers
        after = control.said(change.name, arm)
        loss = Paired.of((control.base() == near).tolist(), (after == near).tolist())
        details |= {"control_loss": loss.difference, "control_upper": loss.upper()}
        passed = passed and loss.upper() <= MARGIN
        told = f"; pairs that come later lose {100 * loss.difference:.1f} points, at most {100 * loss.upper():.1f}"
    return ProbeResult(
        name, right.rate, "pass" if passed else "fail",
        f"With the memory {WHAT[change.name]} it is right in {right}{told}.",
        low=right.low, high=right.high, n=right.n, chance=chance, threshold=chance + KEEP, details=details,
    )  # fmt: skip


NECESSITY = Row(
    "K5", "Memory destroyed", "Is the answer gone when the memory is destroyed, and nothing else with it?",
    "causal", run_necessity, each=True,
)  # fmt: skip
