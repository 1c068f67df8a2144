from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from groundthink.errors import TaskError
from groundthink.tasks.check import check_episode
from groundthink.tasks.copy import Copy
from groundthink.tasks.scoring import Predict, evaluate
from groundthink.tasks.selective_copy import SelectiveCopy
from tasks.worlds import VOCABULARY, leak, one_hot

TASKS = [Copy(VOCABULARY, n_copy=8), SelectiveCopy(VOCABULARY, n_copy=8, n_filler=24)]
every = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def copier(task: Copy, how: str, seed: int = 0) -> Predict:
    """Causal: says the `next` token, `any` of the string, or any of those that are `left`."""
    generator = np.random.default_rng(seed)

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.numpy(), said, strict=True):
            content = row[task.sources(row)].tolist()
            stop = row.tolist().index(VOCABULARY.query)
            for j in range(task.n_copy):
                left = content.copy()
                for copied in row[stop + 1 : stop + 1 + j].tolist():
                    left.remove(copied)
                out[stop + j] = {"next": content[j], "any": generator.choice(content), "left": generator.choice(left)}[
                    how
                ]
        return one_hot(said)

    return predict


@every
def test_a_copier_is_right_and_guessers_score_chance(task: Copy) -> None:
    right = evaluate(task, copier(task, "next"), n=30)
    assert right.exact.rate == right.by_token.rate == right.whole_episodes.rate == 1
    assert right.exact.n == 30 * task.n_copy
    chance = task.chance()
    assert chance.best == chance.shortcut > chance.in_context > 1 / 8
    for how, expected in (("any", chance.in_context), ("left", chance.shortcut)):
        found = evaluate(task, copier(task, how), n=150).exact
        # 1,200 tokens, within an episode nearly independent: standard deviation 0.014, four of them.
        assert abs(found.rate - expected) < 0.056


@every
def test_alignment(task: Copy) -> None:
    assert evaluate(task, leak, n=20).exact.rate == 1
    late = evaluate(task, lambda tokens: torch.roll(leak(tokens), 1, 1), n=50)
    assert late.exact.rate < 0.1  # right only where a token repeats: once in 64


@every
@pytest.mark.parametrize("n_copy", [1, 3, 16])
def test_as_many_are_copied_as_are_asked_for(task: Copy, n_copy: int) -> None:
    wanted = task.with_options(n_copy=n_copy)
    for episode in wanted.episodes(0, "train", 10):
        stop = episode.tokens.tolist().index(VOCABULARY.query)
        content = [t for t in episode.tokens[1:stop].tolist() if t in VOCABULARY.values]
        assert content == episode.tokens[stop + 1 :].tolist()
        assert len(content) == n_copy
        assert len(episode) == wanted.max_length


def test_places_are_scattered_over_the_filler() -> None:
    places = np.array([[q.revealed_at for q in e.queries] for e in TASKS[1].episodes(0, "train", 200)])
    assert places.min() == 1
    assert places.max() == 32
    assert (np.diff(places, axis=1) > 0).all()
    # Means of uniform order statistics; standard deviation of each mean below 0.4, five of them.
    assert np.abs(places.mean(0) - 33 * np.arange(1, 9) / 9).max() < 2


def test_a_wrong_copy_is_caught() -> None:
    task = TASKS[1]
    episode = next(task.episodes(0, "train", 1))
    first, second, *_ = episode.queries
    tokens, labels = episode.tokens.copy(), episode.labels.copy()
    for array in (tokens, labels):
        array[first.query_position + 1] = second.value[0]
    swapped = dataclasses.replace(first, value=second.value)
    with pytest.raises(TaskError, match="the rule gives"):
        check_episode(dataclasses.replace(episode, tokens=tokens, labels=labels, queries=(swapped,)), VOCABULARY)
