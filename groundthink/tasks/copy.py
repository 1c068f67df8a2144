"""R8: copy a string, token by token.

    tokens   BOS  v3 v7 v3 v1  QUERY  v3 v7 v3 v1
    labels    .    .  .  .  .    .    v3 v7 v3 v1

Every token of the copy is a question of its own: `TaskResult.exact` is the accuracy per token,
`whole_episodes` that of whole strings. Run this file to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.tasks.kv_recall import picture
from groundthink.tasks.task import Episode, Ids, Query, ShortcutChance, Task, Vocabulary, check_split, labels_for


@dataclass(frozen=True, eq=False)
class Copy(Task):
    """R8, `BOS string QUERY string`; tokens are values drawn with replacement.

    Args:
        n_copy: tokens of the string.
    """

    name: ClassVar[str] = "copy"
    n_copy: int = 16

    def problems(self) -> list[str]:
        """See `Task`."""
        return [] if self.n_copy >= 1 else [f"n_copy {self.n_copy} must be at least 1"]

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return 2 + 2 * self.n_copy

    def chance(self) -> ShortcutChance:
        """See `Task`, per token. The shortcut is a token not copied yet: a memory of the set without its order."""
        v = self.vocabulary
        once = [1 / left + (1 - 1 / left) / v.n_values for left in range(1, self.n_copy + 1)]
        return ShortcutChance(1 / v.size, 1 / v.n_values, once[-1], sum(once) / len(once))

    def context(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """What stands between BOS and QUERY: the tokens to copy are the values in it."""
        return generator.integers(self.vocabulary.values.start, self.vocabulary.values.stop, size=self.n_copy)

    def sources(self, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the tokens to copy, in a prefix that holds QUERY."""
        values, stop = self.vocabulary.values, int(np.flatnonzero(prefix == self.vocabulary.query)[0])
        return np.flatnonzero((prefix[:stop] >= values.start) & (prefix[:stop] < values.stop))

    def next_token(self, prefix: NDArray[np.int64]) -> tuple[Ids, int]:
        """The rule: as many tokens after QUERY, as many are copied; the next one, and where it stands."""
        stop = int(np.flatnonzero(prefix == self.vocabulary.query)[0])
        source = int(self.sources(prefix)[len(prefix) - 1 - stop])
        return (int(prefix[source]),), source

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        head = np.array([self.vocabulary.bos, *self.context(generator), self.vocabulary.query], dtype=np.int64)
        sources = self.sources(head)
        tokens = np.concatenate([head, head[sources]])
        stored = tuple((token,) for token in dict.fromkeys(head[sources].tolist()))
        queries = tuple(
            Query((), (int(tokens[at + 1]),), (int(tokens[at]),), at, int(source), stored, rule=self.next_token)
            for at, source in enumerate(sources, start=len(head) - 1)
        )
        return Episode(tokens, labels_for(tokens, queries), queries)


if __name__ == "__main__":
    example = Copy(Vocabulary(), n_copy=5)
    print(picture(example, next(example.episodes(0, "train", 1))))
