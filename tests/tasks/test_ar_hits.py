from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import TaskError
from groundthink.tasks.ar_hits import BUCKETS, ar_hit_buckets, ar_hit_positions, mean_losses

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=40)


def slow(tokens: list[int], documents: list[int]) -> list[tuple[int, int]]:
    """The definition, read aloud."""
    found = []
    for t in range(1, len(tokens)):
        for s in range(t - 1, 0, -1):
            same = documents[s - 1] == documents[s] == documents[t - 1] == documents[t]
            if same and tokens[s - 1 : s + 1] == tokens[t - 1 : t + 1]:
                found.append((t, t - 1 - s))
                break
    return found


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(row=rows)
def test_it_finds_what_the_definition_finds(row: list[tuple[int, int]]) -> None:
    tokens = [token for token, _ in row]
    documents = np.cumsum([starts for _, starts in row]) if row else np.zeros(0, dtype=int)
    found = ar_hit_positions(np.array(tokens, dtype=np.int64), documents)
    assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == slow(tokens, documents.tolist())


def test_no_memory_reaches_across_documents() -> None:
    tokens = np.array([5, 6, 5, 6])
    positions, distances = ar_hit_positions(tokens, np.zeros(4, dtype=int))
    assert (positions.tolist(), distances.tolist()) == ([3], [1])
    assert ar_hit_positions(tokens, np.array([0, 0, 1, 1]))[0].size == 0


def test_buckets_hold_every_hit_once_and_average_their_losses() -> None:
    tokens = np.random.default_rng(0).integers(0, 8, size=400)
    documents = np.repeat([0, 1], 200)
    positions, distances = ar_hit_positions(tokens, documents)
    buckets = ar_hit_buckets(tokens, documents, window=10, reach=40)
    assert tuple(buckets) == BUCKETS
    assert sorted(np.concatenate(list(buckets.values())).tolist()) == positions.tolist()
    far = dict(zip(positions.tolist(), distances.tolist(), strict=True))
    spans = {name: [far[t] for t in at.tolist()] for name, at in buckets.items()}
    assert max(spans["inside"]) == 9
    assert min(spans["between"]) >= 10
    assert max(spans["between"]) <= 40 < min(spans["beyond"])
    # Losses that equal their index: the mean is the mean index, and NaN elsewhere does not reach it.
    losses = np.full(400, np.nan)
    losses[positions] = positions
    for name, (mean, n) in mean_losses(losses, buckets).items():
        assert n == len(buckets[name]) > 5
        assert mean == pytest.approx(buckets[name].mean())  # rounding of a sum of integers below 2^53: none
    mean, n = mean_losses(losses, {"inside": np.zeros(0, dtype=np.int64)})["inside"]
    assert math.isnan(mean)
    assert n == 0


def test_bad_shapes_and_bounds() -> None:
    with pytest.raises(TaskError, match="two rows of one length"):
        ar_hit_positions(np.zeros((2, 3), dtype=int), np.zeros((2, 3), dtype=int))
    with pytest.raises(TaskError, match="two rows of one length"):
        ar_hit_positions(np.zeros(3, dtype=int), np.zeros(4, dtype=int))
    with pytest.raises(TaskError, match="window 9 and reach 4"):
        ar_hit_buckets(np.zeros(3, dtype=int), np.zeros(3, dtype=int), window=9, reach=4)
