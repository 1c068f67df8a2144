"""Needles in natural text as questions with a boundary: the asked needle lies before it, decoys lie anywhere.

The donor's prompt is the same text with another value in the asked needle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from groundthink.errors import TaskError
from groundthink.probes.face import Model, derived_seed
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.recall import Questions, ask
from groundthink.probes.transplant import least_distance
from groundthink.tasks import Episode
from groundthink.tasks.needle import Needle


def ask_needles(needle: Needle, length: int, *, horizon: int, n: int, seed: int) -> Questions:
    """One question in each of `n` texts of exactly `length` tokens, at least 2 R + 3 tokens after its needle.

    Raises:
        TaskError: values of several tokens, or a length that has no room.
    """
    if needle.value_length != 1:
        raise TaskError("a value of several tokens", where="needle", fix="certify with value_length=1")
    least = least_distance(horizon) + needle.key_length
    task = needle.with_options(length=length + 1, n_queries=1, depth=f"beyond:{least}")
    return ask(task, n=n, seed=seed)


def needle_prefilled(
    model: Model, needle: Needle, questions: Questions, *, horizon: int, seed: int, tick: Callable[[], None]
) -> Prefilled:
    """Needles read up to t*, R tokens before the question, with donors of the kind `one_key`.

    Raises:
        TaskError: inside: another kind of donor.
    """
    at = questions.prompts.shape[1] - (1 + needle.key_length) - horizon

    def giver(kind: str) -> Questions:
        if kind != "one_key":
            raise TaskError(f"no donor of kind {kind!r} in text", where="needle", fix="use one_key")
        found = [_other_value(needle, e, derived_seed(seed, "donor", i)) for i, e in enumerate(questions.episodes)]
        return Questions.of(found, questions.chance)

    return Prefilled(model, questions, at=at, giver=giver, tick=tick)


def _other_value(needle: Needle, episode: Episode, seed: int) -> Episode:
    """The episode with a value in the asked needle that it does not hold, and that no key has a part in."""
    (query,) = episode.queries
    assert query.revealed_at is not None
    ids = range(needle.vocabulary.text) if needle.alphabet == "text" else needle.vocabulary.values
    taken = {value[0] for value in query.in_context_values} | set(query.key)
    spare = sorted(set(ids) - taken)
    if not spare:
        raise TaskError("no value is left for a donor", where="needle", fix="give it more values than needles")
    value = spare[int(np.random.default_rng(seed).integers(len(spare)))]
    tokens = episode.tokens.copy()
    tokens[query.revealed_at] = tokens[query.query_position + 1] = value
    stored = tuple((value,) if old == query.value else old for old in query.in_context_values)
    asked = dataclasses.replace(query, value=(value,), in_context_values=stored)
    labels = episode.labels.copy()
    labels[query.query_position + 1] = value
    return Episode(tokens, labels, (asked,))
