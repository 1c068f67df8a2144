"""Donor transplant: put another episode's memory in; does the answer follow it, or keep what was read before?

The donor's prompt has the same keys, positions and filler, but other values (`values`), or the same values bound to
other keys (`deranged`: cues about the *set* of values do not help). The boundary t* lies more than R filler tokens
after the last pair, so that no window or convolution holds anything of a pair directly, and at least R tokens before
the question, so that what they do hold (traces that the recipient's memory left) is gone when the answer is given.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.model import Snapshot
from groundthink.probes.face import Model, derived_seed, device_of, exactness, gap, mode, tolerance_of
from groundthink.probes.intervention import EVERYTHING, Intervention, carriers
from groundthink.probes.interventions import Transplant
from groundthink.probes.recall import Questions, rows_per_pass, top
from groundthink.records import ProbeResult, Proportion
from groundthink.tasks.kv_recall import KvRecall

KINDS = ("values", "deranged")
FOLLOW = 0.80  # share of the recipient's accuracy that the follow rate's lower bound has to reach
KEEP = 0.03  # what the keep rate's upper bound may exceed chance by


@dataclasses.dataclass(frozen=True)
class Transplanted:
    """What one kind of donor did.

    Attributes:
        kind: of the donors.
        accuracy: of the recipients, untouched, across the same boundary.
        follow: answers that are the donor's value.
        keep: answers that are still the recipient's value.
    """

    kind: str
    accuracy: Proportion
    follow: Proportion
    keep: Proportion


@dataclasses.dataclass(frozen=True)
class Controls:
    """What must be exactly nothing, and exactly everything.

    Attributes:
        sham: largest change of a logit when the memory is replaced by itself.
        complete: largest difference between swapping every tensor and going on from the donor's own snapshot.
        whole: relative difference between swapping every tensor and reading the donor's prompt in one go.
        allowed: of `sham` and `complete`.
        tolerance: of `whole`.
    """

    sham: float
    complete: float
    whole: float
    allowed: float
    tolerance: float


def least_distance(horizon: int) -> int:
    """Least distance of the nearest pair that leaves room for the boundary."""
    return 2 * horizon + 3


def boundary(questions: Questions, horizon: int) -> int:
    """t*: the middle of the places that are beyond R after the last pair and R before the question.

    Raises:
        TaskError: there is no such place.
    """
    end = questions.prompts.shape[1]  # the cue's two tokens stand at end - 2 and end - 1
    last = max(  # the last stored value
        int(torch.isin(prompt, stored).nonzero().max())
        for prompt, stored in zip(questions.prompts, questions.stored, strict=True)
    )
    low, high = last + 1 + horizon + 1, end - 2 - horizon
    if low > high:
        raise TaskError(
            f"no boundary with more than {horizon} filler tokens on either side",
            where="transplant",
            fix=f"ask at a distance of at least {least_distance(horizon)}",
        )
    return (low + high) // 2


def donors(task: KvRecall, questions: Questions, *, kind: str, seed: int) -> Questions:
    """The counterfactual of every episode: same keys, positions and filler, other answers."""
    found = [
        task.donor(episode, np.random.default_rng(derived_seed(seed, "donor", kind, index)), kind=kind)
        for index, episode in enumerate(questions.episodes)
    ]
    return Questions.of(found, questions.chance)


def transplanted(
    model: Model,
    recipients: Questions,
    givers: dict[str, Questions],
    *,
    at: int,
    intervention: Intervention | None = None,
) -> tuple[tuple[Transplanted, ...], Controls]:
    """Prefill to `at` once for recipients and once for each kind of donor, swap, resume, count.

    Args:
        model: the model.
        recipients: the questions.
        givers: donors by kind, row by row those of the recipients.
        at: the boundary t*.
        intervention: what is swapped; None means the memories of all layers.

    Raises:
        StateError: the model carries nothing of that name.
        TaskError: a donor differs from its recipient after the boundary.
    """
    swap = Transplant() if intervention is None else intervention
    counts = {kind: [0, 0] for kind in givers}
    right, controls = 0, None
    device, n = device_of(model), len(recipients)
    for kind, giver in givers.items():
        if not torch.equal(giver.prompts[:, at:], recipients.prompts[:, at:]):
            raise TaskError("donors differ from their recipients after the boundary", where=f"donors {kind}")
    step = rows_per_pass(model, recipients.prompts.shape[1])
    with mode(model, training=False), torch.no_grad():
        for start in range(0, n, step):
            rows = slice(start, start + step)
            prompts, answers = recipients.prompts[rows].to(device), recipients.answers[rows]
            rest = prompts[:, at:]
            mine = model.prefill(prompts[:, :at])[1]
            base = model.resume(mine, rest)[0][:, -1]
            right += int((top(base) == answers).sum())
            for kind, giver in givers.items():
                theirs = model.prefill(giver.prompts[rows, :at].to(device))[1]
                said = top(model.resume(swap(mine, theirs), rest)[0][:, -1])
                counts[kind][0] += int((said == giver.answers[rows]).sum())
                counts[kind][1] += int((said == answers).sum())
                if controls is None:  # exactness needs no statistics: the first rows of the first kind will do
                    whole = model.prefill(giver.prompts[rows].to(device))[0][:, -1]
                    controls = _controls(model, swap, mine, theirs, rest, base, whole)
    assert controls is not None
    accuracy = Proportion(right, n)
    done = tuple(Transplanted(k, accuracy, Proportion(f, n), Proportion(s, n)) for k, (f, s) in counts.items())
    return done, controls


def transplant_rows(
    model: Model, task: KvRecall, questions: Questions, *, horizon: int, seed: int, required: bool = True
) -> tuple[ProbeResult, ...]:
    """The causal test as records: follow and keep for each kind of donor, and the two controls.

    Args:
        model: the model.
        task: of the questions; makes the donors.
        questions: at a distance that leaves room for the boundary.
        horizon: R.
        seed: of the donors.
        required: whether the rows are judged; else they are information (the controls always are).
    """
    at = boundary(questions, horizon)
    probe = model.prefill(questions.prompts[:1, :1].to(device_of(model)))[1]
    if not carriers(probe):
        meaning = "No layer carries a memory, so there is none to transplant."
        return (ProbeResult("transplant/none", 0.0, "info", meaning),)
    givers = {kind: donors(task, questions, kind=kind, seed=seed) for kind in KINDS}
    done, controls = transplanted(model, questions, givers, at=at)
    rows: list[ProbeResult] = []
    for outcome in done:
        rows += _rows(outcome, questions.chance["in_context"], at, carriers(probe), required)
    sham = ProbeResult(
        "transplant/sham",
        controls.sham,
        "pass" if controls.sham <= controls.allowed else "fail",
        f"Replacing the memory by itself moves a logit by at most {controls.sham:.3g}.",
        threshold=controls.allowed,
    )
    passed = controls.complete <= controls.allowed and controls.whole <= controls.tolerance
    complete = ProbeResult(
        "transplant/complete",
        controls.complete,
        "pass" if passed else "fail",
        f"Swapping everything the model carries is running the donor's prompt, but for {controls.complete:.3g}"
        f" ({controls.whole:.2g} of the largest logit against reading it in one go).",
        threshold=controls.allowed,
        details={"against_whole": controls.whole, "tolerance": controls.tolerance},
    )
    return (*rows, sham, complete)


def _rows(
    outcome: Transplanted, chance: float, at: int, layers: tuple[int, ...], required: bool
) -> tuple[ProbeResult, ProbeResult]:
    follow, keep, accuracy = outcome.follow, outcome.keep, outcome.accuracy
    who = {"values": "other values", "deranged": "the same values on other keys"}[outcome.kind]
    details = {
        "accuracy": accuracy.as_dict(),
        "share": follow.rate / accuracy.rate if accuracy.hits else 0.0,
        "boundary": at,
        "layers": list(layers),
    }
    # Where there is no recall, 0.8 x accuracy asks for nothing: following must beat chance besides.
    followed = follow.low >= FOLLOW * accuracy.rate and follow.low > chance

    def judged(passed: bool) -> str:
        return ("pass" if passed else "fail") if required else "info"

    return (
        ProbeResult(
            f"follow/{outcome.kind}", follow.rate, judged(followed),
            f"With the memory of an episode that has {who}, the answer is the donor's in {follow}.",
            low=follow.low, high=follow.high, n=follow.n, chance=chance, threshold=FOLLOW * accuracy.rate,
            details=details,
        ),
        ProbeResult(
            f"keep/{outcome.kind}", keep.rate, judged(keep.high <= chance + KEEP),
            f"With the memory of an episode that has {who}, the answer is still the old one in {keep}.",
            low=keep.low, high=keep.high, n=keep.n, chance=chance, threshold=chance + KEEP, details=details,
        ),
    )  # fmt: skip


def _controls(
    model: Model, swap: Intervention, mine: Snapshot, theirs: Snapshot, rest: Tensor, base: Tensor, whole: Tensor
) -> Controls:
    sham = model.resume(swap(mine, mine), rest)[0][:, -1]
    swapped = model.resume(Transplant(what=EVERYTHING)(mine, theirs), rest)[0][:, -1]
    resumed = model.resume(theirs, rest)[0][:, -1]
    scale = float(whole.abs().max()) or 1.0
    return Controls(
        gap(sham, base), gap(swapped, resumed), gap(swapped, whole) / scale, exactness(base), tolerance_of(base)
    )
