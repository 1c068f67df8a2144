"""Where a memory is transplanted, and whose: the boundary t* and the donors.

The donor's prompt has the same keys, positions and filler, but other values (`values`), the same values bound to other
keys (`deranged`: cues about the *set* of values do not help), or one other value (`one_key`). The boundary t* lies more
than R filler tokens after the last pair, so that no window or convolution holds anything of a pair directly, and at
least R tokens before the question, so that what they do hold (traces that the recipient's memory left) is gone when
the answer is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from groundthink.errors import TaskError
from groundthink.probes.face import Model, derived_seed, exactness, gap, tolerance_of
from groundthink.probes.intervention import EVERYTHING
from groundthink.probes.interventions import Transplant
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.recall import Questions
from groundthink.tasks.kv_recall import KvRecall

KINDS = ("values", "deranged", "one_key")
WHO = {
    "values": "other values",
    "deranged": "the same values on other keys",
    "one_key": "another value on the asked key alone",
}
FOLLOW = 0.80  # share of the recipient's accuracy that the follow rate's lower bound has to reach
KEEP = 0.03  # what the keep rate's upper bound may exceed chance by


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
    """t*: the last place that is R before the question, if it is beyond R after the last pair. The later it lies, the
    less there is to read again for every arm.

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
    # What windows hold at t* is written into the memories above them for R tokens more; another 2 R let it be written
    # over, as long as the filler has that much on either side.
    return max((low + high) // 2, high - 2 * horizon)


def donors(task: KvRecall, questions: Questions, *, kind: str, seed: int) -> Questions:
    """The counterfactual of every episode: same keys, positions and filler, other answers."""
    found = [
        task.donor(episode, np.random.default_rng(derived_seed(seed, "donor", kind, index)), kind=kind)
        for index, episode in enumerate(questions.episodes)
    ]
    return Questions.of(found, questions.chance)


def at_boundary(
    model: Model,
    task: KvRecall,
    questions: Questions,
    *,
    horizon: int,
    seed: int,
    tick: Callable[[], None] | None = None,
) -> Prefilled:
    """Questions read up to their boundary, with donors of every kind.

    Raises:
        TaskError: there is no room for a boundary.
    """

    def giver(kind: str) -> Questions:
        return donors(task, questions, kind=kind, seed=seed)

    return Prefilled(model, questions, at=boundary(questions, horizon), giver=giver, tick=tick)


def controls(prefilled: Prefilled, kind: str) -> Controls:
    """Sham and completeness, on the first block: exactness needs no statistics."""

    def measure(block: Block) -> Controls:
        mine, theirs = block.mine, block.snapshot(kind)
        base = block.after(mine)
        sham = block.after(Transplant()(mine, mine))
        swapped = block.after(Transplant(what=EVERYTHING)(mine, theirs))
        resumed = block.after(theirs)
        whole = block.model.prefill(block.text(kind)[:1])[0][:, -1]
        scale = float(whole.abs().max()) or 1.0
        return Controls(
            gap(sham, base), gap(swapped, resumed), gap(swapped[:1], whole) / scale, exactness(base), tolerance_of(base)
        )

    return prefilled.map(measure, 1)[0]


def swapped(prefilled: Prefilled, kind: str, name: str = "S", swap: Transplant | None = None) -> torch.Tensor:
    """The answers [n] after a swap with a kind of donor; by default of the memories of all layers."""
    chosen = Transplant() if swap is None else swap
    return prefilled.said(f"{name}/{kind}", lambda block: block.said(chosen(block.mine, block.snapshot(kind))))
