from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from groundthink.errors import TaskError
from groundthink.records import to_json
from groundthink.tasks.facts import Facts
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle
from groundthink.tasks.scoring import evaluate
from groundthink.tasks.task import Task
from tasks.worlds import VOCABULARY, guess, leak, lookup, salient, text

RECALL = KvRecall(VOCABULARY, n_pairs=8, distance="fixed:20")


def test_an_oracle_is_right_always() -> None:
    result = evaluate(RECALL, lookup, n=200)
    assert result.exact.hits == result.exact.n == result.n_episodes == 200
    assert result.exact.low > 0.98
    assert result.confusion == {"correct": 200, "stale": 0, "other_in_context": 0, "absent": 0, "other": 0}
    assert (result.min_distance, result.max_distance) == (20, 34)
    assert result.digest == RECALL.digest
    absent = evaluate(RECALL.with_options(absent=0.5), lookup, n=200)
    assert absent.exact.rate == 1
    assert 60 < absent.by_distance["absent"].n < 140
    assert absent.false_recall is not None
    assert absent.false_recall.hits == 0
    assert absent.false_recall.n == absent.by_distance["absent"].n


def test_stored_values_said_of_absent_keys_are_false_recalls() -> None:
    task = RECALL.with_options(absent=0.5)
    result = evaluate(task, salient(task), n=200)
    assert result.false_recall is not None
    assert result.false_recall.hits == result.false_recall.n == result.by_distance["absent"].n
    # Other tokens are no recall: a guess in the whole vocabulary hits the 8 stored ones of 456 at times only.
    blind = evaluate(task, guess(), n=200).false_recall
    assert blind is not None
    assert blind.rate < 0.2
    assert evaluate(RECALL, salient(RECALL), n=20).false_recall is None


def test_a_window_is_right_within_it_and_says_absent_beyond() -> None:
    task = KvRecall(VOCABULARY, n_pairs=8, distance="uniform:4:60")
    result = evaluate(task, lambda tokens: lookup(tokens, window=30), n=300, edges=[31])
    assert result.by_distance["0-30"].rate == 1
    assert result.by_distance["31-"].rate == 0
    assert result.confusion["absent"] == result.by_distance["31-"].n
    assert sum(result.confusion.values()) == 300


def test_guessing_scores_chance() -> None:
    chance = RECALL.chance()
    blind = evaluate(RECALL, guess(), n=600)
    assert blind.exact.low <= chance.vocabulary <= blind.exact.high
    cunning = evaluate(RECALL, salient(RECALL), n=600)
    assert cunning.exact.low <= chance.in_context <= cunning.exact.high
    assert cunning.confusion["other_in_context"] + cunning.confusion["correct"] == 600
    assert chance.best == chance.in_context == 1 / 8


@pytest.mark.parametrize(
    "task",
    [
        RECALL.with_options(n_queries=4),
        Needle(VOCABULARY, text=text(), length=90, n_queries=2, value_length=4),
        Facts(VOCABULARY, n_facts=4, n_queries=3),
    ],
    ids=lambda t: t.name,
)
def test_all_tasks_score_alignment(task: Task) -> None:
    """A model that sees the next token is right everywhere; one that is a step late nowhere."""
    right = evaluate(task, leak, n=40)
    assert right.exact.rate == right.whole_episodes.rate == 1
    assert right.exact.n > right.n_episodes
    late = evaluate(task, lambda tokens: torch.roll(leak(tokens), 1, 1), n=40)
    assert late.exact.hits == 0


def test_every_token_of_a_value_counts() -> None:
    task = Needle(VOCABULARY, text=text(), length=90, value_length=3)

    def misses_the_last(tokens: torch.Tensor) -> torch.Tensor:
        logits = leak(tokens)
        logits[:, -2] = 0  # the answer ends the episode
        return logits

    assert evaluate(task, leak, n=20).exact.rate == 1
    assert evaluate(task, misses_the_last, n=20).exact.rate == 0


def test_batching_and_padding_change_nothing() -> None:
    task = KvRecall(VOCABULARY, n_pairs=6, distance="uniform:4:40")
    results = [
        evaluate(task, lambda t: lookup(t, window=25), n=50, batch_size=size, length=length)
        for size, length in ((64, None), (7, None), (1, None), (16, 120))
    ]
    assert len({to_json(result) for result in results}) == 1
    assert 0 < results[0].exact.hits < 50
    assert evaluate(task, lookup, n=50, seed=1).answers != evaluate(task, lookup, n=50).answers
    assert evaluate(task, lookup, n=50, split="valid").answers != evaluate(task, lookup, n=50).answers


def test_a_result_is_a_record() -> None:
    record = json.loads(to_json(evaluate(RECALL, lookup, n=5)))
    assert record["exact"]["n"] == 5
    assert record["chance"]["in_context"] == 1 / 8
    assert record["options"]["distance"] == "fixed:20"
    assert len(record["episode_hits"]) == 5


def test_counts_that_do_not_add_up_are_refused() -> None:
    result = evaluate(RECALL, lookup, n=5)
    with pytest.raises(AssertionError, match="do not add up"):
        dataclasses.replace(result, confusion={**result.confusion, "other": 1})
    with pytest.raises(AssertionError, match="do not add up"):
        dataclasses.replace(result, by_distance={})


def test_bad_models_and_requests() -> None:
    with pytest.raises(TaskError, match=r"logits have the shape .* predict|predict: logits"):
        evaluate(RECALL, lambda tokens: torch.zeros(len(tokens), 3, 9), n=4)
    with pytest.raises(TaskError, match="NaN"):
        evaluate(RECALL, lambda tokens: torch.full((*tokens.shape, 9), torch.nan), n=4)
    with pytest.raises(TaskError, match="does not fit into 20"):
        evaluate(RECALL, lookup, n=4, length=20)
    with pytest.raises(TaskError, match="at least 1"):
        evaluate(RECALL, lookup, n=0)
