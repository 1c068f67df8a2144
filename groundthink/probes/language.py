"""Bits per byte of two models on the same documents: is one no worse than the other? Numbers come in from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from groundthink.errors import DataError
from groundthink.probes.face import derived_seed
from groundthink.records import ProbeResult

NO_WORSE = 0.02  # bits per byte: upper bound of the paired difference that still counts as "no worse"
RESAMPLES = 10_000


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], *, weights: Sequence[float] | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference ours - theirs over documents with the 95 % interval of the paired bootstrap.

    Args:
        ours, theirs: bits per byte of each document, in the same order.
        weights: bytes of each document; None weighs all the same.
        seed: of the resampling.

    Raises:
        DataError: fewer than two documents, or lists that do not match.
    """
    n = len(ours)
    if n < 2 or len(theirs) != n or (weights is not None and len(weights) != n):
        sizes = f"{n} and {len(theirs)} documents" + ("" if weights is None else f", {len(weights)} weights")
        raise DataError(f"cannot pair {sizes}", fix="give the same documents, at least two, in the same order")
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    weight = torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if not difference.isfinite().all() or not weight.isfinite().all() or (weight <= 0).any():
        raise DataError("bits per byte or document sizes that are not finite or not positive")
    generator = torch.Generator().manual_seed(derived_seed(seed, "bootstrap"))
    means = []
    for start in range(0, RESAMPLES, 500):  # in blocks: 10,000 x n indices at once would be large
        rows = torch.randint(n, (min(500, RESAMPLES - start), n), generator=generator)
        means.append((difference[rows] * weight[rows]).sum(1) / weight[rows].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float((difference * weight).sum() / weight.sum()), low, high


def language(
    difference: float, low: float, high: float, *, n: int, against: str, details: dict[str, float] | None = None
) -> ProbeResult:
    """The rule of "no worse": the upper bound of the difference is at most 0.02 bits per byte.

    Args:
        difference: mean over documents of our bits per byte less the other model's.
        low, high: its 95 % interval.
        n: documents.
        against: the other model's name.
        details: further numbers, such as the two means.

    Raises:
        DataError: numbers that are no interval.
    """
    if not (math.isfinite(difference) and low <= high):
        raise DataError(f"difference {difference} with interval [{low}, {high}] is no interval")
    passed = high <= NO_WORSE
    meaning = (
        f"Held-out text costs {difference:+.4f} bits per byte against {against} (95 % interval {low:+.4f} to"
        f" {high:+.4f}, {n} documents): {'no worse' if passed else 'not shown to be no worse'}."
    )
    name = f"language/{against}"
    return ProbeResult(
        name, difference, "pass" if passed else "fail", meaning,
        low=low, high=high, n=n, threshold=NO_WORSE, details=dict(details or {}),
    )  # fmt: skip
