from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.packing import IGNORE
from groundthink.errors import ConfigError, TaskError
from groundthink.tasks.check import check_episode, find
from groundthink.tasks.needle import Needle, depth_length_grid
from tasks.worlds import VOCABULARY, text

TEXT = text()


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    length=st.integers(80, 300),
    n_needles=st.integers(1, 5),
    n_queries=st.integers(1, 5),
    value_length=st.integers(1, 4),
    marked=st.booleans(),
    alphabet=st.sampled_from(["own", "text"]),
    seed=st.integers(0, 10**6),
)
def test_lengths_are_exact_and_episodes_valid(
    length: int, n_needles: int, n_queries: int, value_length: int, marked: bool, alphabet: str, seed: int
) -> None:
    task = Needle(
        VOCABULARY,
        text=TEXT,
        length=length,
        n_needles=n_needles,
        n_queries=min(n_needles, n_queries),
        key_length=2,
        value_length=value_length,
        marked=marked,
        alphabet=alphabet,
    )
    for episode in task.episodes(seed, "train", 3):
        assert len(episode) == length
        check_episode(episode, VOCABULARY)
        assert (episode.labels != IGNORE).sum() == len(episode.queries) * value_length
        assert all(len(set(q.in_context_values)) == n_needles for q in episode.queries)


def test_decoys_are_there_and_never_asked() -> None:
    task = Needle(VOCABULARY, text=TEXT, length=100, n_needles=4)
    for episode in task.episodes(0, "test", 20):
        stored = [int(episode.tokens[i + 1]) for i in find(episode.tokens, (VOCABULARY.marker,))]
        assert len(set(stored)) == 4
        assert sum(len(find(episode.tokens, (VOCABULARY.query, key))) for key in stored) == 1


def test_the_text_between_the_needles_is_the_text() -> None:
    task = Needle(VOCABULARY, text=TEXT, length=100, n_needles=3)
    for episode in task.episodes(0, "valid", 10):
        plain = episode.tokens[episode.tokens < VOCABULARY.text]
        assert len(find(TEXT["valid"], plain.tolist())) == 1


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_depth_places_the_asked_needle(depth: float) -> None:
    task = Needle(VOCABULARY, text=TEXT, length=200, n_needles=1, depth=f"at:{depth}")
    (query,) = next(task.episodes(0, "test", 1)).queries
    n_text = 200 - 1 - 3 - 3
    assert query.revealed_at == round(depth * n_text) + 3  # BOS, and marker and key before the value
    assert query.distance == n_text - round(depth * n_text) + 2


def test_beyond_keeps_asked_needles_out_of_the_horizon() -> None:
    task = Needle(VOCABULARY, text=TEXT, length=150, n_needles=5, n_queries=3, depth="beyond:60")
    found = [q.distance for e in task.episodes(0, "test", 400) for q in e.queries]
    assert min(found) == 61
    assert max(found) > 120


def test_language_labels_text_and_answers_but_no_random_token() -> None:
    task = Needle(VOCABULARY, text=TEXT, length=100, n_needles=3, n_queries=2, loss="language")
    for episode in task.episodes(0, "train", 10):
        expected = episode.tokens < VOCABULARY.text
        for query in episode.queries:
            expected[list(query.answer_positions)] = True
        assert ((episode.labels != IGNORE) == expected).all()
    hard = Needle(VOCABULARY, text=TEXT, length=100, alphabet="text", loss="language")
    episode = next(hard.episodes(0, "train", 1))
    at = episode.queries[0].revealed_at
    assert at is not None
    assert (episode.labels[at - 2 : at + 1] == IGNORE).all()


def test_grid() -> None:
    task = Needle(VOCABULARY, text=TEXT)
    cells = list(depth_length_grid(task, [0, 0.5, 1], [64, 128]))
    assert [(d, n) for d, n, _ in cells] == [(d, n) for n in (64, 128) for d in (0, 0.5, 1)]
    assert all(len(next(cell.episodes(0, "test", 1))) == n for _, n, cell in cells)
    with pytest.raises(ConfigError, match="empty grid"):
        next(depth_length_grid(task, [], [64]))


def test_a_key_that_the_text_holds_is_never_used() -> None:
    full = {split: np.tile(np.arange(256), 5) for split in ("train", "valid", "test")}
    task = Needle(VOCABULARY, text=full, length=600, marked=False, alphabet="text")
    with pytest.raises(TaskError, match="that the text does not hold"):
        next(task.episodes(0, "train", 1))
