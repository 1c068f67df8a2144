"""R4: recall by keys of two parts on a grid; neither part alone suffices.

    tokens   BOS  a1 b2 v1  a2 b2 v2  a1 b1 v3  a2 b1 v4  f f f f  QUERY a2 b1 v4
    labels    .    .  .  .   .  .  .   .  .  .   .  .  .  . . . .    .    .  . v4

Every first part stands with every second part, root N of each. A memory that binds values to one part only is
right once in root N. First parts come from the lower half of the keys, second parts from the upper. Run this
file to see one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

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
from groundthink.tasks.task import Episode, ShortcutChance, Task, Vocabulary, check_split


@dataclass(frozen=True, eq=False)
class KvCompositional(Task):
    """R4, `BOS (a b value)*n_triplets filler (QUERY a b value)*n_queries`.

    Args:
        n_triplets: N, a square number, 4 at least.
        n_queries: questions asked, each key once at most.
        distance: from the last triplet to the first cue, 3 at least; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "kv_compositional"
    n_triplets: int = 16
    n_queries: int = 1
    distance: str = "fixed:36"

    @property
    def _side(self) -> int:
        return math.isqrt(max(self.n_triplets, 0))

    def problems(self) -> list[str]:
        """See `Task`."""
        found = distance_problems(self.distance, key=2)
        found += count_problems(n_queries=self.n_queries, n_keys=self.n_triplets)
        if self._side**2 != self.n_triplets or self._side < 2:
            found.append(f"n_triplets {self.n_triplets} is no square number from 4 up")
        if self._side > self.vocabulary.n_keys // 2:
            found.append(f"{self._side} parts of each kind need more than {self.vocabulary.n_keys} keys")
        if self.n_triplets > self.vocabulary.n_values:
            found.append(f"{self.n_triplets} unique values need more than {self.vocabulary.n_values} values")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return longest(distance=self.distance, stored=3 * self.n_triplets, key=2, n_queries=self.n_queries)

    def chance(self) -> ShortcutChance:
        """See `Task`. The shortcut is a value of some triplet that shares one part with the key."""
        v = self.vocabulary
        return ShortcutChance(1 / v.size, 1 / v.n_values, 1 / self.n_triplets, 1 / self._side)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        keys, n = self.vocabulary.keys, self.n_triplets
        half = len(keys) // 2
        first, second = (draw_keys(generator, part, self._side) for part in (keys[:half], keys[half:]))
        grid = [(*a, *b) for a in first for b in second]
        values = draw_values(generator, self.vocabulary, n)
        statements = [(grid[i], value) for i, value in zip(generator.permutation(n).tolist(), values, strict=True)]
        order = generator.permutation(n)[: self.n_queries].tolist()
        asked = [Asked(key, value) for key, value in (statements[i] for i in order)]
        return lay_out(generator, self.vocabulary, statements, asked, distance=self.distance)


if __name__ == "__main__":
    example = KvCompositional(Vocabulary(), n_triplets=4, n_queries=2, distance="fixed:6")
    print(picture(example, next(example.episodes(0, "train", 1))))
    print(f"chance 1/N {example.chance().in_context:.3g}, with one part of the key {example.chance().shortcut:.3g}")
