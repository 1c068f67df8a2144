"""R9: state tracking. Which product do the group elements so far make? Asked after every one of them.

    tokens   BOS  g3  g1  g4  g1  END
    labels    .    .  p3  p2  p5  p0       p_t = g_t ... g_2 g_1, predicted at g_t

The answer is not fed back: a model that saw the last product would only have to multiply once. Labels stand on
the token after, as the model shifts them, so here a label is not the token it stands on. A recurrence whose
transition has no negative eigenvalue cannot solve Z2, parity, at lengths beyond training: the harness's negative
control. A5 and S5 are not solvable groups: constant-depth attention cannot track them either. Run this file to
see one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.tasks.kv_recall import picture
from groundthink.tasks.task import Chance, Episode, Ids, Query, Task, Vocabulary, check_split, labels_for

Permutation = tuple[int, ...]
GROUPS = ("Z2", "Z5", "S3", "A5", "S5")


def compose(after: Sequence[int], before: Sequence[int]) -> Permutation:
    """The permutation that applies `before`, then `after`."""
    return tuple(after[i] for i in before)


@functools.cache
def elements(group: str) -> tuple[Permutation, ...]:
    """The group's elements as permutations, the identity first: `Zn` rotations, `Sn` all, `An` the even ones."""
    kind, n = group[0], int(group[1:])
    if kind == "Z":
        return tuple(tuple((i + shift) % n for i in range(n)) for shift in range(n))
    found = itertools.permutations(range(n))
    if kind == "S":
        return tuple(found)
    return tuple(p for p in found if sum(p[i] > p[j] for i, j in itertools.combinations(range(n), 2)) % 2 == 0)


@functools.cache
def table(group: str) -> NDArray[np.int64]:
    """int64 [|G|, |G|]: index of the product `compose(a, b)` at [a, b]."""
    all_of = elements(group)
    index = {element: i for i, element in enumerate(all_of)}
    return np.array([[index[compose(a, b)] for b in all_of] for a in all_of])


@dataclass(frozen=True, eq=False)
class Track(Task):
    """R9, `BOS g_1 .. g_T END`, one question at every g_t.

    Elements are drawn uniformly, so that every product is uniform too and no shortcut beats one in |G|.
    `TaskResult.by_kind` has the accuracy by position, in powers of two.

    Args:
        group: `Z2`, `Z5`, `S3`, `A5` or `S5`. Elements take |G| ids of the keys, products |G| of the values.
        length: T, elements in a word.
    """

    name: ClassVar[str] = "track"
    fed_back: ClassVar[bool] = False
    group: str = "Z2"
    length: int = 128

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if self.group not in GROUPS:
            found.append(f"group {self.group!r} is not one of {', '.join(GROUPS)}")
        else:
            n = len(elements(self.group))
            for what, room in (("n_keys", self.vocabulary.n_keys), ("n_values", self.vocabulary.n_values)):
                if n > room:
                    found.append(f"{self.group} has {n} elements, vocabulary.{what} is {room}")
        if self.length < 1:
            found.append(f"length {self.length} must be at least 1")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self.length + 2

    def chance(self) -> Chance:
        """See `Task`."""
        once = 1 / len(elements(self.group))
        return Chance(1 / self.vocabulary.size, once, once)

    def product(self, prefix: NDArray[np.int64]) -> tuple[Ids, int]:
        """The rule: the product of the elements in `prefix`, permutation by permutation, and its last index."""
        all_of = elements(self.group)
        found = all_of[0]
        for token in prefix[1:].tolist():
            found = compose(all_of[token - self.vocabulary.keys.start], found)
        return (self.vocabulary.values.start + all_of.index(found),), len(prefix) - 1

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        vocabulary, products = self.vocabulary, table(self.group)
        word = generator.integers(0, len(products), size=self.length)
        tokens = np.array([vocabulary.bos, *(vocabulary.keys.start + word), vocabulary.marker])
        possible: tuple[Ids, ...] = tuple((vocabulary.values.start + i,) for i in range(len(products)))
        queries, now = [], 0
        for t, element in enumerate(word.tolist(), start=1):
            now = int(products[element, now])
            low = 1 << (t.bit_length() - 1)
            queries.append(
                Query(
                    (),
                    possible[now],
                    (int(tokens[t]),),
                    t,
                    t,
                    possible,
                    kind=f"{low}-{2 * low - 1}",
                    rule=self.product,
                    fed_back=False,
                )
            )
        return Episode(tokens, labels_for(tokens, tuple(queries)), tuple(queries))


if __name__ == "__main__":
    example = Track(Vocabulary(), group="S3", length=8)
    print(picture(example, next(example.episodes(0, "train", 1))))
