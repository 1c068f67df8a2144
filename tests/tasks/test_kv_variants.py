from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.tasks.kv_fuzzy import KvFuzzy, draw_motifs, inside
from groundthink.tasks.kv_noise import KvNoise
from groundthink.tasks.scoring import Predict, evaluate
from groundthink.tasks.task import Task
from tasks.worlds import VOCABULARY, last_value, lookup, one_hot, salient

FUZZY = KvFuzzy(VOCABULARY, n_pairs=8, distance="fixed:12")
NOISE = KvNoise(VOCABULARY, n_pairs=16, noise=0.75, distance="fixed:12")
PLAIN = NOISE.with_options(marked=False)
few = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def motif_reader(tokens: torch.Tensor) -> torch.Tensor:
    """Causal: says the value that followed the whole motif."""
    said = torch.zeros_like(tokens)
    for row, out in zip(tokens.tolist(), said, strict=True):
        at = row.index(VOCABULARY.query)
        motif: list[int] = []
        stored: dict[tuple[int, ...], int] = {}
        for token in row[1:at]:
            if token in VOCABULARY.values:
                stored[tuple(motif)] = token
                motif = []
            else:
                motif.append(token)
        for t in range(at + 1, len(row)):
            out[t] = stored.get(tuple(row[at + 1 : t + 1]), 0)
    return one_hot(said)


def clean_value(tokens: torch.Tensor) -> torch.Tensor:
    """Says a value whose key is of the half that may be asked for."""
    generator = np.random.default_rng(0)
    said = torch.zeros_like(tokens)
    for row, out in zip(tokens.tolist(), said, strict=True):
        pairs = zip(row[1:33:2], row[2:33:2], strict=True)
        out[:] = int(generator.choice([value for key, value in pairs if key in VOCABULARY.keys[:32]]))
    return one_hot(said)


def test_readers_are_right() -> None:
    assert evaluate(FUZZY, motif_reader, n=100).exact.rate == 1
    for task in (NOISE, PLAIN):
        assert evaluate(task, lookup, n=100).exact.rate == 1
    # One token of a motif is not enough.
    assert evaluate(FUZZY, lookup, n=200).exact.high < 0.8


@pytest.mark.parametrize(
    ("task", "guess", "expected"),
    [
        (FUZZY, salient(FUZZY), 1 / 8),
        (FUZZY, last_value, 1 / 8),
        (NOISE, clean_value, 1 / 4),
        (PLAIN, salient(PLAIN), 1 / 16),
        (PLAIN, last_value, 1 / 16),
    ],
)
def test_guesses_score_chance(task: Task, guess: Predict, expected: float) -> None:
    assert task.chance().in_context == task.chance().best == expected
    blind = evaluate(task, guess, n=600)
    assert blind.exact.low <= expected <= blind.exact.high


@few
@given(n=st.integers(1, 12), longest=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_no_motif_lies_within_another(n: int, longest: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    motifs = draw_motifs(generator, list(range(2 * n)), generator.integers(1, longest + 1, size=n).tolist())
    assert len(motifs) == n
    assert max(map(len, motifs)) <= longest
    assert not any(inside(a, b) for a in motifs for b in motifs if a is not b)


def test_motifs_have_all_lengths_and_share_tokens() -> None:
    lengths, shared = set(), 0
    for episode in FUZZY.episodes(0, "train", 50):
        lengths |= {len(query.key) for query in episode.queries}
        body = episode.tokens[1 : episode.tokens.tolist().index(VOCABULARY.query)]
        keys = [t for t in body.tolist() if t in VOCABULARY.keys]
        shared += len(set(keys)) < len(keys)
    assert lengths == {1, 2, 3}
    assert shared > 40


def test_distractors_are_the_share_and_never_asked() -> None:
    lower = set(VOCABULARY.keys[:32])
    for episode in NOISE.episodes(0, "train", 100):
        keys = episode.tokens[1:33:2].tolist()
        assert sum(key not in lower for key in keys) == 12
        assert all(query.key[0] in lower for query in episode.queries)
    asked = {q.key[0] for e in PLAIN.episodes(0, "train", 300) for q in e.queries}
    assert asked - lower  # unmarked, any key may be asked for
