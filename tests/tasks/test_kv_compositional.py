from __future__ import annotations

import numpy as np
import pytest
import torch

from groundthink.tasks.kv_compositional import KvCompositional
from groundthink.tasks.scoring import Predict, evaluate
from tasks.worlds import VOCABULARY, last_value, one_hot, salient

TASK = KvCompositional(VOCABULARY, n_triplets=16, distance="fixed:12")


def by_parts(*parts: int, seed: int = 0) -> Predict:
    """Says the value of a random triplet that agrees with the key in these parts."""
    generator = np.random.default_rng(seed)

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.tolist(), said, strict=True):
            at = row.index(VOCABULARY.query)
            triplets = [row[i : i + 3] for i in range(1, 1 + 3 * TASK.n_triplets, 3)]
            fit = [t[2] for t in triplets if all(t[part] == row[at + 1 + part] for part in parts)]
            out[at + 2] = int(generator.choice(fit))
        return one_hot(said)

    return predict


def test_both_parts_are_enough_and_one_is_not() -> None:
    assert evaluate(TASK, by_parts(0, 1), n=100).exact.rate == 1
    chance = TASK.chance()
    assert (chance.in_context, chance.shortcut, chance.best) == (1 / 16, 1 / 4, 1 / 4)
    for part in (0, 1):
        half = evaluate(TASK, by_parts(part), n=600)
        assert half.exact.low <= chance.shortcut <= half.exact.high


@pytest.mark.parametrize("guess", [salient(TASK), last_value, by_parts()])
def test_guesses_among_the_values_score_chance(guess: Predict) -> None:
    blind = evaluate(TASK, guess, n=600)
    assert blind.exact.low <= TASK.chance().in_context <= blind.exact.high


def test_the_keys_are_a_whole_grid_in_any_order() -> None:
    orders = set()
    for episode in TASK.episodes(0, "train", 30):
        body = episode.tokens[1:49].reshape(16, 3)
        first, second = set(body[:, 0].tolist()), set(body[:, 1].tolist())
        assert {(a, b) for a, b, _ in body.tolist()} == {(a, b) for a in first for b in second}
        assert len(first) == len(second) == 4
        assert max(first) < VOCABULARY.keys.start + 32 <= min(second)
        assert len(set(body[:, 2].tolist())) == 16
        orders.add(tuple(np.unique(body[:, 0], return_inverse=True)[1].tolist()))
    assert len(orders) == 30
