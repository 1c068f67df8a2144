"""What the tasks with stored pairs share: statements, filler at a said distance, then questions.

BOS  key value  key value ...  f f f f  QUERY key value  QUERY key value
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from groundthink.errors import ConfigError
from groundthink.tasks.kv_recall import DistanceLaw
from groundthink.tasks.task import Episode, Ids, Query, Vocabulary, labels_for


@dataclass(frozen=True)
class Asked:
    """A key that is asked for.

    Args:
        key, value: tokens of both.
        stale: values that the key had before.
        kind: the slice of the result.
    """

    key: Ids
    value: Ids
    stale: tuple[Ids, ...] = ()
    kind: str = ""


def lay_out(
    generator: np.random.Generator,
    vocabulary: Vocabulary,
    statements: Sequence[tuple[Ids, Ids]],
    asked: Sequence[Asked],
    *,
    distance: str,
) -> Episode:
    """An episode of statements (key, value), filler and questions.

    Args:
        generator: of the distance and the filler.
        vocabulary: ranges of ids.
        statements: in order; the last one of a key counts.
        asked: in order, each key once.
        distance: the law of the tokens between the last statement's end and the first cue's end.
    """
    tokens = [vocabulary.bos]
    revealed: dict[Ids, int] = {}
    for key, value in statements:
        tokens += [*key, *value]
        revealed[key] = len(tokens) - 1
    stored = tuple(dict.fromkeys(value for _, value in statements))
    return ask(generator, vocabulary, tokens, revealed, stored, asked, distance=distance)


def ask(
    generator: np.random.Generator,
    vocabulary: Vocabulary,
    body: Sequence[int],
    revealed: Mapping[Ids, int],
    stored: tuple[Ids, ...],
    asked: Sequence[Asked],
    *,
    distance: str,
) -> Episode:
    """An episode of a body, filler and questions.

    Args:
        generator: of the distance and the filler.
        vocabulary: ranges of ids.
        body: tokens from BOS on.
        revealed: for each asked key, the index in `body` of the last token of its value.
        stored: values in the body.
        asked: in order, each key once.
        distance: the law of the tokens between the body's end and the first cue's end.
    """
    law = DistanceLaw.parse(distance)
    gap = int(generator.integers(law.low, law.high + 1)) - 1 - len(asked[0].key)
    filler = generator.integers(vocabulary.filler.start, vocabulary.filler.stop, size=gap)
    tokens, queries = [*body, *filler.tolist()], []
    for item in asked:
        cue = (vocabulary.query, *item.key)
        at = len(tokens) + len(cue) - 1
        tokens += [*cue, *item.value]
        found = Query(item.key, item.value, cue, at, revealed[item.key], stored)
        queries.append(dataclasses.replace(found, stale_values=item.stale, kind=item.kind))
    array = np.array(tokens, dtype=np.int64)
    return Episode(array, labels_for(array, tuple(queries)), tuple(queries))


def longest(*, distance: str, stored: int, key: int, n_queries: int) -> int:
    """Tokens of the longest episode: `stored` of statements, keys of up to `key` tokens, values of one."""
    return 1 + stored + (DistanceLaw.parse(distance).high - 1 - key) + n_queries * (2 + key)


def distance_problems(distance: str, *, key: int = 1) -> list[str]:
    """What is wrong with a distance law where a cue has QUERY and up to `key` tokens."""
    try:
        law = DistanceLaw.parse(distance)
    except ConfigError as error:
        return [str(error)]
    return [f"distance {distance!r} begins below the {1 + key} tokens of a cue"] if law.low < 1 + key else []


def count_problems(*, n_queries: int, n_keys: int) -> list[str]:
    """What is wrong with the number of questions where each key is asked once at most."""
    return [] if 1 <= n_queries <= n_keys else [f"n_queries {n_queries} is not between 1 and the {n_keys} keys"]


def draw_values(generator: np.random.Generator, vocabulary: Vocabulary, n: int) -> list[Ids]:
    """`n` different values of one token."""
    return [(int(v),) for v in vocabulary.values.start + generator.permutation(vocabulary.n_values)[:n]]


def draw_keys(generator: np.random.Generator, keys: range, n: int) -> list[Ids]:
    """`n` different keys of one token."""
    return [(int(k),) for k in keys.start + generator.permutation(len(keys))[:n]]
