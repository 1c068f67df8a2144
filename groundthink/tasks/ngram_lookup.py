"""R8: what follows these n tokens in the string?

    tokens   BOS  v3 v7 v3 v1 v7 v2  f f f f  QUERY v3 v1 v7     n = 2
    labels    .    .  .  .  .  .  .  . . . .    .    .  . v7

The asked n-gram stands in the string once; its last token alone may stand there often. Run this file to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from groundthink.errors import TaskError
from groundthink.tasks.check import find
from groundthink.tasks.kv_recall import picture
from groundthink.tasks.statements import Asked, ask, distance_problems, longest
from groundthink.tasks.task import Episode, Ids, ShortcutChance, Task, Vocabulary, check_split

_TRIES = 100


@dataclass(frozen=True, eq=False)
class NgramLookup(Task):
    """R8, `BOS string filler (QUERY n-gram next)*n_queries`; tokens of the string are values.

    Args:
        length: tokens of the string.
        n: tokens of an n-gram, 1 to 4.
        alphabet: values that the string is drawn from, with replacement: the first ones of their range.
        n_queries: questions asked, no two about neighbouring n-grams, which would answer each other.
        distance: from the end of the string to the end of the first cue; see `DistanceLaw.parse`.
    """

    name: ClassVar[str] = "ngram_lookup"
    length: int = 32
    n: int = 2
    alphabet: int = 16
    n_queries: int = 1
    distance: str = "fixed:36"

    def problems(self) -> list[str]:
        """See `Task`."""
        found = distance_problems(self.distance, key=self.n)
        if not 1 <= self.n <= 4:
            found.append(f"n {self.n} is not 1 to 4")
        if not 2 <= self.alphabet <= self.vocabulary.n_values:
            found.append(f"alphabet {self.alphabet} is not between 2 and the {self.vocabulary.n_values} values")
        elif not self.n < self.length <= self.alphabet**self.n:
            most = self.alphabet**self.n
            found.append(f"length {self.length} is not above n {self.n} and at most the {most} n-grams")
        if not 1 <= self.n_queries <= max(1, (self.length - self.n) // 4):
            found.append(f"n_queries {self.n_queries} is not between 1 and a quarter of the n-grams")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return longest(distance=self.distance, stored=self.length, key=self.n, n_queries=self.n_queries)

    def chance(self) -> ShortcutChance:
        """See `Task`. In context: a token of the string. The shortcut: one that follows the key's last token.

        Both as if the n-gram were not known to be unique, up to the share of strings in which another place
        would have held it.
        """
        a, slots = self.alphabet, self.length
        once = 1 / slots + (1 - 1 / slots) / a
        if self.n == 1:
            return ShortcutChance(1 / self.vocabulary.size, 1 / a, once, 0.0)
        # Other followed places that hold the last token, but not the n-gram: binomial(m, p).
        m, p = slots - 1 - self.n, (1 / a) * (1 - a ** -(self.n - 1)) / (1 - a**-self.n)
        alone = (1 - (1 - p) ** (m + 1)) / ((m + 1) * p)  # mean of 1 / (1 + others)
        return ShortcutChance(1 / self.vocabulary.size, 1 / a, once, alone + (1 - alone) / a)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`.

        Raises:
            TaskError: also where no string is found with enough n-grams that stand in it once.
        """
        check_split(split)
        start = self.vocabulary.values.start
        for _ in range(_TRIES):
            string = generator.integers(start, start + self.alphabet, size=self.length)
            places = self._places(generator, string)
            if len(places) < self.n_queries:
                continue
            asked = []
            revealed: dict[Ids, int] = {}
            for i in places:
                key, value = tuple(string[i : i + self.n].tolist()), (int(string[i + self.n]),)
                asked.append(Asked(key, value))
                revealed[key] = 1 + i + self.n
            stored = tuple((token,) for token in dict.fromkeys(string.tolist()))
            body = [self.vocabulary.bos, *string.tolist()]
            return ask(generator, self.vocabulary, body, revealed, stored, asked, distance=self.distance)
        raise TaskError(
            f"no string of {self.length} with {self.n_queries} {self.n}-grams that stand in it once",
            where=f"task {self.name}",
            fix="raise alphabet or n, or shorten the string.",
        )

    def _places(self, generator: np.random.Generator, string: np.ndarray) -> list[int]:
        """Where up to `n_queries` n-grams begin that stand in the string once; no two are neighbours."""
        chosen: list[int] = []
        for i in generator.permutation(self.length - self.n).tolist():
            if len(chosen) == self.n_queries:
                break
            alone = len(find(string, string[i : i + self.n].tolist())) == 1
            if alone and not {i - 1, i + 1} & set(chosen):
                chosen.append(i)
        return chosen


if __name__ == "__main__":
    example = NgramLookup(Vocabulary(), length=12, alphabet=6, n_queries=2, distance="fixed:6")
    print(picture(example, next(example.episodes(0, "train", 1))))
