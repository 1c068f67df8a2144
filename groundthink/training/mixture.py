"""The rows of one step: a function of the seed, the phase and the step in it, and of nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from torch import Tensor

from groundthink.errors import DataError
from groundthink.training.config import TEXT, MixItem, Phase

ROOT_2 = Fraction(
    math.sqrt(2) - 1
)  # independent of the golden ratio: what is pure says nothing of how rows are divided
GOLDEN = Fraction((math.sqrt(5) - 1) / 2)  # its multiples fill [0, 1) more evenly than those of any other number


class Rows(Protocol):
    """What a batch offers: `groundthink.data.Batch` or anything of its face.

    Attributes:
        tokens, labels: int64 [B,T]; labels stand on the index of their own token, -100 does not count.
        documents: [B,T] ids, non-decreasing in a row, or None.
        fresh: bool [B], rows in which a stream starts anew; None outside streams.
    """

    @property
    def tokens(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def documents(self) -> Tensor | None: ...
    @property
    def fresh(self) -> Tensor | None: ...


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A validation metric with its 95 % interval, where it has one, and the trials behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


class Predict(Protocol):
    """tokens [B,T] -> logits [B,T,vocabulary], without gradients; of any precision and on any device, left there."""

    def __call__(self, tokens: Tensor, /) -> Tensor: ...


class Source(Protocol):
    """Where the rows of one mix item come from, and how well they are predicted."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data change; a resumed run must find the same."""

    def batch(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """Training rows: the same for the same arguments."""

    def stream(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """Training rows that continue those of step - 1, but for the rows marked fresh."""

    def measure(self, predict: Predict, *, n: int, seed: int, length: int) -> Mapping[str, Measurement]:
        """Metrics on validation data, n episodes or windows of it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of one item in one step. `streams`: they continue the rows of the step before.

    `loss_factors`: of the losses beside that of the tokens, 1 where none is named.
    """

    name: str
    batch: Rows
    loss_weight: float
    streams: bool
    loss_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)


def derive(*parts: Any) -> int:
    """A seed below 2^48 from any printable values; equal values give equal seeds, in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def divide_rows(weights: Sequence[float], rows: int, step: int | None) -> tuple[int, ...]:
    """Rows of each item in one step: they sum to `rows`, and each is its exact share rounded up or down.

    Systematic sampling hands out the rounded rows: over the steps every item gets its exact share, so an item
    with a small weight has rows in some steps. `step` None gives the same division every time.
    """
    total = sum(map(Fraction, weights))
    shares = [Fraction(weight) * rows / total for weight in weights]
    offset = Fraction(1, 2) if step is None else (step * GOLDEN + Fraction(1, 2)) % 1
    counts, before = [], offset
    for share in shares:
        after = before + share
        counts.append(math.floor(after) - math.floor(before))
        before = after
    return tuple(counts)


def pure_item(shares: Sequence[float], step: int) -> int | None:
    """Index of the item that has this step to itself, or None; over the steps each gets its exact share."""
    point, before = (step * ROOT_2 + Fraction(1, 2)) % 1, Fraction(0)
    for index, share in enumerate(shares):
        before += Fraction(share)
        if point < before:
            return index
    return None


class Mixture:
    """Builds the parts of every step of one phase.

    Args:
        seed: of the run.
        index: of the phase in the run.
        phase: its mix, rows and length.
        sources: by item name.
    """

    def __init__(self, *, seed: int, index: int, phase: Phase, sources: Mapping[str, Source]) -> None:
        self.phase, self.sources = phase, sources
        self.seeds = {item.label: derive(seed, "train", index, item.label) for item in phase.mix}

    def parts(self, step: int) -> tuple[Part, ...]:
        """The parts of one step of this phase, counted from 0; items without rows in it are left out.

        Raises:
            DataError: a state-passing phase gives its text no rows.
        """
        phase = self.phase
        alone = pure_item([item.pure for item in phase.mix], step)
        weights = [item.weight if alone is None else float(i == alone) for i, item in enumerate(phase.mix)]
        counts = divide_rows(weights, phase.rows, None if phase.state_passing else step)
        parts = []
        for item, rows in zip(phase.mix, counts, strict=True):
            streams = phase.state_passing and item.source == TEXT
            if rows:
                parts.append(self._part(item, rows, step, streams))
            elif streams:
                raise DataError(
                    f"{item.label!r} gets none of the {phase.rows} rows",
                    where=phase.name,
                    fix="raise rows or weight",
                )
        return tuple(parts)

    def _part(self, item: MixItem, rows: int, step: int, streams: bool) -> Part:
        source = self.sources[item.label]
        build = source.stream if streams else source.batch
        batch = build(seed=self.seeds[item.label], step=step, rows=rows, length=self.phase.length)
        if tuple(batch.tokens.shape) != (rows, self.phase.length):
            found, wanted = tuple(batch.tokens.shape), (rows, self.phase.length)
            raise DataError(f"the batch of {item.label!r} is {found}, it should be {wanted}", where=self.phase.name)
        return Part(item.label, batch, item.loss_weight, streams, item.loss_factors)
