"""Echo: was this token there before? The token itself if it was, ABSENT if it was not.

    tokens   BOS  f k3 f f k7 f f  QUERY k3 k3  QUERY k5 ABSENT
    labels    .    .  . . .  . . .    .   . k3    .   . ABSENT

The cue shows the token that is right for a stored one, so that an echo alone needs no memory; what has to be
remembered is which tokens were there. Run this file to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from groundthink.tasks.kv_recall import picture
from groundthink.tasks.task import Chance, Episode, Query, Task, Vocabulary, check_split, labels_for


@dataclass(frozen=True, eq=False)
class Echo(Task):
    """Tokens scattered over filler, `(QUERY token token|ABSENT)*n_queries`.

    Args:
        length: tokens before the first question, BOS included, exactly.
        n_items: different keys scattered over the filler.
        n_queries: questions asked, no key twice.
        absent: share of questions for a key that was not there.
    """

    name: ClassVar[str] = "echo"
    length: int = 64
    n_items: int = 8
    n_queries: int = 1
    absent: float = 0.5

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if self.n_items < 1 or self.n_queries < 1:
            found.append(f"n_items {self.n_items} and n_queries {self.n_queries} must be at least 1")
        if not 0 <= self.absent <= 1:
            found.append(f"absent {self.absent} is no share between 0 and 1")
        if self.n_queries > self.n_items:
            found.append(f"n_queries {self.n_queries} is more than n_items {self.n_items}")
        spare = self.n_queries if self.absent else 0
        if self.n_items + spare > self.vocabulary.n_keys:
            found.append(f"{self.n_items} items and {spare} absent ones need more than {self.vocabulary.n_keys} keys")
        if self.length < 1 + self.n_items:
            found.append(f"length {self.length} does not hold n_items {self.n_items}: raise it to {1 + self.n_items}")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self.length + 3 * self.n_queries

    def chance(self) -> Chance:
        """See `Task`. In context: always to echo, or always to say ABSENT."""
        v = self.vocabulary
        return Chance(1 / v.size, (1 - self.absent) / v.n_keys, max(self.absent, 1 - self.absent))

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        v, n, m = self.vocabulary, self.n_items, self.n_queries
        keys = (v.keys.start + generator.permutation(v.n_keys)).tolist()
        head = generator.integers(v.filler.start, v.filler.stop, size=self.length)
        head[0] = v.bos
        places = 1 + generator.permutation(self.length - 1)[:n]
        head[places] = keys[:n]
        missing = generator.random(m) < self.absent
        tokens, queries = head.tolist(), []
        stored = tuple((key,) for key in keys[:n])
        for j in range(m):
            key = keys[n + j] if missing[j] else keys[j]
            value = v.absent if missing[j] else key
            at = len(tokens) + 1
            tokens += [v.query, key, value]
            # A stored token is its own statement: nothing introduces it.
            found = ((key,), None, "absent") if missing[j] else ((), int(places[j]), "echo")
            queries.append(Query(found[0], (value,), (v.query, key), at, found[1], stored, kind=found[2]))
        array = np.array(tokens, dtype=np.int64)
        return Episode(array, labels_for(array, tuple(queries)), tuple(queries))


if __name__ == "__main__":
    example = Echo(Vocabulary(), length=12, n_items=3, n_queries=2)
    print(picture(example, next(example.episodes(0, "train", 1))))
