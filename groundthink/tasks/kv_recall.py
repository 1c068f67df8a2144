"""R1: recall of key-value pairs over filler, at a distance that is said beforehand.

    tokens   BOS  k1 v1 k2 v2 k3 v3  f f f f f f  QUERY k2 v2  QUERY k9 ABSENT  QUERY k1 v1
    labels    .    .  .  .  .  .  .  . . . . . .    .    . v2    .    . ABSENT    .    . v1
                               ^distance of the pair k3 v3^

Keys, values, filler and specials have ranges of their own, so filler can never be a key. Keys are unique
within an episode; the map from keys to values is drawn anew for each. Queries come in random order. Run this
file to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from groundthink.errors import ConfigError, TaskError
from groundthink.tasks.task import Chance, Episode, Ids, Query, Task, Vocabulary, check_split, labels_for


@dataclass(frozen=True)
class DistanceLaw:
    """How far the first cue stands from the value of the last pair: the least distance in the episode.

    Args:
        low, high: bounds of that least distance, both included.
        beyond: the horizon R that every query must exceed, or None.
    """

    low: int
    high: int
    beyond: int | None = None

    @classmethod
    def parse(cls, text: str) -> DistanceLaw:
        """Read `fixed:d`, `uniform:a:b`, `beyond:R` or `beyond:R:slack`.

        `fixed:d`: the nearest pair is exactly d before the first cue. `uniform:a:b`: d is drawn for each
        episode. `beyond:R`: d is R + 1, or drawn from R + 1 .. R + 1 + slack: no query is within R.

        Raises:
            ConfigError: it is none of these, or d is below 2 (the cue has two tokens).
        """
        kind, *words = text.split(":")
        counts = {"fixed": (1,), "uniform": (2,), "beyond": (1, 2)}
        if len(words) not in counts.get(kind, ()) or not all(word.isdecimal() for word in words):
            raise ConfigError(
                f"{text!r} is no distance",
                where="distance",
                fix="write fixed:36, uniform:4:60, beyond:18 or beyond:18:10.",
            )
        numbers = [int(word) for word in words]
        if kind == "beyond":
            law = cls(numbers[0] + 1, numbers[0] + 1 + sum(numbers[1:]), numbers[0])
        else:
            law = cls(numbers[0], numbers[-1])
        if law.low < 2 or law.high < law.low:
            raise ConfigError(f"{text!r} begins below 2 or ends before it begins", where="distance")
        return law


@dataclass(frozen=True, eq=False)
class KvRecall(Task):
    """R1, `BOS (key value)*n_pairs filler (QUERY key value)*n_queries`.

    Args:
        n_pairs: N, pairs stored.
        n_queries: M, questions asked; 1 for tests, 8 to 16 for training. Each key once, as long as there are
            keys; beyond N, keys repeat, and the distance counts from the answer given before.
        distance: `fixed:d`, `uniform:a:b`, `beyond:R[:slack]`; see `DistanceLaw.parse`.
        absent: share of queries whose key was never stored; ABSENT is then the answer.
        unique_values: values differ within an episode, so that a guess among them is right once in N exactly.
            Without, they are drawn with replacement.
        loss: `answers`, or `all` for every token.
    """

    name: ClassVar[str] = "kv_recall"
    n_pairs: int = 16
    n_queries: int = 1
    distance: str = "fixed:36"
    absent: float = 0.0
    unique_values: bool = True
    loss: str = "answers"

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        vocabulary = self.vocabulary
        try:
            law = DistanceLaw.parse(self.distance)
            if law.beyond is not None and self.n_queries > self.n_pairs:
                found.append(f"n_queries {self.n_queries} repeats keys, which brings them within beyond:R")
        except ConfigError as error:
            found.append(str(error))
        if self.n_pairs < 1 or self.n_queries < 1:
            found.append(f"n_pairs {self.n_pairs} and n_queries {self.n_queries} must be at least 1")
        if not 0 <= self.absent <= 1:
            found.append(f"absent {self.absent} is no share between 0 and 1")
        spare = self.n_queries if self.absent else 0
        if self.n_pairs + spare > vocabulary.n_keys:
            found.append(f"{self.n_pairs} pairs and {spare} absent keys need more than {vocabulary.n_keys} keys")
        if self.unique_values and self.n_pairs > vocabulary.n_values:
            found.append(f"{self.n_pairs} unique values need more than {vocabulary.n_values} values")
        if self.loss not in ("answers", "all"):
            found.append(f"loss {self.loss!r} is not answers or all")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self._length(DistanceLaw.parse(self.distance).high)

    def _length(self, nearest: int) -> int:
        return 1 + 2 * self.n_pairs + (nearest - 2) + 3 * self.n_queries

    def chance(self) -> Chance:
        """See `Task`. A guess among the stored values is right once in N, more if they repeat."""
        stored, n = 1 - self.absent, self.n_pairs
        v = self.vocabulary.n_values
        once = 1 / n if self.unique_values else 1 / n + (1 - 1 / n) / v
        return Chance(1 / self.vocabulary.size, stored / v, max(stored * once, self.absent))

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        vocabulary, n, m = self.vocabulary, self.n_pairs, self.n_queries
        keys = vocabulary.keys.start + generator.permutation(vocabulary.n_keys)
        if self.unique_values:
            values = vocabulary.values.start + generator.permutation(vocabulary.n_values)[:n]
        else:
            values = generator.integers(vocabulary.values.start, vocabulary.values.stop, size=n)
        law = DistanceLaw.parse(self.distance)
        nearest = int(generator.integers(law.low, law.high + 1))
        tokens = generator.integers(vocabulary.filler.start, vocabulary.filler.stop, size=self._length(nearest))
        tokens[0] = vocabulary.bos
        tokens[1 : 1 + 2 * n : 2] = keys[:n]
        tokens[2 : 2 + 2 * n : 2] = values
        # Every key in turn before any comes twice.
        order = np.concatenate([generator.permutation(n) for _ in range(-(-m // n))])[:m]
        missing = generator.random(m) < self.absent
        revealed = {pair: 2 * pair + 2 for pair in range(n)}
        stored = tuple((int(value),) for value in values)
        queries = []
        for j in range(m):
            cue = len(tokens) - 3 * (m - j) + 1
            pair = int(order[j])
            key = int(keys[n + j]) if missing[j] else int(keys[pair])
            value = vocabulary.absent if missing[j] else int(values[pair])
            tokens[cue - 1 : cue + 2] = vocabulary.query, key, value
            reveal = None if missing[j] else revealed[pair]
            queries.append(Query((key,), (value,), (vocabulary.query, key), cue, reveal, stored))
            if not missing[j]:
                revealed[pair] = cue + 1
        return self._episode(tokens, tuple(queries))

    def _episode(self, tokens: np.ndarray, queries: tuple[Query, ...]) -> Episode:
        labels = labels_for(tokens, queries)
        if self.loss == "all":
            labels[1:] = tokens[1:]
        return Episode(tokens, labels, queries)

    def donor(self, episode: Episode, generator: np.random.Generator, *, kind: str) -> Episode:
        """The same keys, positions and filler with other answers: a memory to transplant into `episode`.

        Args:
            episode: of this task, with unique values and no absent query.
            generator: of the donor's values.
            kind: `values`: values that `episode` does not hold. `deranged`: the same values, none on its old
                key. `one_key`: only the first asked key has another value, one that `episode` does not hold.

        Raises:
            TaskError: an unknown kind, or not enough values for it.
        """
        n = self.n_pairs
        old = [int(v) for v in episode.tokens[2 : 2 + 2 * n : 2]]
        keys = [int(k) for k in episode.tokens[1 : 1 + 2 * n : 2]]
        spare = generator.permutation(sorted(set(self.vocabulary.values) - set(old))).tolist()
        first = keys.index(episode.queries[0].key[-1]) if episode.queries[0].key[-1] in keys else -1
        if kind == "values" and len(spare) >= n:
            new = spare[:n]
        elif kind == "deranged" and n > 1 and len(set(old)) == n:
            order, turn = generator.permutation(n), int(generator.integers(1, n))
            new = [0] * n
            for a, b in zip(order, np.roll(order, turn), strict=True):
                new[a] = old[b]
        elif kind == "one_key" and spare and first >= 0:
            new = [*old[:first], spare[0], *old[first + 1 :]]
        else:
            raise TaskError(
                f"no donor of kind {kind!r} for {n} pairs and {self.vocabulary.n_values} values",
                where=f"task {self.name}",
                fix="values needs 2 N values, deranged two unique ones, one_key a spare and a stored key.",
            )
        return self._rebind(episode, dict(zip(keys, new, strict=True)))

    def _rebind(self, episode: Episode, binding: dict[int, int]) -> Episode:
        tokens = episode.tokens.copy()
        for i in range(self.n_pairs):
            tokens[2 * i + 2] = binding[int(tokens[2 * i + 1])]
        stored: tuple[Ids, ...] = tuple((value,) for value in binding.values())
        queries = []
        for query in episode.queries:
            value = (binding[query.key[-1]],) if query.revealed_at is not None else query.value
            tokens[query.query_position + 1] = value[0]
            queries.append(Query(query.key, value, query.cue, query.query_position, query.revealed_at, stored))
        return self._episode(tokens, tuple(queries))


def picture(task: Task, episode: Episode) -> str:
    """Tokens above labels, aligned."""
    v = task.vocabulary
    names = {v.bos: "BOS", v.query: "QUERY", v.absent: "ABSENT", v.marker: "END"}
    for letter, ids in (("k", v.keys), ("v", v.values), ("f", v.filler)):
        names |= {i: f"{letter}{i - ids.start}" for i in ids}
    upper = [names[int(token)] for token in episode.tokens]
    lower = ["." if label < 0 else names[int(label)] for label in episode.labels]
    widths = [max(map(len, pair)) for pair in zip(upper, lower, strict=True)]
    rows = [" ".join(map(str.rjust, row, widths)) for row in (upper, lower)]
    distances = ", ".join(str(query.distance) for query in episode.queries)
    return f"tokens {rows[0]}\nlabels {rows[1]}\ndistances {distances}"


if __name__ == "__main__":
    example = KvRecall(Vocabulary(), n_pairs=4, n_queries=3, distance="fixed:8", absent=0.3)
    print(picture(example, next(example.episodes(0, "train", 1))))
