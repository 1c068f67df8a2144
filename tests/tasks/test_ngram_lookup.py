from __future__ import annotations

import numpy as np
import pytest
import torch

from groundthink.errors import TaskError
from groundthink.tasks.check import find
from groundthink.tasks.ngram_lookup import NgramLookup
from groundthink.tasks.scoring import Predict, evaluate
from tasks.worlds import VOCABULARY, one_hot

TASK = NgramLookup(VOCABULARY, length=32, n=2, alphabet=16, distance="fixed:12")


def matcher(task: NgramLookup, n: int, seed: int = 0) -> Predict:
    """Causal: says a token of the string that follows the key's last n tokens, any token for n = 0."""
    generator = np.random.default_rng(seed)

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.numpy(), said, strict=True):
            at = row.tolist().index(VOCABULARY.query) + task.n
            string = row[1 : 1 + task.length]
            follow = string.tolist()
            if n:
                follow = [int(string[i + n]) for i in find(string[:-1], row[at + 1 - n : at + 1].tolist())]
            out[at] = int(generator.choice(follow))
        return one_hot(said)

    return predict


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_of_the_ngram_is_enough(n: int) -> None:
    task = TASK.with_options(n=n, alphabet=64 if n == 1 else 16)
    assert evaluate(task, matcher(task, n), n=100).exact.rate == 1


@pytest.mark.parametrize("n", [2, 3])
def test_guessers_score_chance(n: int) -> None:
    task = TASK.with_options(n=n)
    chance = task.chance()
    for known, expected in ((0, chance.in_context), (1, chance.shortcut)):
        found = evaluate(task, matcher(task, known), n=1500).exact
        # Standard deviation 0.013 at most, four of them; the approximation named in `chance` is below 0.01.
        assert abs(found.rate - expected) < 0.06
    assert chance.best == chance.shortcut
    assert NgramLookup(VOCABULARY, n=1, alphabet=64).chance().shortcut == 0


def test_the_asked_ngram_stands_in_the_string_once() -> None:
    for episode in TASK.with_options(n_queries=4).episodes(0, "train", 50):
        string = episode.tokens[:33]
        keys = [query.key for query in episode.queries]
        assert len(set(keys)) == 4
        assert all(len(find(string, key)) == 1 for key in keys)
        assert episode.queries[0].query_position == 32 + 12


def test_a_string_without_such_ngrams_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # 15 tokens of 63, no two neighbours, that stand there once: some strings have them, not the first of every episode.
    task = NgramLookup(VOCABULARY, length=64, n=1, alphabet=64, n_queries=15)
    assert len(next(task.episodes(0, "train", 1)).queries) == 15
    monkeypatch.setattr("groundthink.tasks.ngram_lookup._TRIES", 1)
    with pytest.raises(TaskError, match="no string of 64 with 15 1-grams"):
        list(task.episodes(0, "train", 20))
