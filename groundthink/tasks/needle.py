"""R10: needles in real text, one of them asked for, the others decoys.

    tokens   BOS t t t MARKER k1 v1 t t t t t t MARKER k2 v2 t t  QUERY k1 v1
    labels    .  . . .    .    .  . . . . . . .    .    .  . . .    .    . v1

`t` is text, handed in as tokens for each split. An episode has exactly `length` tokens. A value may have up
to four tokens, each of them labelled; teacher-forced, an answer is right when all of them are. Every episode
holds `n_needles` needles, of which `n_queries` are asked: needles that are never asked are decoys of the same
kind, so that finding *a* needle is not enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.data.packing import IGNORE
from groundthink.errors import ConfigError, TaskError
from groundthink.tasks.check import find
from groundthink.tasks.task import (
    SPLITS,
    Chance,
    Episode,
    Ids,
    Query,
    Task,
    check_split,
    digest_of,
    labels_for,
)

_TRIES = 100  # draws of an episode before the options are called impossible


@dataclass(frozen=True, eq=False)
class Needle(Task):
    """R10, needles in text.

    Args:
        text: tokens of each split, int [n], at least `length` of them; ids below `vocabulary.text`.
        length: tokens of an episode, exactly.
        n_needles: needles in the text.
        n_queries: how many of them are asked, each once, in random order: 1 for tests, more for training.
        key_length, value_length: tokens of a key, and of a value (1 to 4).
        depth: where the asked needles lie: `anywhere`, `at:0.25` (a quarter of the text before it; one query
            only) or `beyond:R` (every asked needle more than R tokens before its cue). Decoys lie anywhere.
        marked: MARKER before each needle. Without it nothing announces a needle.
        alphabet: `own`: keys and values from their own ranges; `text`: from the ids of the text itself, which
            is harder, since nothing tells a needle from text but its place and, if marked, the marker.
        loss: `answers`, or `language`: the text is labelled too, needles and cues, which are random, are not.
    """

    name: ClassVar[str] = "needle"
    text: Mapping[str, NDArray[np.integer]] = field(default_factory=dict, metadata={"resource": True})
    length: int = 256
    n_needles: int = 4
    n_queries: int = 1
    key_length: int = 1
    value_length: int = 1
    depth: str = "anywhere"
    marked: bool = True
    alphabet: str = "own"
    loss: str = "answers"

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if not 1 <= self.n_queries <= self.n_needles:
            found.append(f"n_queries {self.n_queries} is not between 1 and n_needles {self.n_needles}")
        if not 1 <= self.value_length <= 4 or self.key_length < 1:
            found.append(f"value_length {self.value_length} is not 1 to 4, or key_length is below 1")
        if self.alphabet not in ("own", "text"):
            found.append(f"alphabet {self.alphabet!r} is not own or text")
        if self.loss not in ("answers", "language"):
            found.append(f"loss {self.loss!r} is not answers or language")
        if found:
            return found
        found += self._depth_problems()
        if self._n_text < 1:
            found.append(f"length {self.length} leaves no room for text beside needles and questions")
        for what, ids, size in zip(
            ("keys", "values"), self._alphabets(), (self.key_length, self.value_length), strict=True
        ):
            if len(ids) ** size < self.n_needles:
                found.append(f"{len(ids)} ids give too few {what} for {self.n_needles} needles")
        return found + self._text_problems()

    def _depth_problems(self) -> list[str]:
        kind, _, number = self.depth.partition(":")
        if kind == "at" and self.n_queries > 1:
            return [f"depth {self.depth!r} places one asked needle, not {self.n_queries}"]
        try:
            good = (
                self.depth == "anywhere"
                or (kind == "at" and 0 <= float(number) <= 1)
                or (kind == "beyond" and 0 <= int(number) <= self._n_text + 1)
            )
        except ValueError:
            good = False
        if good:
            return []
        return [f"depth {self.depth!r} is not anywhere, at:0..1 or beyond:R with R below the length"]

    def _text_problems(self) -> list[str]:
        found = []
        for split in SPLITS:
            tokens = self.text.get(split, np.zeros(0, np.int64))
            if len(tokens) < self._n_text:
                found.append(f"text of {split} has {len(tokens)} tokens, {self._n_text} are needed")
            elif tokens.min() < 0 or tokens.max() >= self.vocabulary.text:
                found.append(f"text of {split} has ids outside 0..{self.vocabulary.text - 1}")
        return found

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self.length

    @property
    def _needle_length(self) -> int:
        return int(self.marked) + self.key_length + self.value_length

    @property
    def _asked_length(self) -> int:
        return 1 + self.key_length + self.value_length

    @property
    def _n_text(self) -> int:
        return self.length - 1 - self.n_needles * self._needle_length - self.n_queries * self._asked_length

    def _alphabets(self) -> tuple[range, range]:
        if self.alphabet == "text":
            return range(self.vocabulary.text), range(self.vocabulary.text)
        return self.vocabulary.keys, self.vocabulary.values

    def chance(self) -> Chance:
        """See `Task`."""
        n = self.value_length
        return Chance(self.vocabulary.size**-n, len(self._alphabets()[1]) ** -n, 1 / self.n_needles)

    def resource_digests(self) -> dict[str, str]:
        """See `Task`."""
        return {"text": digest_of(self.text)}

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`.

        Raises:
            TaskError: also where no key can be found that the text does not hold.
        """
        check_split(split)
        for _ in range(_TRIES):
            episode = self._draw(generator, split)
            if episode is not None:
                return episode
        raise TaskError(
            f"no {self.n_needles} keys of {self.key_length} tokens that the text does not hold",
            where=f"task {self.name}",
            fix="raise key_length, mark the needles, or use alphabet=own.",
        )

    def _draw(self, generator: np.random.Generator, split: str) -> Episode | None:
        """One draw; None where a key occurs anywhere but in its needle and its questions."""
        vocabulary, n_text, size = self.vocabulary, self._n_text, self._needle_length
        keys = _distinct(generator, self._alphabets()[0], self.key_length, self.n_needles)
        values = _distinct(generator, self._alphabets()[1], self.value_length, self.n_needles)
        source = self.text[split]
        begin = int(generator.integers(0, len(source) - n_text + 1))
        haystack = np.asarray(source[begin : begin + n_text], dtype=np.int64)
        mark: Ids = (vocabulary.marker,) if self.marked else ()

        offsets = self._offsets(generator)  # needle i stands before text token offsets[i]
        order = sorted(range(self.n_needles), key=lambda i: (offsets[i], i))
        parts: list[NDArray[np.int64]] = [np.array([vocabulary.bos])]
        revealed: dict[int, int] = {}
        spans, used, at = [(0, 1)], 0, 1
        for i in order:
            parts += [haystack[used : offsets[i]], np.array([*mark, *keys[i], *values[i]])]
            at += offsets[i] - used + size
            used = offsets[i]
            revealed[i] = at - 1
            spans.append((at - size, at))
        parts.append(haystack[used:])
        at += n_text - used
        queries = []
        for i in generator.permutation(self.n_queries).tolist():  # needles 0 .. n_queries - 1 are asked
            cue = (vocabulary.query, *keys[i])
            parts.append(np.array([*cue, *values[i]]))
            key, last = (*mark, *keys[i]), at + len(cue) - 1
            queries.append(Query(key, values[i], cue, last, revealed[i], tuple(values)))
            spans.append((at, at + len(cue)))
            at += self._asked_length
        tokens = np.concatenate(parts).astype(np.int64)
        for i, key in enumerate(keys):
            in_cues = int(i < self.n_queries and not self.marked)
            if len(find(tokens, (*mark, *key))) != 1 + in_cues:
                return None
        return self._finish(tokens, tuple(queries), spans)

    def _finish(self, tokens: NDArray[np.int64], queries: tuple[Query, ...], spans: list[tuple[int, int]]) -> Episode:
        labels = labels_for(tokens, queries)
        if self.loss == "language":
            labels = tokens.copy()
            for start, stop in spans:
                labels[start:stop] = IGNORE
        return Episode(tokens, labels, queries)

    def _offsets(self, generator: np.random.Generator) -> list[int]:
        """For each needle, how much text stands before it. Needles 0 .. n_queries - 1 are the asked ones."""
        n_text = self._n_text
        offsets = generator.integers(0, n_text + 1, size=self.n_needles)
        kind, _, number = self.depth.partition(":")
        if kind == "at":
            offsets[0] = round(float(number) * n_text)
        if kind == "beyond":
            # The first cue ends 1 + key_length tokens after the text; decoys may only add to the distance.
            last = n_text + 1 + self.key_length - (int(number) + 1)
            offsets[: self.n_queries] = generator.integers(0, min(last, n_text) + 1, size=self.n_queries)
        return [int(offset) for offset in offsets]


def _distinct(generator: np.random.Generator, ids: range, size: int, n: int) -> list[Ids]:
    """`n` different tuples of `size` ids."""
    found: dict[Ids, None] = {}
    while len(found) < n:
        found.setdefault(tuple((ids.start + generator.integers(0, len(ids), size=size)).tolist()))
    return list(found)


def depth_length_grid(
    task: Needle, depths: Sequence[float], lengths: Sequence[int]
) -> Iterator[tuple[float, int, Needle]]:
    """The task at every depth and length of a heat map, lengths in exact tokens.

    Raises:
        ConfigError: more than one query, or a length that does not hold the needles.
    """
    if not depths or not lengths:
        raise ConfigError("an empty grid", where="needle", fix="name depths and lengths.")
    for length in lengths:
        for depth in depths:
            yield depth, length, task.with_options(depth=f"at:{depth:g}", length=length)
