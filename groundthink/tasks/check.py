"""Is an episode what it says it is? Every task's episodes must pass; the tests plant faults that must not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from groundthink.data.packing import IGNORE
from groundthink.errors import TaskError
from groundthink.tasks.task import SPLITS, Episode, Query, Task, Vocabulary


def find(tokens: NDArray[np.int64], pattern: Sequence[int]) -> list[int]:
    """Every index at which `pattern` begins in `tokens`."""
    last = len(tokens) - len(pattern) + 1
    if not pattern or last <= 0:
        return []
    hits = np.ones(last, dtype=bool)
    for offset, token in enumerate(pattern):
        hits &= tokens[offset : offset + last] == token
    return np.flatnonzero(hits).tolist()


def check_episode(episode: Episode, vocabulary: Vocabulary) -> None:
    """Recompute from the tokens alone what the queries claim.

    Raises:
        TaskError: a token outside the vocabulary; a label on another token than its own; an answer that is
            not labelled or does not follow its cue; a key that leads to anything but its value (as live keys
            in filler do); a wrong distance; an absent key that is there; a stale value that the key never had,
            has still, or got anew; an answer other than the one that its rule computes.
    """
    tokens, labels = episode.tokens, episode.labels
    if len(tokens) != len(labels) or not len(tokens):
        raise TaskError(f"{len(tokens)} tokens with {len(labels)} labels")
    if tokens.min() < 0 or tokens.max() >= vocabulary.size:
        raise TaskError(f"token outside 0..{vocabulary.size - 1}")
    if labels[0] != IGNORE:
        raise TaskError("the first token is labelled, with nothing before it")
    if not episode.queries:
        raise TaskError("nothing is asked")
    own = (labels == IGNORE) | (labels == tokens)
    own[[i for query in episode.queries if not query.fed_back for i in query.answer_positions if i < len(own)]] = True
    wrong = np.flatnonzero(~own)
    if wrong.size:
        raise TaskError(f"label {labels[wrong[0]]} stands on token {tokens[wrong[0]]} at {wrong[0]}: shifted?")
    end = 0
    for number, query in enumerate(episode.queries):
        if query.query_position < end:
            raise TaskError("queries overlap or are out of order", where=f"query {number}")
        # Where every next token is asked for, an answer is the cue of the next question.
        end = query.answer_positions.stop - (query.rule is not None)
        try:
            _check_query(episode, query, vocabulary)
        except TaskError as error:
            raise TaskError(error.what, where=f"query {number} at {query.query_position}") from error


def _check_query(episode: Episode, query: Query, vocabulary: Vocabulary) -> None:
    tokens, at = episode.tokens, query.query_position
    begin = at - len(query.cue) + 1
    if begin < 0 or tuple(tokens[begin : at + 1].tolist()) != query.cue:
        raise TaskError("the cue does not stand where it should")
    answer = slice(at + 1, at + 1 + len(query.value))
    if query.fed_back and tuple(tokens[answer].tolist()) != query.value:
        raise TaskError("the answer does not follow its cue")
    if tuple(episode.labels[answer].tolist()) != query.value:
        raise TaskError("the answer is not labelled")
    before = tokens[:begin]
    if query.rule is not None:
        _check_rule(tokens[: at + 1], query)
        return
    if query.value == (vocabulary.absent,):
        if query.revealed_at is not None or query.value in query.in_context_values:
            raise TaskError("an absent answer cannot be revealed")
        if [i for i in find(before, query.key) if before[i + len(query.key)] != vocabulary.absent]:
            raise TaskError("the absent key is there")
        return
    if query.value not in query.in_context_values:
        raise TaskError("the answer is not among the values of the context")
    statement = (*query.key, *query.value, *query.tail)
    asked = (*query.cue, *query.value)
    reveals = [i + len(statement) - 1 for i in find(before, statement)]
    reveals += [i + len(asked) - 1 for i in find(before, asked)]
    if not reveals or max(reveals) != query.revealed_at:
        raise TaskError(f"revealed at {max(reveals, default=None)}, not at {query.revealed_at}")
    _check_rivals(before, query)


def _check_rule(prefix: NDArray[np.int64], query: Query) -> None:
    assert query.rule is not None
    if query.value not in query.in_context_values:
        raise TaskError("the answer is not among the values of the context")
    value, revealed = query.rule(prefix)
    if value != query.value:
        raise TaskError(f"the rule gives {value}, not {query.value}")
    if revealed != query.revealed_at:
        raise TaskError(f"revealed at {revealed}, not at {query.revealed_at}")


def _check_rivals(before: NDArray[np.int64], query: Query) -> None:
    """The key must lead to its value and to nothing else, else the question has no one answer."""
    if query.tail:
        rivals = [v for v in query.in_context_values if v != query.value]
        if any(find(before, (*query.key, *rival, *query.tail)) for rival in rivals):
            raise TaskError("another statement gives the key another value")
        return
    if query.value in query.stale_values:
        raise TaskError("the answer is stale: a re-binding that changes nothing")
    stale, settled = set(), False
    for i in find(before, query.key):
        follows = tuple(before[i + len(query.key) : i + len(query.key) + len(query.value)].tolist())
        if follows in query.stale_values and not settled:
            stale.add(follows)
        elif follows != query.value:
            raise TaskError(f"a live key at {i} is followed by {follows}")
        else:
            settled = True
    if stale != set(query.stale_values) or not stale <= set(query.in_context_values):
        raise TaskError("a stale value that the key never had")


def check_splits(task: Task, *, seed: int = 0, n: int = 32) -> None:
    """No episode of one split may occur in another.

    Raises:
        TaskError: two splits share an episode, or an episode occurs twice within one.
    """
    seen: dict[bytes, str] = {}
    for split in SPLITS:
        for episode in task.episodes(seed, split, n):
            content = episode.tokens.tobytes()
            if content in seen:
                raise TaskError(f"an episode of {split} occurs in {seen[content]} too", where=f"task {task.name}")
            seen[content] = split
