"""R6: recall among distractor pairs that are never asked for.

    tokens   BOS  k1 v1  k40 v5  k2 v2  k51 v9  f f f f f f  QUERY k2 v2      k32 .. k63 are distractors always
    labels    .    .  .    .  .   .  .    .  .  . . . . . .    .    . v2

Marked distractors take their keys from the upper half of the range, which is never asked for, in no split: a
gate can learn not to write them, or to forget them, which the delta rule alone cannot. Unmarked ones look like
any pair, and cost a memory as much as more pairs would: the control. Run this file to see one.
"""

from __future__ import annotations

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
from groundthink.tasks.task import Chance, Episode, Task, Vocabulary, check_split


@dataclass(frozen=True, eq=False)
class KvNoise(Task):
    """R6, `kv_recall` with distractor pairs in between.

    Args:
        n_pairs: N, all pairs, distractors included.
        noise: share of distractors among them, rounded to whole pairs; at least one pair is none.
        marked: whether their keys tell.
        n_queries: questions asked, each key once at most.
        distance: from the last pair to the first cue; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "kv_noise"
    n_pairs: int = 16
    noise: float = 0.5
    marked: bool = True
    n_queries: int = 1
    distance: str = "fixed:36"

    @property
    def n_noise(self) -> int:
        """Distractor pairs in an episode."""
        return round(self.noise * self.n_pairs)

    def problems(self) -> list[str]:
        """See `Task`."""
        vocabulary, found = self.vocabulary, distance_problems(self.distance)
        if not 0 <= self.noise < 1 or self.n_pairs - self.n_noise < 1:
            found.append(f"noise {self.noise} of {self.n_pairs} pairs leaves none to ask for, or is no share")
            return found
        clean = self.n_pairs - self.n_noise
        found += count_problems(n_queries=self.n_queries, n_keys=clean)
        half = vocabulary.n_keys // 2
        if self.marked and (clean > half or self.n_noise > vocabulary.n_keys - half):
            found.append(f"{clean} pairs and {self.n_noise} marked distractors need more than {half} keys each")
        if self.n_pairs > vocabulary.n_keys:
            found.append(f"{self.n_pairs} pairs need more than {vocabulary.n_keys} keys")
        if self.n_pairs > vocabulary.n_values:
            found.append(f"{self.n_pairs} unique values need more than {vocabulary.n_values} values")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return longest(distance=self.distance, stored=2 * self.n_pairs, key=1, n_queries=self.n_queries)

    def chance(self) -> Chance:
        """See `Task`. A guess leaves out the distractors that it can tell."""
        n = self.n_pairs - self.n_noise if self.marked else self.n_pairs
        return Chance(1 / self.vocabulary.size, 1 / self.vocabulary.n_values, 1 / n)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        keys, clean = self.vocabulary.keys, self.n_pairs - self.n_noise
        if self.marked:
            half = len(keys) // 2
            drawn = draw_keys(generator, keys[:half], clean) + draw_keys(generator, keys[half:], self.n_noise)
        else:
            drawn = draw_keys(generator, keys, self.n_pairs)
        pairs = list(zip(drawn, draw_values(generator, self.vocabulary, self.n_pairs), strict=True))
        statements = [pairs[i] for i in generator.permutation(self.n_pairs).tolist()]
        order = generator.permutation(clean)[: self.n_queries].tolist()
        asked = [Asked(key, value) for key, value in (pairs[i] for i in order)]
        return lay_out(generator, self.vocabulary, statements, asked, distance=self.distance)


if __name__ == "__main__":
    example = KvNoise(Vocabulary(), n_pairs=6, n_queries=2, distance="fixed:8")
    print(picture(example, next(example.episodes(0, "train", 1))))
