from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from groundthink.data.packing import IGNORE
from groundthink.errors import TaskError
from groundthink.tasks.check import check_episode
from groundthink.tasks.scoring import Predict, evaluate
from groundthink.tasks.task import Vocabulary
from groundthink.tasks.track import GROUPS, Track, elements, table
from tasks.worlds import leak, one_hot

WIDE = Vocabulary(n_keys=128, n_values=128)
ORDERS = {"Z2": 2, "Z5": 5, "S3": 6, "A5": 60, "S5": 120}


def says(answers: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(answers, WIDE.size).float()


def tracker(task: Track, *, forgets_after: int | None = None) -> Predict:
    """Causal: multiplies the elements so far, or the last few."""

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.numpy(), said, strict=True):
            for t in range(1, task.length + 1):
                start = 0 if forgets_after is None else max(0, t - forgets_after)
                out[t] = task.product(row[start : t + 1])[0][0]
        return says(said)

    return predict


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_groups(group: str) -> None:
    products = table(group)
    n = len(products)
    assert n == ORDERS[group] == len(set(elements(group)))
    everything = set(range(n))
    assert all(set(row.tolist()) == everything for row in (*products, *products.T))  # each element has an inverse
    assert (products[0] == np.arange(n)).all()
    assert (products[:, 0] == np.arange(n)).all()
    generator = np.random.default_rng(0)
    for a, b, c in generator.integers(0, n, size=(200, 3)).tolist():
        assert products[products[a, b], c] == products[a, products[b, c]]
    assert (products == products.T).all() == (group[0] == "Z")


def test_parity_is_the_parity_of_the_ones() -> None:
    task = Track(WIDE, group="Z2", length=30)
    for episode in task.episodes(0, "test", 20):
        ones = np.cumsum(episode.tokens[1:31] - WIDE.keys.start) % 2
        assert (episode.labels[2:32] == WIDE.values.start + ones).all()
        assert (episode.labels[:2] == IGNORE).all()


def test_products_are_not_in_the_input() -> None:
    for episode in Track(WIDE, group="S5", length=40).episodes(0, "train", 10):
        assert not set(episode.tokens.tolist()) & set(WIDE.values)


@pytest.mark.parametrize("group", GROUPS)
def test_a_tracker_is_right_and_guesses_score_chance(group: str) -> None:
    task = Track(WIDE, group=group, length=12)
    result = evaluate(task, tracker(task), n=20)
    assert result.exact.rate == result.whole_episodes.rate == 1
    assert list(result.by_kind) == ["1-1", "2-3", "4-7", "8-15"]
    assert task.chance().best == 1 / ORDERS[group]
    generator = torch.Generator().manual_seed(0)

    def guess(tokens: torch.Tensor) -> torch.Tensor:
        return says(WIDE.values.start + torch.randint(ORDERS[group], tokens.shape, generator=generator))

    blind = evaluate(task, guess, n=200)
    assert blind.exact.low <= task.chance().in_context <= blind.exact.high
    # A memory of four elements is right up to the fourth, then once in |G|: what it lacks is uniform, and
    # independent from one position to the next.
    short = evaluate(task, tracker(task, forgets_after=4), n=200)
    assert short.by_kind["2-3"].rate == 1
    far = short.by_kind["8-15"]
    assert far.low <= task.chance().best <= far.high


def test_a_leak_of_the_next_token_gains_nothing() -> None:
    task = Track(Vocabulary(), group="A5", length=20)
    assert evaluate(task, leak, n=20).exact.hits == 0
    assert evaluate(task, one_hot, n=20).exact.hits == 0


def test_wrong_products_are_caught() -> None:
    task = Track(WIDE, group="S3", length=10)
    episode = next(task.episodes(0, "train", 1))
    *before, query = episode.queries
    other = next(value for value in query.in_context_values if value != query.value)
    labels = episode.labels.copy()
    labels[query.query_position + 1] = other[0]
    lie = dataclasses.replace(query, value=other)
    with pytest.raises(TaskError, match="the rule gives"):
        check_episode(dataclasses.replace(episode, labels=labels, queries=(*before, lie)), WIDE)
    with pytest.raises(TaskError, match="not labelled"):
        check_episode(dataclasses.replace(episode, labels=labels), WIDE)
    fed = dataclasses.replace(query, fed_back=True)
    with pytest.raises(TaskError, match="shifted"):
        check_episode(dataclasses.replace(episode, queries=(*before, fed)), WIDE)


def test_order_matters_where_the_group_says_so() -> None:
    task = Track(WIDE, group="S3", length=2)
    products = {}
    for a, b in itertools.product(range(6), repeat=2):
        prefix = np.array([WIDE.bos, WIDE.keys.start + a, WIDE.keys.start + b])
        products[a, b] = task.product(prefix)[0][0] - WIDE.values.start
    assert any(products[a, b] != products[b, a] for a, b in products)
    assert all(products[a, b] == table("S3")[b, a] for a, b in products)
