"""Needles in noise: the id that stood behind the marker is asked for at the end.

    tokens   BOS  v9 v2 MARKER k1 v7 v4 v4 MARKER k2 v5 v1 v8  QUERY k2 v5
    labels    .    .  .    .    .  .  .  .    .    .  .  .  .     .   . v5

With one needle the keys may be left out: `MARKER v7 ... QUERY v7`. An episode has exactly `length` tokens, noise
between the needles is drawn from the same ids as the needles (nothing but the marker tells them apart) or is filler.
The label stands behind the cue, at the cue's own logits. Run this file to see one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.errors import ConfigError
from groundthink.tasks.kv_recall import DistanceLaw, picture
from groundthink.tasks.task import Chance, Episode, Query, Task, Vocabulary, check_split, labels_for

ANYWHERE = "anywhere"


@dataclass(frozen=True, eq=False)
class MarkerNeedle(Task):
    """Markers, random ids and distance.

    Args:
        length: tokens of an episode, exactly.
        n_needles: needles in the noise, each with its own key and another id.
        n_queries: how many of them are asked, each once, in random order.
        keyed: a key of its own behind each marker. Without, there can be one needle only: of several under one marker
            no more than the last could be right.
        ids: range of the needles: `values`, or `text` (all ids of the text, as of a tokenizer's whole vocabulary).
        noise: `ids`, the same range, or `filler`.
        distance: of the asked needles from the first cue: `anywhere`, or a law, see `DistanceLaw.parse`.
        held_out: share of the ids that are needles in the test split alone; as noise they occur in all splits.
    """

    name: ClassVar[str] = "marker_needle"
    length: int = 256
    n_needles: int = 1
    n_queries: int = 1
    keyed: bool = True
    ids: str = "values"
    noise: str = "ids"
    distance: str = ANYWHERE
    held_out: float = 0.1

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if not 1 <= self.n_queries <= self.n_needles:
            found.append(f"n_queries {self.n_queries} is not between 1 and n_needles {self.n_needles}")
        if self.n_needles > 1 and not self.keyed:
            found.append(f"keyed is false, but {self.n_needles} needles under one marker have no one answer")
        if self.keyed and self.n_needles > self.vocabulary.n_keys:
            found.append(f"n_needles {self.n_needles} need more than {self.vocabulary.n_keys} keys")
        if self.ids not in ("values", "text") or self.noise not in ("ids", "filler"):
            found.append(f"ids {self.ids!r} is not values or text, or noise {self.noise!r} is not ids or filler")
        if not 0 <= self.held_out < 1:
            found.append(f"held_out {self.held_out} is no share from 0 to below 1")
        elif self.held_out and self.noise == "filler":
            found.append(f"held_out {self.held_out} with noise filler: ids that training never shows cannot be said")
        if found:
            return found
        for split in ("train", "test"):
            if len(self._ids_of(split)) < self.n_needles:
                found.append(f"{len(self._range)} ids leave {split} too few for n_needles {self.n_needles}")
        if self._n_noise < self._size:
            found.append(f"length {self.length} is too short: raise it to {self.length - self._n_noise + self._size}")
            return found
        return found + self._distance_problems()

    def _distance_problems(self) -> list[str]:
        if self.distance == ANYWHERE:
            return []
        try:
            law = DistanceLaw.parse(self.distance)
        except ConfigError as error:
            return [str(error)]
        furthest = self._n_noise + self._cue + (self.n_needles - self.n_queries) * self._size
        if law.low < self._cue:
            return [f"distance {self.distance!r} begins below the {self._cue} tokens of a cue"]
        if law.high > furthest:
            return [f"distance {self.distance!r} does not fit: raise length to {self.length + law.high - furthest}"]
        return []

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self.length

    @property
    def _cue(self) -> int:
        return 1 + int(self.keyed)

    @property
    def _size(self) -> int:
        return self._cue + 1

    @property
    def _n_noise(self) -> int:
        return self.length - 1 - (self.n_needles + self.n_queries) * self._size

    @property
    def _range(self) -> range:
        return self.vocabulary.values if self.ids == "values" else range(self.vocabulary.text)

    @functools.cached_property
    def _shuffled(self) -> NDArray[np.int64]:
        """All ids in an order of their own; the first share of them is held out."""
        return self._range.start + np.random.default_rng(len(self._range)).permutation(len(self._range))

    def _ids_of(self, split: str) -> NDArray[np.int64]:
        """Ids that may be needles of a split; those of the test split are no others' if any are held out."""
        held = int(np.ceil(self.held_out * len(self._range)))
        return self._shuffled[:held] if split == "test" and held else self._shuffled[held:]

    def chance(self) -> Chance:
        """See `Task`."""
        return Chance(1 / self.vocabulary.size, 1 / len(self._range), 1 / self.n_needles)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        v, n, m = self.vocabulary, self.n_needles, self.n_queries
        ids = generator.choice(self._ids_of(split), size=n, replace=False)
        keys = v.keys.start + generator.permutation(v.n_keys)[:n] if self.keyed else np.zeros(n, np.int64)
        source = self._range if self.noise == "ids" else v.filler
        noise = generator.integers(source.start, source.stop, size=self._n_noise)
        slots = self._slots(generator)
        tokens, used = [v.bos], 0
        revealed: dict[int, int] = {}
        for i in sorted(range(n), key=lambda i: slots[i]):
            tokens += noise[used : slots[i][0]].tolist()
            used = slots[i][0]
            tokens += [v.marker, *([int(keys[i])] if self.keyed else []), int(ids[i])]
            revealed[i] = len(tokens) - 1
        tokens += noise[used:].tolist()
        stored, queries = tuple((int(x),) for x in ids), []
        for i in generator.permutation(m).tolist():
            key = (int(keys[i]),) if self.keyed else ()
            cue = (v.query, *key)
            at = len(tokens) + len(cue) - 1
            tokens += [*cue, int(ids[i])]
            queries.append(Query((v.marker, *key), stored[i], cue, at, revealed[i], stored))
        array = np.array(tokens, dtype=np.int64)
        return Episode(array, labels_for(array, tuple(queries)), tuple(queries))

    def _slots(self, generator: np.random.Generator) -> list[tuple[int, int]]:
        """For each needle, how much noise stands before it, and its turn there. Needles 0 .. n_queries - 1 are asked;
        needle 0 is the last of them where there is a distance to keep."""
        n, m = self.n_needles, self.n_queries
        if self.distance == ANYWHERE:
            return [(int(slot), 0) for slot in generator.integers(0, self._n_noise + 1, size=n)]
        law = DistanceLaw.parse(self.distance)
        room = int(generator.integers(law.low, law.high + 1)) - self._cue  # tokens between needle 0 and the cue
        least = -(-max(0, room - self._n_noise) // self._size)
        after = int(generator.integers(least, min(n - m, room // self._size) + 1))  # decoys among those tokens
        place = self._n_noise - (room - after * self._size)
        before = [(int(slot), 0) for slot in generator.integers(0, place + 1, size=n - 1 - after)]
        behind = [(int(slot), 2) for slot in generator.integers(place, self._n_noise + 1, size=after)]
        return [(place, 1), *before, *behind]


if __name__ == "__main__":
    example = MarkerNeedle(Vocabulary(), length=24, n_needles=2)
    print(picture(example, next(example.episodes(0, "train", 1))))
