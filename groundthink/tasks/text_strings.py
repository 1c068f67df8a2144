"""Strings in natural text: a name is given a value somewhere, and the name is written again at the end.

    text ... \\nqwe = zmk\\n text ... \\nab = cdfg\\n text ... \\nqwe =  zmk\\n

Nothing is reserved: names and values are letters of the text's own vocabulary, two to four of them, and the cue is the
beginning of the same line. With `marked`, MARKER stands before each line and QUERY before each cue. Strings belong to a
split by a hash, so the test asks for values, and by names, that training never showed.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.data.tokenizer import ByteTokenizer, Tokenizer
from groundthink.errors import TaskError
from groundthink.tasks.check import find
from groundthink.tasks.task import SPLITS, Chance, Episode, Ids, Query, Task, check_split, digest_of, labels_for

TRIES = 100  # draws of an episode before the options are called impossible
OUTSIDE = {"test": (0,), "valid": (1,), "train": (2, 3, 4, 5, 6, 7)}  # hash modulo 8 of the strings of a split


@dataclass(frozen=True, eq=False)
class TextStrings(Task):
    """Lines `name = value` in natural text, some of which are asked for.

    Args:
        text: tokens of each split.
        tokenizer: of the text; ids below `vocabulary.text`.
        length: tokens of an episode, at most; text fills it as far as the lines leave room.
        n_needles, n_queries: lines, and how many of them are asked; the others are decoys.
        least, most: letters of a name and of a value.
        marked: MARKER before lines, QUERY before cues.
        absent: share of the questions whose name was never given; ABSENT is then the answer.
        depth: `anywhere`, or `first`: all lines stand at the beginning of the text.
    """

    name: ClassVar[str] = "text_strings"
    text: Mapping[str, NDArray[np.integer]] = field(default_factory=dict, metadata={"resource": True})
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer, metadata={"resource": True})
    length: int = 256
    n_needles: int = 8
    n_queries: int = 1
    least: int = 2
    most: int = 4
    marked: bool = False
    absent: float = 0.0
    depth: str = "anywhere"

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if not 1 <= self.n_queries <= self.n_needles:
            found.append(f"n_queries {self.n_queries} is not between 1 and n_needles {self.n_needles}")
        if not 2 <= self.least <= self.most <= 8:
            found.append(f"least {self.least} and most {self.most} are not 2 to 8 letters in this order")
        if not 0 <= self.absent <= 1:
            found.append(f"absent {self.absent} is no share between 0 and 1")
        if self.depth not in ("anywhere", "first"):
            found.append(f"depth {self.depth!r} is not anywhere or first")
        if not found and self._n_text < 1:
            found.append(f"length {self.length} leaves no room for text: raise it to {self.length - self._n_text + 1}")
        if not found and any(len(self.text.get(split, ())) < self._n_text for split in SPLITS):
            found.append(f"a split of the text has fewer than {self._n_text} tokens")
        return found

    def resource_digests(self) -> dict[str, str]:
        """See `Task`."""
        return {"text": digest_of(self.text), "tokenizer": self.tokenizer.digest}

    @functools.cached_property
    def _pieces(self) -> tuple[Ids, Ids, Ids]:
        """Letters, ` = ` and the line end; a letter that has no id of its own is left out."""
        letters = [tuple(self.tokenizer.encode(letter)) for letter in string.ascii_lowercase]
        single = tuple(ids[0] for ids in letters if len(ids) == 1)
        return single, tuple(self.tokenizer.encode(" = ")), tuple(self.tokenizer.encode("\n"))

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return self.length

    @property
    def _line(self) -> int:
        _, equals, end = self._pieces
        return int(self.marked) + 2 * len(end) + 2 * self.most + len(equals)

    @property
    def _n_text(self) -> int:
        return self.length - 1 - (self.n_needles + self.n_queries) * self._line

    def chance(self) -> Chance:
        """See `Task`. Of the value range: the shortest values."""
        n = len(self._pieces[0]) ** -self.least
        stored = 1 - self.absent
        return Chance(1 / self.vocabulary.size, stored * n, max(stored / self.n_needles, self.absent))

    def _strings(self, generator: np.random.Generator, split: str, n: int) -> list[Ids]:
        """`n` different strings of a split."""
        letters = self._pieces[0]
        found: dict[Ids, None] = {}
        while len(found) < n:
            size = int(generator.integers(self.least, self.most + 1))
            ranks = generator.integers(0, len(letters), size=size)
            weights = np.array([3, 5, 7, 11, 13, 17, 19, 23])[:size]
            if int((ranks * weights).sum()) % 8 in OUTSIDE[split]:
                found.setdefault(tuple(letters[rank] for rank in ranks))
        return list(found)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`.

        Raises:
            TaskError: also where the text holds every name that is drawn.
        """
        check_split(split)
        for _ in range(TRIES):
            episode = self._draw(generator, split)
            if episode is not None:
                return episode
        raise TaskError("the text holds every name", where="task text_strings", fix="use longer names or other text")

    def _draw(self, generator: np.random.Generator, split: str) -> Episode | None:
        """One draw; None where the text gives a name a value by chance."""
        v, n = self.vocabulary, self.n_needles
        _, equals, end = self._pieces
        names = self._strings(generator, split, n + self.n_queries)
        values = self._strings(generator, split, n)
        source = self.text[split]
        begin = int(generator.integers(0, len(source) - self._n_text + 1))
        text = np.asarray(source[begin : begin + self._n_text], dtype=np.int64).tolist()
        slots = sorted(generator.integers(0, 1 if self.depth == "first" else len(text) + 1, size=n).tolist())
        before: Ids = (v.marker,) if self.marked else ()
        tokens, used, revealed = [v.bos], 0, []
        for slot, name, value in zip(slots, names, values, strict=False):
            tokens += [*text[used:slot], *before, *end, *name, *equals, *value, *end]
            used = slot
            revealed.append(len(tokens) - 1)
        tokens += text[used:]
        stored = tuple((*value, *end) for value in values)
        queries = []
        asking: Ids = (v.query,) if self.marked else ()
        for j, i in enumerate(generator.permutation(n)[: self.n_queries].tolist()):
            missing = bool(generator.random() < self.absent)
            name = names[n + j] if missing else names[i]
            answer: Ids = (v.absent,) if missing else stored[i]
            cue = (*asking, *end, *name, *equals)
            tokens += cue
            at = len(tokens) - 1
            tokens += answer
            key = (*before, *end, *name, *equals)
            queries.append(Query(key, answer, cue, at, None if missing else revealed[i], stored))
        array = np.array(tokens, dtype=np.int64)
        asked = {query.key[len(before) :] for query in queries}
        lines = [(*end, *name, *equals) for name in names]
        for line, name_is_stored in zip(lines, [True] * n + [False] * self.n_queries, strict=True):
            if len(find(array, line)) != int(name_is_stored) + int(line in asked):
                return None
        return Episode(array, labels_for(array, tuple(queries)), tuple(queries))
