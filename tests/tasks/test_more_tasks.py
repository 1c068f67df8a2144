"""Marker needles, echo and the successor language: solvers, chance levels, and answers that do not leak."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.tasks.check import check_episode, find
from groundthink.tasks.echo import Echo
from groundthink.tasks.marker_needle import MarkerNeedle
from groundthink.tasks.scoring import evaluate
from groundthink.tasks.successor import Successor, gap_to_entropy
from groundthink.tasks.task import Vocabulary
from tasks.worlds import VOCABULARY, guess, one_hot

NEEDLES = [
    MarkerNeedle(VOCABULARY, length=60, keyed=False),
    MarkerNeedle(VOCABULARY, length=80, n_needles=5, n_queries=2),
    MarkerNeedle(VOCABULARY, length=80, n_needles=5, noise="filler", held_out=0.0, distance="uniform:2:50"),
]


def behind_marker(tokens: Tensor) -> Tensor:
    """Causal: after a cue, the token that stood behind MARKER and the cue's key; with no key, behind MARKER."""
    v, said = VOCABULARY, torch.zeros_like(tokens)
    for row, out in zip(tokens.tolist(), said, strict=True):
        seen: dict[int, int] = {}
        for t, token in enumerate(row):
            if t > 1 and row[t - 2] == v.marker:
                seen[row[t - 1]] = token
            if t > 0 and row[t - 1] == v.marker:
                seen[v.marker] = token
            out[t] = seen.get(v.marker if token == v.query else token, 0)
    return one_hot(said)


def without_needles(tokens: Tensor) -> Tensor:
    """What `behind_marker` says where the ids behind the markers are hidden: filler in their place."""
    hidden = tokens.clone()
    marks = (tokens == VOCABULARY.marker).nonzero()
    for shift in (1, 2):
        for row, at in marks.tolist():
            if tokens[row, at + shift] not in VOCABULARY.keys:
                hidden[row, at + shift] = VOCABULARY.filler.start
    return behind_marker(hidden)


@pytest.mark.parametrize("task", NEEDLES, ids=["one", "keyed", "filler"])
def test_a_solver_is_right_and_without_the_needles_nobody_is(task: MarkerNeedle) -> None:
    assert evaluate(task, behind_marker, n=100).exact.rate == 1
    assert evaluate(task, without_needles, n=100).exact.rate == 0
    blind = evaluate(task, guess(), n=300).exact
    assert blind.low <= task.chance().vocabulary <= blind.high


def test_a_guess_among_the_needles_scores_chance() -> None:
    task = NEEDLES[1].with_options(n_queries=1)
    generator = np.random.default_rng(0)

    def salient(tokens: Tensor) -> Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.numpy(), said, strict=True):
            marks = np.flatnonzero(row == VOCABULARY.marker)
            out[:] = int(row[generator.choice(marks) + 2])
        return one_hot(said)

    result = evaluate(task, salient, n=400)
    assert result.exact.low <= task.chance().in_context == 1 / 5 <= result.exact.high
    assert result.confusion["correct"] + result.confusion["other_in_context"] == 400


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(
    length=st.integers(30, 90),
    n=st.integers(1, 5),
    m=st.integers(1, 5),
    d=st.integers(2, 80),
    seed=st.integers(0, 10**6),
)
def test_lengths_and_distances_are_exact(length: int, n: int, m: int, d: int, seed: int) -> None:
    m = min(n, m)
    room = length - 1 - (n + m) * 3
    if room < 3 or d > room + 2 + (n - m) * 3:
        return
    task = MarkerNeedle(VOCABULARY, length=length, n_needles=n, n_queries=m, distance=f"fixed:{d}")
    for episode in task.episodes(seed, "train", 3):
        assert len(episode) == length
        check_episode(episode, VOCABULARY)
        cue = episode.queries[0].query_position
        assert min(cue - (q.revealed_at or 0) for q in episode.queries) == d


def test_test_ids_are_never_needles_in_training_but_occur_as_noise() -> None:
    task = MarkerNeedle(VOCABULARY, length=60, held_out=0.2)
    ids = {split: set() for split in ("train", "valid", "test")}
    noise: set[int] = set()
    for split, found in ids.items():
        for episode in task.episodes(0, split, 200):
            found.update(q.value[0] for q in episode.queries)
            if split == "train":
                noise.update(episode.tokens.tolist())
    assert len(ids["test"]) == math.ceil(0.2 * 64)
    assert not ids["test"] & (ids["train"] | ids["valid"])
    assert ids["test"] <= noise
    whole = Vocabulary(text=0, n_values=50_257)
    first = next(MarkerNeedle(whole, length=256).episodes(0, "test", 1))
    assert len(first) == 256
    assert first.queries[0].value[0] in whole.values


def test_decoys_may_come_last() -> None:
    """Were the asked needle always the last one, recency would find it."""
    task = MarkerNeedle(VOCABULARY, length=60, n_needles=3, distance="fixed:20")
    last = [
        max(find(e.tokens, (VOCABULARY.marker,))) + 2 == e.queries[0].revealed_at for e in task.episodes(0, "test", 90)
    ]
    assert 10 < sum(last) < 60


def seen_before(tokens: Tensor) -> Tensor:
    """The token itself if it was there before, else ABSENT."""
    said = torch.full_like(tokens, VOCABULARY.absent)
    for row, out in zip(tokens.tolist(), said, strict=True):
        for t, token in enumerate(row):
            if token in row[:t]:
                out[t] = token
    return one_hot(said)


def test_echo_needs_to_know_what_was_there() -> None:
    task = Echo(VOCABULARY, length=40, n_items=6)
    result = evaluate(task, seen_before, n=200)
    assert result.exact.rate == 1
    assert set(result.by_kind) == {"absent", "echo"}
    parrot = evaluate(task, one_hot, n=400).exact  # says the cue again, whatever was there
    assert parrot.low <= task.chance().in_context == 0.5 <= parrot.high
    absent = evaluate(task, lambda t: one_hot(torch.full_like(t, VOCABULARY.absent)), n=400).exact
    assert absent.low <= 0.5 <= absent.high


def test_an_echo_of_what_was_not_there_is_caught() -> None:
    task = Echo(VOCABULARY, absent=1.0)
    episode = next(task.episodes(0, "train", 1))
    episode.tokens[5] = episode.queries[0].key[0]
    with pytest.raises(TaskError, match="absent key is there"):
        check_episode(episode, VOCABULARY)


def language(task: Successor, follow: float) -> object:
    """The exact distribution of a successor language with this p."""

    def predict(tokens: Tensor) -> Tensor:
        n, start = task.n_symbols or VOCABULARY.n_values, VOCABULARY.values.start
        after = start + (tokens - start + 1) % n
        probability = torch.full((*tokens.shape, VOCABULARY.size), 1e-30)
        probability[..., start : start + n] = (1 - follow) / n
        return (probability + follow * one_hot(after)).log()

    return predict


def test_the_best_model_pays_the_entropy_and_a_worse_one_more() -> None:
    task = Successor(VOCABULARY, n_symbols=20, length=64)
    best = gap_to_entropy(task, language(task, 0.7), n=300)
    assert best.low <= task.entropy <= best.high
    assert best.high - best.low < 0.1
    for wrong in (0.3, 0.95):  # the cross entropy is the entropy and a divergence above 0
        assert gap_to_entropy(task, language(task, wrong), n=100).low > task.entropy
    # A leak: only one that sees the next token can be below.
    leak = gap_to_entropy(task, lambda tokens: 9 * one_hot(torch.roll(tokens, -1, 1)), n=20)
    assert leak.high < task.entropy
    assert evaluate(task, language(task, 0.7), n=50).exact.rate == 1
    with pytest.raises(TaskError, match="no interval"):
        gap_to_entropy(task, one_hot, n=1)


def test_the_entropy_of_the_source_is_a_perplexity_of_14() -> None:
    task = Successor(Vocabulary(n_values=900))
    # q = 0.7 + 0.3/900, 899 others of 0.3/900 each: H = 2.6486 nats (by hand, four places).
    assert task.entropy == pytest.approx(2.6486, abs=5e-4)
    assert task.optimal_perplexity == pytest.approx(14.1, abs=0.05)
    drawn = next(Successor(VOCABULARY, n_symbols=4, length=4000).episodes(0, "train", 1)).tokens[1:]
    start = VOCABULARY.values.start
    follows = np.mean((drawn[1:] - start) == (drawn[:-1] - start + 1) % 4)
    assert follows == pytest.approx(0.7 + 0.3 / 4, abs=0.03)  # four standard errors of sqrt(0.775 0.225 / 4000)
