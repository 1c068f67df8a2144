"""R3: how many pairs fit? Recall with N swept at one distance, and the N at which accuracy is half.

    tokens   BOS  k1 v1 ... kN vN  f f f f f f  QUERY k2 v2      N = n_min, 2 n_min, 4 n_min, ... n_max
    labels    .    .  .      .  .  . . . . . .    .    . v2

Every episode draws its N; `TaskResult.by_kind` has the accuracy of each, and `n50(points(result))` fits the
capacity. The filler is as long for every N. The distance is that of the nearest pair, not of the asked one:
were the answer always as far back, counting would find it without a memory. Run this file to see one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.errors import TaskError
from groundthink.records import Proportion
from groundthink.tasks.kv_recall import picture
from groundthink.tasks.statements import (
    Asked,
    count_problems,
    distance_problems,
    draw_keys,
    draw_values,
    lay_out,
    longest,
)
from groundthink.tasks.task import Chance, Episode, Task, Vocabulary, check_split

_LOCATIONS, _SLOPES = 241, 25  # grid of the fit: N50 to 1/240 of the swept octaves


@dataclass(frozen=True, eq=False)
class KvCapacity(Task):
    """R3, `kv_recall` with as many pairs as each episode draws.

    Args:
        n_min, n_max: the sweep: n_min doubled as often as it stays within n_max, each as likely.
        n_queries: questions asked, each key once; at most n_min.
        distance: from the last pair to the first cue; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "kv_capacity"
    n_min: int = 4
    n_max: int = 64
    n_queries: int = 1
    distance: str = "fixed:36"

    @property
    def sweep(self) -> tuple[int, ...]:
        """The numbers of pairs, rising."""
        return tuple(self.n_min << i for i in range((self.n_max // self.n_min).bit_length()))

    def problems(self) -> list[str]:
        """See `Task`."""
        found = distance_problems(self.distance)
        if not 1 <= self.n_min <= self.n_max:
            found.append(f"n_min {self.n_min} to n_max {self.n_max} is no sweep from 1 up")
        else:
            found += count_problems(n_queries=self.n_queries, n_keys=self.n_min)
        for what, room in (("keys", self.vocabulary.n_keys), ("values", self.vocabulary.n_values)):
            if self.n_max > room:
                found.append(f"n_max {self.n_max} needs more than {room} {what}")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return longest(distance=self.distance, stored=2 * self.sweep[-1], key=1, n_queries=self.n_queries)

    def chance(self) -> Chance:
        """See `Task`. The mean over the sweep of 1/N."""
        once = sum(1 / n for n in self.sweep) / len(self.sweep)
        return Chance(1 / self.vocabulary.size, 1 / self.vocabulary.n_values, once)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        n = int(generator.choice(self.sweep))
        keys = draw_keys(generator, self.vocabulary.keys, n)
        statements = list(zip(keys, draw_values(generator, self.vocabulary, n), strict=True))
        order = generator.permutation(n)[: self.n_queries].tolist()
        asked = [Asked(key, value, kind=f"N={n}") for key, value in (statements[i] for i in order)]
        return lay_out(generator, self.vocabulary, statements, asked, distance=self.distance)


@dataclass(frozen=True)
class N50:
    """The number of pairs at which accuracy is half.

    Attributes:
        n50: the fit.
        low, high: its 95 % interval; where it ends at an end of the sweep, it may reach beyond.
        slope: of the logistic, per octave: how sharply accuracy falls.
    """

    n50: float
    low: float
    high: float
    slope: float


def points(by_kind: Mapping[str, Proportion]) -> dict[int, Proportion]:
    """Accuracy by N, rising, from `TaskResult.by_kind` of this task.

    Raises:
        TaskError: slices of another task.
    """
    if not by_kind or not all(kind.startswith("N=") and kind[2:].isdecimal() for kind in by_kind):
        raise TaskError(f"slices {', '.join(by_kind) or 'none'}", where="n50", fix="give it a result of kv_capacity.")
    return dict(sorted((int(kind[2:]), share) for kind, share in by_kind.items()))


def n50(found: Mapping[int, Proportion], *, seed: int = 0, resamples: int = 1000) -> N50 | None:
    """Fit a falling logistic in log N, by maximum likelihood on a grid between the ends of the sweep.

    Args:
        found: accuracy by N; trials are taken as independent: one query per episode.
        seed, resamples: of the bootstrap, which draws the hits of every N anew.

    Returns:
        None where half is not bracketed: no N is at half or above with a larger one at half or below.

    Raises:
        TaskError: an N below 1, or without trials.
    """
    if any(n < 1 or not share.n for n, share in found.items()):
        raise TaskError("an N below 1 or without trials", where="n50", fix="give every N some episodes.")
    sizes = sorted(found)
    rates = [found[n].rate for n in sizes]
    above = [n for n, rate in zip(sizes, rates, strict=True) if rate >= 0.5]
    below = [n for n, rate in zip(sizes, rates, strict=True) if rate <= 0.5]
    if not above or not below or not min(above) < max(below):
        return None
    octaves = np.log2(sizes)
    trials = np.array([found[n].n for n in sizes])
    hits = np.array([[found[n].hits for n in sizes]])
    centre, slope = _fit(octaves, hits, trials)
    drawn = np.random.default_rng(seed).binomial(trials, rates, size=(resamples, len(sizes)))
    low, high = np.quantile(_fit(octaves, drawn, trials)[0], [0.025, 0.975])
    return N50(float(2 ** centre[0]), float(2**low), float(2**high), float(slope[0]))


def _fit(
    octaves: NDArray[np.float64], hits: NDArray[np.int64], trials: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log2 N50 and slope, float [B] each, from hits [B, P] of trials [P] at log2 N [P]."""
    locations, slopes = np.meshgrid(
        np.linspace(octaves[0], octaves[-1], _LOCATIONS), np.geomspace(0.25, 16, _SLOPES), indexing="ij"
    )
    score = (octaves[:, None] - locations.ravel()) * slopes.ravel()  # [P, grid]
    likelihood = -(hits @ np.logaddexp(0, score) + (trials - hits) @ np.logaddexp(0, -score))
    best = likelihood.argmax(axis=1)
    return locations.ravel()[best], slopes.ravel()[best]


def curve(found: Mapping[int, Proportion], fit: N50 | None) -> Sequence[str]:
    """Lines that show accuracy by N and the fit."""
    lines = [f"N={n:<4} {share}" for n, share in found.items()]
    return [*lines, "N50 not bracketed" if fit is None else f"N50 {fit.n50:.3g} [{fit.low:.3g}, {fit.high:.3g}]"]


if __name__ == "__main__":
    example = KvCapacity(Vocabulary(), n_min=2, n_max=4, distance="fixed:8")
    print(picture(example, next(example.episodes(0, "train", 1))))
    planted = {n: Proportion(hits, 200) for n, hits in ((4, 199), (8, 180), (16, 104), (32, 24), (64, 4))}
    print("a planted curve", *curve(planted, n50(planted)), sep="\n")
