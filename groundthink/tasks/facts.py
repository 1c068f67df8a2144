"""Facts in natural language: who has which object, and in what colour.

    Anna has a red box. The rain fell all night. Ben has a blue cup. ... What colour is Anna's box? red

Eight names, eight objects, eight colours. One in eight combinations occurs in the test split only, another
one in the validation split only: a model cannot have seen the fact that it is asked for. Names and objects
repeat within an episode in different pairings, so that neither alone gives the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.data.tokenizer import ByteTokenizer, Tokenizer
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

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
OBJECTS = ("box", "cup", "hat", "bag", "car", "ball", "book", "lamp")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple")
FILLER = (
    " The rain fell all night.",
    " A train went by in the distance.",
    " It was a quiet morning in the village.",
    " Somebody had left the window open.",
    " The road to the sea was long and empty.",
    " They talked about the weather for a while.",
    " Nobody remembered who had planted the tree.",
    " Dinner was served at seven, as it was every day.",
    " The old clock in the hall had stopped again.",
    " In the afternoon the market closed early.",
)
TRIES = 100  # draws of a name for a thing before another thing is taken
POSITIONS = ("start", "middle", "end", "anywhere")
Triple = tuple[int, int, int]  # indices of name, object, colour


def split_of(triple: Triple) -> str:
    """The split that a combination belongs to: sum of indices modulo 8 is 0: test; 1: valid; else train."""
    return {0: "test", 1: "valid"}.get(sum(triple) % 8, "train")


@dataclass(frozen=True, eq=False)
class Facts(Task):
    """Questions about facts in natural language, written with a tokenizer.

    Args:
        tokenizer: ids below `vocabulary.text`; bytes unless handed in.
        text: tokens of each split to take filler from; the ten sentences of this file unless handed in.
        n_facts: facts in an episode, 1 to 8, each of another colour.
        n_queries: how many of them are asked, each once.
        position: where the facts lie in the filler: `start`, `middle`, `end` or `anywhere` (each on its own).
        filler_tokens: tokens of filler: exactly so many of text, or as many whole sentences as fit.
        alike: share of the facts after the first that are about a thing of its kind: only the name tells them apart.
    """

    name: ClassVar[str] = "facts"
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer, metadata={"resource": True})
    text: Mapping[str, NDArray[np.integer]] | None = field(default=None, metadata={"resource": True})
    n_facts: int = 3
    n_queries: int = 1
    position: str = "anywhere"
    filler_tokens: int = 100
    alike: float = 0.0

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if not 1 <= self.n_facts <= len(COLOURS):
            found.append(f"n_facts {self.n_facts} is not 1 to {len(COLOURS)}")
        if not 1 <= self.n_queries <= self.n_facts:
            found.append(f"n_queries {self.n_queries} is not between 1 and n_facts {self.n_facts}")
        if self.position not in POSITIONS:
            found.append(f"position {self.position!r} is not one of {', '.join(POSITIONS)}")
        if not 0 <= self.alike <= 1:
            found.append(f"alike {self.alike} is no share between 0 and 1")
        if self.filler_tokens < 0:
            found.append(f"filler_tokens {self.filler_tokens} is negative")
        if self.tokenizer.vocab_size > self.vocabulary.text:
            n_ids = self.tokenizer.vocab_size
            found.append(f"tokenizer has {n_ids} ids, vocabulary.text {self.vocabulary.text}")
        for split in SPLITS if self.text is not None else ():
            if len(self.text.get(split, ())) < max(self.filler_tokens, 1):  # type: ignore[union-attr]
                found.append(f"text of {split} has fewer than {self.filler_tokens} tokens")
        return found

    def resource_digests(self) -> dict[str, str]:
        """See `Task`."""
        text = {} if self.text is None else {"text": digest_of(self.text)}
        return {"tokenizer": self.tokenizer.digest, **text}

    @functools.cached_property
    def _ids(self) -> dict[str, Ids]:
        """Ids of every piece of text that an episode is made of."""
        pieces = [".", *FILLER]
        pieces += [f" {name} has a" for name in NAMES]
        pieces += [f" {word}" for word in (*COLOURS, *OBJECTS)]
        pieces += [f" What colour is {name}'s {thing}?" for name in NAMES for thing in OBJECTS]
        return {piece: tuple(self.tokenizer.encode(piece)) for piece in pieces}

    @property
    def max_length(self) -> int:
        """See `Task`."""
        ids = self._ids
        who = max(len(ids[f" {name} has a"]) for name in NAMES)
        colour = max(len(ids[f" {word}"]) for word in COLOURS)
        thing = max(len(ids[f" {word}"]) for word in OBJECTS)
        question = max(len(tokens) for piece, tokens in ids.items() if piece.endswith("?"))
        fact, asked = (length + colour + len(ids["."]) for length in (who + thing, question))
        return 1 + self.filler_tokens + self.n_facts * fact + self.n_queries * asked

    def chance(self) -> Chance:
        """See `Task`. The vocabulary's chance is for the first token alone."""
        return Chance(1 / self.vocabulary.size, 1 / len(COLOURS), 1 / self.n_facts)

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`."""
        check_split(split)
        ids, tokens = self._ids, [self.vocabulary.bos]
        facts = draw_facts(generator, self.n_facts, split, self.alike)
        filler = self._filler(generator, split)
        slots = self._slots(generator, len(filler))
        revealed: dict[int, int] = {}
        used = 0
        for slot, i in sorted(zip(slots, range(self.n_facts), strict=True)):
            tokens += [token for piece in filler[used:slot] for token in piece]
            used = slot
            n, o, c = facts[i]
            tokens += [*ids[f" {NAMES[n]} has a"], *ids[f" {COLOURS[c]}"], *ids[f" {OBJECTS[o]}"]]
            revealed[i] = len(tokens) - 1
            tokens += ids["."]
        tokens += [token for piece in filler[used:] for token in piece]
        stored = tuple(ids[f" {COLOURS[c]}"] for _, _, c in facts)
        queries = []
        for i in generator.permutation(self.n_facts)[: self.n_queries].tolist():
            n, o, _ = facts[i]
            cue = ids[f" What colour is {NAMES[n]}'s {OBJECTS[o]}?"]
            at = len(tokens) + len(cue) - 1
            tokens += [*cue, *stored[i], *ids["."]]
            key, tail = ids[f" {NAMES[n]} has a"], ids[f" {OBJECTS[o]}"]
            queries.append(Query(key, stored[i], cue, at, revealed[i], stored, tail))
        array = np.array(tokens, dtype=np.int64)
        return Episode(array, labels_for(array, tuple(queries)), tuple(queries))

    def _filler(self, generator: np.random.Generator, split: str) -> list[Ids]:
        """Filler in the pieces between which a fact may stand: tokens of text, or whole sentences."""
        if self.text is not None:
            begin = int(generator.integers(0, len(self.text[split]) - self.filler_tokens + 1))
            return [(int(token),) for token in self.text[split][begin : begin + self.filler_tokens]]
        pieces: list[Ids] = []
        room = self.filler_tokens
        while True:
            sentence = self._ids[FILLER[int(generator.integers(len(FILLER)))]]
            if len(sentence) > room:
                return pieces
            pieces.append(sentence)
            room -= len(sentence)

    def _slots(self, generator: np.random.Generator, n_pieces: int) -> list[int]:
        """For each fact, how many pieces of filler stand before it."""
        if self.position == "anywhere":
            return [int(slot) for slot in generator.integers(0, n_pieces + 1, size=self.n_facts)]
        return [{"start": 0, "middle": n_pieces // 2, "end": n_pieces}[self.position]] * self.n_facts


def draw_facts(generator: np.random.Generator, n: int, split: str, alike: float = 0.0) -> list[Triple]:
    """`n` combinations of one split: no two of one colour, nor of one name and object; `alike` as in `Facts`."""
    found: list[Triple] = []
    for colour in generator.permutation(len(COLOURS))[:n].tolist():
        tries = TRIES if alike and found and generator.random() < alike else 0
        while True:
            name, thing = generator.integers(0, 8, size=2).tolist()
            if tries:  # few names are left for a thing and a colour, sometimes none
                thing, tries = found[0][1], tries - 1
            fresh = all((name, thing) != (other[0], other[1]) for other in found)
            if fresh and split_of((name, thing, colour)) == split:
                found.append((name, thing, colour))
                break
    return found
