"""Tests for answers to the same questions: exact McNemar, Holm, equivalence, clusters, and what could be detected.

Arms share their episodes, so they are compared in pairs. "No change" is claimed by an equivalence test only, never by
a difference that failed to be significant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from groundthink.errors import DataError
from groundthink.probes.language import paired_bootstrap
from groundthink.records import Z95

MARGIN = 0.05  # five points: a difference of proportions that counts as none
ALPHA, POWER = 0.05, 0.80


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two arms on the same `n` questions.

    Attributes:
        only_first: right in the first arm only.
        only_second: right in the second arm only.
        n: questions.
    """

    only_first: int
    only_second: int
    n: int

    def __post_init__(self) -> None:
        if min(self.only_first, self.only_second) < 0 or self.only_first + self.only_second > self.n or self.n < 1:
            raise DataError(f"{self.only_first} and {self.only_second} of {self.n} pairs do not add up")

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Count the pairs of which one is right.

        Raises:
            DataError: lists that do not match.
        """
        if len(first) != len(second):
            raise DataError(f"cannot pair {len(first)} and {len(second)} answers", fix="ask both arms the same")
        pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
        return cls(pairs.count((True, False)), pairs.count((False, True)), len(pairs))

    @property
    def difference(self) -> float:
        """Rate of the first arm less that of the second."""
        return (self.only_first - self.only_second) / self.n

    def mcnemar(self) -> float:
        """Exact two-sided p that both arms are equally good: which of the two is right alone is a fair coin."""
        trials, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        return min(1.0, 2 * sum(math.comb(trials, k) for k in range(fewer + 1)) / 2**trials)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the difference, with half an observation added to each of the four cells (Agresti, Min 2005).

        Without that, arms that never differ would have an interval of length 0.
        """
        centre, error = self._adjusted()
        half = NormalDist().inv_cdf((1 + level) / 2) * error
        return max(-1.0, centre - half), min(1.0, centre + half)

    def tost(self, margin: float = MARGIN) -> float:
        """p of the two one-sided tests: small means that the difference is within the margin, either way.

        It is below alpha exactly if the interval of level 1 - 2 alpha lies inside the margin.
        """
        if not 0 < margin < 1:
            raise DataError(f"a margin of {margin} is no difference of proportions")
        centre, error = self._adjusted()
        return NormalDist().cdf((abs(centre) - margin) / error)

    def upper(self, level: float = 0.95) -> float:
        """One-sided upper bound of the difference: what a loss is held against."""
        return self.interval(2 * level - 1)[1]

    def _adjusted(self) -> tuple[float, float]:
        b, c, n = self.only_first + 0.5, self.only_second + 0.5, self.n + 2
        return (b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n


def at_least(hits: int, n: int, rate: float) -> float:
    """Exact P(X >= hits) of n trials at this rate: small means that the true rate is higher.

    Raises:
        DataError: counts that do not add up, or a rate that is none.
    """
    if not 0 <= hits <= n or not 0 <= rate <= 1:
        raise DataError(f"{hits} of {n} at a rate of {rate}")
    if hits == 0 or rate == 1:
        return 1.0
    if rate == 0:
        return 0.0
    whole, odds = math.lgamma(n + 1) + n * math.log1p(-rate), math.log(rate) - math.log1p(-rate)
    logs = [whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * odds for k in range(hits, n + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def at_most(hits: int, n: int, rate: float) -> float:
    """Exact P(X <= hits) of n trials at this rate: small means that the true rate is lower."""
    return at_least(n - hits, n, 1 - rate)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by name, in the order given: to be held against alpha as if there were one test (Holm 1979).

    Raises:
        DataError: a p that is none.
    """
    if any(not 0 <= value <= 1 for value in p.values()):
        raise DataError(f"not between 0 and 1: {[name for name, value in p.items() if not 0 <= value <= 1]}")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[int | str], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of all values with its 95 % interval, where values of one cluster (queries of an episode) hang together.

    Whole clusters are drawn again.

    Raises:
        DataError: fewer than two clusters, or lists that do not match.
    """
    if len(values) != len(clusters):
        raise DataError(f"{len(values)} values of {len(clusters)} clusters", fix="name the cluster of every value")
    inside: dict[int | str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        inside.setdefault(cluster, []).append(float(value))
    means = [math.fsum(group) / len(group) for group in inside.values()]
    sizes = [float(len(group)) for group in inside.values()]
    return paired_bootstrap(means, [0.0] * len(means), weights=sizes, seed=seed)


def detectable(n: int, *, rate: float = 0.5, alpha: float = ALPHA, power: float = POWER) -> float:
    """Least difference of two unpaired arms of n answers each that a test at alpha finds with this power.

    Raises:
        DataError: numbers for which there is none.
    """
    if n < 1 or not all(0 < x < 1 for x in (rate, alpha, power)):
        raise DataError(f"n {n}, rate {rate}, alpha {alpha}, power {power}: nothing can be detected")
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * math.sqrt(2 * rate * (1 - rate) / n)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values with its normal 95 % interval; of one value, that value alone.

    Raises:
        DataError: no value, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise DataError(f"no interval of {len(values)} values, or one is not finite")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, mean, mean
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))
    half = Z95 * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half
