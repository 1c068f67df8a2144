"""R2: recall of keys some of which were bound anew; the last value counts.

    tokens   BOS  k1 v1 k2 v2 k1 v4 k3 v3  f f f f f f  QUERY k1 v4  QUERY k2 v2
    labels    .    .  .  .  .  .  .  .  .  . . . . . .    .    . v4    .    . v2
                   ^stale      ^re-bound                       new     untouched

First bindings and re-bindings stand in random order, so that the place of a statement does not tell which it
is. All values of an episode differ: no re-binding changes nothing, and no old value is another key's new one.
A memory that adds without erasing answers with a mixture of both values, and says the stale one often. Run this
file to see one.
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
class KvOverwrite(Task):
    """R2. `TaskResult.by_kind` has accuracy on `new` and `untouched` keys, `stale` the rate of old values said.

    Args:
        n_pairs: N, keys stored.
        n_rebound: U, how many of them are bound anew, 1 to N.
        times: how often each of those.
        n_queries: questions asked, each key once at most.
        distance: from the last statement to the first cue; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "kv_overwrite"
    n_pairs: int = 16
    n_rebound: int = 8
    times: int = 1
    n_queries: int = 1
    distance: str = "fixed:36"

    @property
    def _n_statements(self) -> int:
        return self.n_pairs + self.n_rebound * self.times

    def problems(self) -> list[str]:
        """See `Task`."""
        found = distance_problems(self.distance) + count_problems(n_queries=self.n_queries, n_keys=self.n_pairs)
        if not 1 <= self.n_rebound <= self.n_pairs:
            found.append(f"n_rebound {self.n_rebound} is not between 1 and n_pairs {self.n_pairs}")
        if self.times < 1:
            found.append(f"times {self.times} must be at least 1")
        if self.n_pairs > self.vocabulary.n_keys:
            found.append(f"{self.n_pairs} pairs need more than {self.vocabulary.n_keys} keys")
        if self._n_statements > self.vocabulary.n_values:
            n_values = self.vocabulary.n_values
            found.append(f"{self._n_statements} values, old and new, need more than {n_values} values")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return longest(distance=self.distance, stored=2 * self._n_statements, key=1, n_queries=self.n_queries)

    def chance(self) -> Chance:
        """See `Task`. The value written last is always some key's current one: right once in N, not N + U."""
        return Chance(1 / self.vocabulary.size, 1 / self.vocabulary.n_values, 1 / self.n_pairs)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        keys = draw_keys(generator, self.vocabulary.keys, self.n_pairs)
        values = draw_values(generator, self.vocabulary, self._n_statements)
        turns = [*range(self.n_pairs), *list(range(self.n_rebound)) * self.times]
        history: dict[int, list[Ids]] = {i: [] for i in range(self.n_pairs)}
        statements = []
        for i, value in zip(generator.permutation(turns).tolist(), values, strict=True):
            history[i].append(value)
            statements.append((keys[i], value))
        asked = [
            Asked(keys[i], history[i][-1], tuple(history[i][:-1]), "new" if i < self.n_rebound else "untouched")
            for i in generator.permutation(self.n_pairs)[: self.n_queries].tolist()
        ]
        return lay_out(generator, self.vocabulary, statements, asked, distance=self.distance)


if __name__ == "__main__":
    example = KvOverwrite(Vocabulary(), n_pairs=4, n_rebound=2, n_queries=3, distance="fixed:8")
    print(picture(example, next(example.episodes(0, "train", 1))))
