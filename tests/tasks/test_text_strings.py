"""Strings in natural text: well formed, apart by split, and refused where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import ConfigError
from groundthink.tasks.check import check_episode
from groundthink.tasks.task import Vocabulary
from groundthink.tasks.text_strings import TextStrings
from tasks.worlds import text

VOCABULARY = Vocabulary()


def task(**options: object) -> TextStrings:
    return TextStrings(VOCABULARY, text=text(), **options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20, derandomize=True, database=None)
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 6),
    marked=st.booleans(),
    absent=st.sampled_from([0.0, 0.5, 1.0]),
    depth=st.sampled_from(["anywhere", "first"]),
)
def test_every_episode_holds_what_it_claims(seed: int, n: int, marked: bool, absent: float, depth: str) -> None:
    made = task(length=320, n_needles=n, n_queries=n, marked=marked, absent=absent, depth=depth)
    for episode in made.episodes(seed, "train", 2):
        check_episode(episode, VOCABULARY)
        assert len(episode) <= made.max_length
        if not marked:
            reserved = set(episode.tokens.tolist()) & {VOCABULARY.marker, VOCABULARY.query}
            assert not reserved


def test_no_value_of_the_test_is_ever_trained_on() -> None:
    made = task(length=200, n_needles=4, n_queries=4)
    found = {
        split: {query.value for episode in made.episodes(0, split, 60) for query in episode.queries}
        for split in ("train", "valid", "test")
    }
    assert all(found.values())
    assert not found["train"] & found["test"]
    assert not found["train"] & found["valid"]


def test_a_name_that_was_never_given_is_absent() -> None:
    made = task(length=200, n_needles=3, absent=1.0)
    (query,) = next(made.episodes(0, "test", 1)).queries
    assert query.value == (VOCABULARY.absent,)
    assert query.revealed_at is None
    assert made.chance().in_context == 1.0


def test_the_text_is_left_as_it_was() -> None:
    made = task(length=150, n_needles=1, depth="first")
    episode = next(made.episodes(3, "test", 1))
    (query,) = episode.queries
    assert query.revealed_at is not None
    between = episode.tokens[query.revealed_at + 1 : query.query_position + 1 - len(query.cue)]
    source = made.text["test"]
    windows = np.lib.stride_tricks.sliding_window_view(source, len(between))
    assert (windows == between).all(1).any()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"n_needles": 2, "n_queries": 3}, ["n_queries 3 is not between 1 and n_needles 2"]),
        ({"least": 1, "most": 9, "absent": 2.0}, ["least 1 and most 9", "absent 2.0"]),
        ({"depth": "deep"}, ["depth 'deep'"]),
        ({"length": 40}, ["raise it to"]),
        ({"length": 90_000}, ["fewer than"]),
    ],
)
def test_bad_options_are_named(options: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        task(**options)
    for part in parts:
        assert part in str(caught.value)
