"""What a question with a known answer is: vocabulary, query, episode, task."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from groundthink.data.packing import IGNORE, Batch, fill
from groundthink.errors import ConfigError, TaskError

SPLITS = {"train": 0, "valid": 1, "test": 2}
SPECIALS = ("bos", "query", "absent", "marker", "pad")
_BATCHES, _EPISODES = 1, 2  # last word of a seed, so that batches and single episodes draw apart

Ids = tuple[int, ...]
Rule = Callable[[NDArray[np.int64]], tuple[Ids, int]]


@dataclass(frozen=True)
class Vocabulary:
    """Where the ids of text and of tasks lie in the vocabulary of the model.

        0 .. text-1 | specials | keys | values | filler | size

    The ranges are disjoint, so filler can never be a key. `size` is the model's `vocab_size`, or less than
    it.

    Args:
        text: ids of the tokenizer.
        n_specials: BOS, QUERY, ABSENT, MARKER, PAD and some in reserve.
        n_keys, n_values, n_filler: sizes of the ranges.

    Raises:
        ConfigError: a range that is too small.
    """

    text: int = 256
    n_specials: int = 8
    n_keys: int = 64
    n_values: int = 64
    n_filler: int = 64

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} is {getattr(self, field.name)}, at least {least} is needed"
            for field, least in zip(dataclasses.fields(self), (0, len(SPECIALS), 1, 1, 1), strict=True)
            if getattr(self, field.name) < least
        ]
        if problems:
            raise ConfigError("; ".join(problems), where="vocabulary", fix="enlarge those ranges.")

    @property
    def bos(self) -> int:
        """First token of every episode."""
        return self.text

    @property
    def query(self) -> int:
        """Stands before the key that is asked for."""
        return self.text + 1

    @property
    def absent(self) -> int:
        """The right answer where the key was never stored."""
        return self.text + 2

    @property
    def marker(self) -> int:
        """Stands before a needle in text, and at the end of a word whose every token is asked for."""
        return self.text + 3

    @property
    def pad(self) -> int:
        """Padding; never labelled."""
        return self.text + 4

    @property
    def keys(self) -> range:
        """Ids of keys."""
        start = self.text + self.n_specials
        return range(start, start + self.n_keys)

    @property
    def values(self) -> range:
        """Ids of values."""
        return range(self.keys.stop, self.keys.stop + self.n_values)

    @property
    def filler(self) -> range:
        """Ids of filler."""
        return range(self.values.stop, self.values.stop + self.n_filler)

    @property
    def size(self) -> int:
        """Number of ids in all."""
        return self.filler.stop


@dataclass(frozen=True)
class Query:
    """One question inside an episode.

    Attributes:
        key: tokens that introduce the value in the context: the key, with its marker where it has one.
        value: the answer, one token or several; it follows the cue directly.
        tail: tokens after the value that complete the statement, as the object in "has a red box".
        cue: tokens of the question; the last of them stands at `query_position`.
        query_position: index of the token at which the answer's first token is predicted.
        revealed_at: index of the *last* token before the cue that reveals the answer, earlier answered
            queries of the same key included; None where the answer is "absent".
        in_context_values: every value stored in the episode, the answer among them unless it is absent.
        stale_values: values that the key had before; the answer is the one it was given last.
        kind: the slice of the result that the question belongs to, as `new` or `untouched`.
        rule: for an answer that is computed, not stored: from the tokens up to `query_position`, the answer and
            the index of the last token that it depends on, which is `revealed_at`. `key` is then empty.
        fed_back: whether the answer's tokens follow the cue. Where they do not, the labels name tokens other
            than those they stand on, as the label of a running product must: fed back, it would give away the
            next one.
    """

    key: Ids
    value: Ids
    cue: Ids
    query_position: int
    revealed_at: int | None
    in_context_values: tuple[Ids, ...]
    tail: Ids = ()
    stale_values: tuple[Ids, ...] = ()
    kind: str = ""
    rule: Rule | None = None
    fed_back: bool = True

    @property
    def distance(self) -> int | None:
        """Tokens between the last reveal and the prediction; None where the answer is "absent"."""
        return None if self.revealed_at is None else self.query_position - self.revealed_at

    @property
    def answer_positions(self) -> range:
        """Indices of the answer's tokens; the logits that predict them stand one earlier."""
        return range(self.query_position + 1, self.query_position + 1 + len(self.value))


@dataclass(frozen=True, eq=False)
class Episode:
    """Tokens with questions in them.

    Attributes:
        tokens: int64 [n].
        labels: int64 [n], the token itself at every index that is asked for, -100 elsewhere. Only where a
            query is not fed back, the answer instead of the token.
        queries: in the order of their positions.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    queries: tuple[Query, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Chance:
    """What guessing scores, three ways.

    Attributes:
        vocabulary: any token of the vocabulary.
        value_range: any possible value.
        in_context: a value stored in the episode, or "absent" if that scores more.
    """

    vocabulary: float
    value_range: float
    in_context: float

    @property
    def best(self) -> float:
        """The highest of them: what an accuracy has to beat."""
        return max(self.vocabulary, self.value_range, self.in_context)


@dataclass(frozen=True)
class ShortcutChance(Chance):
    """And what half an understanding scores.

    Attributes:
        shortcut: a guess that uses a part of what the task asks for, as one half of a key.
    """

    shortcut: float

    @property
    def best(self) -> float:
        """The highest of them: what an accuracy has to beat."""
        return max(super().best, self.shortcut)


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """A generator of episodes. Subclasses are frozen dataclasses whose further fields are the options.

    A field with `metadata={"resource": True}` (text, tokenizer) is handed in by the program, never by a
    recipe.

    Args:
        vocabulary: ranges of ids.

    Raises:
        ConfigError: options that cannot be honoured, all of them at once.
    """

    vocabulary: Vocabulary
    name: ClassVar[str]
    fed_back: ClassVar[bool] = True  # False: labels name other tokens than those they stand on, see `Query`

    def __post_init__(self) -> None:
        problems = _wrong_types(self) or self.problems()
        if problems:
            raise ConfigError("; ".join(problems), where=f"task {self.name}", fix="change these options.")

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the options, whose types are right."""

    @abstractmethod
    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """One episode; all randomness comes from `generator`.

        Raises:
            TaskError: an unknown split.
        """

    @abstractmethod
    def chance(self) -> Chance:
        """What guessing scores."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens of the longest possible episode."""

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names of the options, without vocabulary and resources."""
        own = dataclasses.fields(cls)[1:]
        return tuple(field.name for field in own if not field.metadata.get("resource"))

    @property
    def options(self) -> dict[str, Any]:
        """Options by name, JSON only."""
        return {name: getattr(self, name) for name in self.option_names()}

    def resource_digests(self) -> dict[str, str]:
        """Content hashes of what was handed in beside the options, by name."""
        return {}

    def with_options(self, **options: Any) -> Self:
        """The same task with other options: how a curriculum makes it harder.

        Raises:
            ConfigError: unknown options, or values that cannot be honoured.
        """
        refuse_unknown(type(self), options)
        return dataclasses.replace(self, **options)

    def generator(self, split: str, seed: int, index: int, *, purpose: int) -> np.random.Generator:
        """The generator of one batch or episode; no two (split, seed, index, purpose) share one."""
        check_split(split)
        if seed < 0 or index < 0:
            raise TaskError(f"seed {seed}, index {index}", where=f"task {self.name}", fix="both start at 0.")
        namespace = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        return np.random.default_rng(np.random.SeedSequence([namespace, SPLITS[split], seed, index, purpose]))

    def episodes(self, seed: int, split: str, n: int, *, start: int = 0) -> Iterator[Episode]:
        """Episodes start .. start + n - 1 of a seed; each depends on its own index only."""
        for index in range(start, start + n):
            yield self.episode(self.generator(split, seed, index, purpose=_EPISODES), split)

    def batch(self, seed: int, split: str, step: int, rows: int, length: int) -> Batch:
        """Episodes packed into rows, each a document: a pure function of (seed, split, step).

        Args:
            seed: of the run.
            split: `train`, `valid` or `test`; their seeds are apart.
            step: any step, in any order.
            rows, length: shape of the batch. A row is filled until the next episode does not fit.

        Raises:
            TaskError: an episode is longer than `length`; nothing is cut.
        """
        generator = self.generator(split, seed, step, purpose=_BATCHES)
        plan: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[]]
        used = 0
        while True:
            episode = self.episode(generator, split)
            if len(episode) > length:
                raise TaskError(
                    f"an episode of {len(episode)} tokens does not fit into rows of {length}",
                    where=f"task {self.name}",
                    fix=f"give it rows of {self.max_length}, or a smaller task.",
                )
            if used + len(episode) > length:
                if len(plan) == rows:
                    break
                plan.append([])
                used = 0
            plan[-1].append((episode.tokens, episode.labels))
            used += len(episode)
        return fill(plan, length, pad=self.vocabulary.pad)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits over name, options, vocabulary and the first episodes of every split."""
        head = [self.name, self.options, self.resource_digests(), dataclasses.asdict(self.vocabulary)]
        whole = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for split in SPLITS:
            for episode in self.episodes(0, split, 4):
                whole.update(episode.tokens.tobytes())
                whole.update(episode.labels.tobytes())
        return whole.hexdigest()[:16]


def check_split(split: str) -> None:
    """Raise TaskError unless `split` is train, valid or test."""
    if split not in SPLITS:
        raise TaskError(f"no split {split!r}", fix=f"one of {', '.join(SPLITS)}.")


def refuse_unknown(kind: type[Task], options: dict[str, Any]) -> None:
    """Raise ConfigError if `kind` has no such options, naming all of them."""
    unknown = sorted(set(options) - set(kind.option_names()))
    if unknown:
        raise ConfigError(
            f"unknown option{'s' * (len(unknown) > 1)} {', '.join(unknown)}",
            where=f"task {kind.name}",
            fix=f"it knows {', '.join(kind.option_names())}.",
        )


def _wrong_types(task: Task) -> list[str]:
    """A YAML file may say `n_pairs: "16"`; say so before any arithmetic does."""
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    problems = []
    for field in dataclasses.fields(task):
        wanted = kinds.get(str(field.type))
        value = getattr(task, field.name)
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            problems.append(f"{field.name} is {value!r}, not {field.type}")
    return problems


def digest_of(text: Mapping[str, NDArray[np.integer]]) -> str:
    """16 hex digits over the tokens of every split."""
    whole = hashlib.sha256()
    for split in SPLITS:
        whole.update(np.ascontiguousarray(text[split], dtype=np.int64).tobytes())
    return whole.hexdigest()[:16]


def labels_for(tokens: NDArray[np.int64], queries: tuple[Query, ...]) -> NDArray[np.int64]:
    """Labels that ask for the answers only."""
    labels = np.full(len(tokens), IGNORE, dtype=np.int64)
    for query in queries:
        labels[query.query_position + 1 : query.query_position + 1 + len(query.value)] = query.value
    return labels
