"""R5: recall by motifs: keys of one to three tokens that share their tokens.

    tokens   BOS  k1 k2 v1  k3 v2  k2 k1 k1 v3  f f f f  QUERY k2 k1 k1 v3
    labels    .    .  .  .   .  .   .  .  .  .  . . . .    .    .  .  . v3

The motifs of an episode are drawn from few tokens, so that one token does not tell the motif; none lies within
another, so that the answer is one. A reader of the last token alone does better than chance, the more so the
larger the alphabet; it is right about some motifs only. Run this file to see one.
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
from groundthink.tasks.task import Chance, Episode, Ids, Task, Vocabulary, check_split


@dataclass(frozen=True, eq=False)
class KvFuzzy(Task):
    """R5, `BOS (motif value)*n_pairs filler (QUERY motif value)*n_queries`.

    Args:
        n_pairs: N, motifs stored.
        longest_motif: tokens of a motif are drawn from 1 to this, at most 3.
        alphabet: key tokens that an episode draws its motifs from; 2 N at least, for enough of them.
        n_queries: questions asked, each motif once at most.
        distance: from the last value to the end of the first cue; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "kv_fuzzy"
    n_pairs: int = 8
    longest_motif: int = 3
    alphabet: int = 16
    n_queries: int = 1
    distance: str = "fixed:36"

    def problems(self) -> list[str]:
        """See `Task`."""
        found = distance_problems(self.distance, key=self.longest_motif)
        found += count_problems(n_queries=self.n_queries, n_keys=self.n_pairs)
        if self.n_pairs < 1:
            found.append(f"n_pairs {self.n_pairs} must be at least 1")
        if not 1 <= self.longest_motif <= 3:
            found.append(f"longest_motif {self.longest_motif} is not 1 to 3")
        if not 2 * self.n_pairs <= self.alphabet <= self.vocabulary.n_keys:
            most = self.vocabulary.n_keys
            found.append(f"alphabet {self.alphabet} is not between 2 n_pairs, {2 * self.n_pairs}, and {most} keys")
        if self.n_pairs > self.vocabulary.n_values:
            found.append(f"{self.n_pairs} unique values need more than {self.vocabulary.n_values} values")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`. The filler is shorter where the first cue is longer, so this is a bound."""
        stored = (1 + self.longest_motif) * self.n_pairs
        # One token in the first cue leaves the most filler.
        room = longest(distance=self.distance, stored=stored, key=1, n_queries=1)
        return room + (self.n_queries - 1) * (2 + self.longest_motif)

    def chance(self) -> Chance:
        """See `Task`."""
        return Chance(1 / self.vocabulary.size, 1 / self.vocabulary.n_values, 1 / self.n_pairs)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        pool = [key[0] for key in draw_keys(generator, self.vocabulary.keys, self.alphabet)]
        motifs = draw_motifs(generator, pool, generator.integers(1, self.longest_motif + 1, size=self.n_pairs).tolist())
        statements = list(zip(motifs, draw_values(generator, self.vocabulary, self.n_pairs), strict=True))
        statements = [statements[i] for i in generator.permutation(self.n_pairs).tolist()]
        order = generator.permutation(self.n_pairs)[: self.n_queries].tolist()
        asked = [Asked(key, value) for key, value in (statements[i] for i in order)]
        return lay_out(generator, self.vocabulary, statements, asked, distance=self.distance)


def draw_motifs(generator: np.random.Generator, pool: list[int], lengths: list[int]) -> list[Ids]:
    """Motifs of these lengths, the shortest first, none within another; needs two tokens for each of them.

    Args:
        generator: of the draws.
        pool: tokens to draw from; those of motifs of one token are in no other.
        lengths: 1 to 3 each.
    """
    found: list[Ids] = []
    for length in sorted(lengths):
        free = [token for token in pool if (token,) not in found]
        while True:
            motif = tuple(free[i] for i in generator.integers(0, len(free), size=length).tolist())
            if not any(inside(shorter, motif) for shorter in found):
                break
        found.append(motif)
    return found


def inside(part: Ids, whole: Ids) -> bool:
    """Whether `part` stands in `whole`, or is it."""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


if __name__ == "__main__":
    example = KvFuzzy(Vocabulary(), n_pairs=4, alphabet=8, n_queries=2, distance="fixed:8")
    print(picture(example, next(example.episodes(0, "train", 1))))
