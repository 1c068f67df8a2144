from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from groundthink.errors import TaskError
from groundthink.tasks.check import check_episode
from groundthink.tasks.kv_overwrite import KvOverwrite
from groundthink.tasks.scoring import evaluate
from groundthink.tasks.task import Episode
from tasks.worlds import VOCABULARY, last_value, lookup, one_hot, salient

TASK = KvOverwrite(VOCABULARY, n_pairs=8, n_rebound=4, times=2, distance="fixed:12")


def first_value(tokens: torch.Tensor) -> torch.Tensor:
    """A memory that never overwrites: what followed this token first."""
    said = torch.zeros_like(tokens)
    for row, out in zip(tokens.tolist(), said, strict=True):
        seen: dict[int, int] = {}
        for t, token in enumerate(row[:-1]):
            seen.setdefault(token, row[t + 1])
            out[t] = seen[token]
    return one_hot(said)


def test_the_last_value_counts() -> None:
    result = evaluate(TASK, lookup, n=200)
    assert result.exact.rate == 1
    assert result.stale is not None
    assert (result.stale.hits, result.stale.n) == (0, result.by_kind["new"].n)
    assert set(result.by_kind) == {"new", "untouched"}
    assert all(70 < found.n < 130 for found in result.by_kind.values())  # 4 keys of 8


def test_a_memory_that_never_overwrites_is_stale_and_right_on_the_rest() -> None:
    result = evaluate(TASK, first_value, n=200)
    assert result.by_kind["untouched"].rate == 1
    assert result.by_kind["new"].rate == 0
    assert result.stale is not None
    assert result.stale.rate == 1
    assert result.confusion["stale"] == result.stale.n


def test_chance() -> None:
    chance = TASK.chance()
    assert chance.in_context == 1 / 8
    recent = evaluate(TASK, last_value, n=600)
    assert recent.exact.low <= chance.in_context <= recent.exact.high
    # Among all 16 values, old ones included, the guess is worse.
    anything = evaluate(TASK, salient(TASK), n=600)
    assert anything.exact.low <= 1 / 16 <= anything.exact.high
    # 600 guesses among 16 values, half the keys with 2 stale ones: once in 8; standard deviation 0.02, five of them.
    assert anything.stale is not None
    assert abs(anything.stale.rate - 1 / 8) < 0.1


def test_every_rebinding_changes_a_value_and_stands_anywhere() -> None:
    places = set()
    for episode in TASK.episodes(0, "train", 200):
        body = episode.tokens[1:33]
        assert len(set(body[1::2].tolist())) == 16
        keys, counts = np.unique(body[::2], return_counts=True)
        assert len(keys) == 8
        assert sorted(counts) == [1] * 4 + [3] * 4
        places |= {i for i, key in enumerate(body[::2].tolist()) if key in body[: 2 * i : 2].tolist()}
    assert places == set(range(1, 16))


def test_false_claims_about_old_values_are_caught() -> None:
    episode = next(e for e in TASK.episodes(0, "train", 50) if e.queries[0].kind == "new")
    query = episode.queries[0]
    never = next(v for v in query.in_context_values if v != query.value and v not in query.stale_values)
    faults = [
        (dataclasses.replace(query, stale_values=()), "live key"),
        (dataclasses.replace(query, stale_values=(*query.stale_values, never)), "never had"),
        (dataclasses.replace(query, stale_values=(*query.stale_values, query.value)), "changes nothing"),
    ]
    for fault, message in faults:
        with pytest.raises(TaskError, match=message):
            check_episode(dataclasses.replace(episode, queries=(fault,)), VOCABULARY)
    # An old value that comes back after the new one: insert the statement at the end of the body.
    back = [*query.key, *query.stale_values[0]]
    tokens, labels = (np.insert(a, 33, b) for a, b in ((episode.tokens, back), (episode.labels, [-100, -100])))
    moved = dataclasses.replace(query, query_position=query.query_position + 2)
    with pytest.raises(TaskError, match="live key at 33"):
        check_episode(Episode(tokens, labels, (moved,)), VOCABULARY)
