"""What all tasks promise, and a checker that is shown to see faults."""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink import tasks
from groundthink.data.packing import IGNORE, check_batch
from groundthink.errors import ConfigError, TaskError
from groundthink.tasks.check import check_episode, check_splits, find
from groundthink.tasks.copy import Copy
from groundthink.tasks.echo import Echo
from groundthink.tasks.facts import Facts
from groundthink.tasks.kv_capacity import KvCapacity
from groundthink.tasks.kv_compositional import KvCompositional
from groundthink.tasks.kv_fuzzy import KvFuzzy
from groundthink.tasks.kv_noise import KvNoise
from groundthink.tasks.kv_overwrite import KvOverwrite
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.marker_needle import MarkerNeedle
from groundthink.tasks.needle import Needle
from groundthink.tasks.ngram_lookup import NgramLookup
from groundthink.tasks.registry import TASKS, make_task
from groundthink.tasks.selective_copy import SelectiveCopy
from groundthink.tasks.successor import Successor
from groundthink.tasks.task import Episode, Task, Vocabulary
from groundthink.tasks.text_strings import TextStrings
from groundthink.tasks.track import Track
from tasks.worlds import VOCABULARY, text

TEXT = text()
EXAMPLES: list[Task] = [
    KvRecall(VOCABULARY, n_pairs=5, n_queries=3, distance="uniform:4:20", absent=0.3),
    KvRecall(VOCABULARY, n_pairs=3, n_queries=8, distance="fixed:2", loss="all", unique_values=False),
    Needle(VOCABULARY, text=TEXT, length=90, n_needles=4, n_queries=2, value_length=3),
    Needle(VOCABULARY, text=TEXT, length=90, marked=False, key_length=2, alphabet="text", loss="language"),
    Facts(VOCABULARY, n_facts=4, n_queries=2),
    Facts(VOCABULARY, text=TEXT, position="middle", filler_tokens=60),
    KvOverwrite(VOCABULARY, n_pairs=5, n_rebound=3, times=2, n_queries=4, distance="uniform:4:20"),
    KvCapacity(VOCABULARY, n_min=3, n_max=13, n_queries=3, distance="uniform:4:20"),
    KvCompositional(VOCABULARY, n_triplets=9, n_queries=4, distance="beyond:5:9"),
    KvFuzzy(VOCABULARY, n_pairs=5, alphabet=10, n_queries=4, distance="fixed:4"),
    KvFuzzy(VOCABULARY, n_pairs=1, alphabet=2, distance="uniform:9:19"),
    KvNoise(VOCABULARY, n_pairs=9, n_queries=4, distance="uniform:2:9"),
    KvNoise(VOCABULARY, n_pairs=5, noise=0.4, marked=False, distance="beyond:9"),
    SelectiveCopy(VOCABULARY, n_copy=7, n_filler=20),
    Copy(VOCABULARY, n_copy=9),
    NgramLookup(VOCABULARY, length=20, n_queries=3, distance="uniform:4:9"),
    NgramLookup(VOCABULARY, length=30, n=1, alphabet=50, n_queries=4, distance="beyond:4"),
    Track(VOCABULARY, group="A5", length=20),
    MarkerNeedle(VOCABULARY, length=40, keyed=False, ids="text"),
    MarkerNeedle(VOCABULARY, length=60, n_needles=5, n_queries=3, distance="uniform:4:20"),
    MarkerNeedle(VOCABULARY, length=60, n_needles=3, noise="filler", held_out=0.0, distance="beyond:9"),
    Echo(VOCABULARY, length=30, n_items=6, n_queries=4),
    Successor(VOCABULARY, length=20),
    TextStrings(VOCABULARY, text=TEXT, length=150, n_needles=3, n_queries=2, absent=0.3),
]
every_task = pytest.mark.parametrize("task", EXAMPLES, ids=lambda t: t.name)
few = settings(deadline=None, max_examples=25, derandomize=True, database=None)


@every_task
@few
@given(seed=st.integers(0, 2**40), split=st.sampled_from(["train", "valid", "test"]))
def test_episodes_are_valid_and_repeatable(task: Task, seed: int, split: str) -> None:
    first, second = task.episodes(seed, split, 2)
    check_episode(first, task.vocabulary)
    check_episode(second, task.vocabulary)
    assert len(first) <= task.max_length
    again = next(task.episodes(seed, split, 1, start=1))  # random access
    assert (again.tokens == second.tokens).all()
    assert again.queries == second.queries


@every_task
@few
@given(step=st.integers(0, 10**6))
def test_batches_are_functions_of_seed_split_and_step(task: Task, step: int) -> None:
    length = 2 * task.max_length + 3
    one = task.batch(7, "train", step, 3, length)
    if task.fed_back:
        check_batch(one)
    assert one.tokens.shape == (3, length)
    assert (one.tokens == task.batch(7, "train", step, 3, length).tokens).all()
    for seed, split, other in ((8, "train", step), (7, "valid", step), (7, "train", step + 1)):
        assert not (one.tokens == task.batch(seed, split, other, 3, length).tokens).all()
    # Each row begins with an episode, and no document reaches into the next.
    assert (one.tokens[:, 0] == VOCABULARY.bos).all()
    starts = (one.tokens == VOCABULARY.bos).int().cumsum(1) - 1
    padding = one.tokens == VOCABULARY.pad
    assert (one.documents[~padding] == starts[~padding]).all()
    assert (one.labels[padding] == IGNORE).all()
    assert one.documents[:, -1].max() >= 1


@every_task
def test_splits_are_apart(task: Task) -> None:
    check_splits(task)


class Leaky(KvRecall):
    """Forgets that the test is another split."""

    def generator(self, split: str, seed: int, index: int, *, purpose: int) -> np.random.Generator:
        del split
        return super().generator("train", seed, index, purpose=purpose)


def test_a_leaking_split_is_caught() -> None:
    with pytest.raises(TaskError, match="occurs in train too"):
        check_splits(Leaky(VOCABULARY))


def changed(episode: Episode, index: int, token: int) -> Episode:
    tokens = episode.tokens.copy()
    tokens[index] = token
    return dataclasses.replace(episode, tokens=tokens)


def with_query(episode: Episode, **fields: Any) -> Episode:
    first, *rest = episode.queries
    return dataclasses.replace(episode, queries=(dataclasses.replace(first, **fields), *rest))


@every_task
def test_shifted_labels_are_caught(task: Task) -> None:
    episode = next(task.episodes(0, "train", 1))
    for shift in (1, -1):
        with pytest.raises(TaskError, match=r"shifted|labelled"):
            check_episode(dataclasses.replace(episode, labels=np.roll(episode.labels, shift)), VOCABULARY)


@every_task
def test_wrong_claims_about_a_query_are_caught(task: Task) -> None:
    episode = next(e for e in task.episodes(0, "train", 50) if e.queries[0].distance is not None)
    query = episode.queries[0]
    assert query.revealed_at is not None
    at = query.query_position
    for fault, message in (
        (with_query(episode, revealed_at=query.revealed_at + 1), "revealed at"),
        (with_query(episode, query_position=at - 1), r"cue does not stand|shifted"),
        (with_query(episode, in_context_values=()), "not among"),
        (changed(episode, at + 1, VOCABULARY.pad), r"shifted|follow|cue does not stand"),
        (dataclasses.replace(episode, queries=()), "nothing is asked"),
        (dataclasses.replace(episode, queries=episode.queries[::-1] * 2), "order"),
        (changed(episode, 1, VOCABULARY.size), "outside"),
        (dataclasses.replace(episode, labels=np.full(len(episode), IGNORE)), "not labelled"),
        (dataclasses.replace(episode, labels=episode.tokens), "first token"),
    ):
        with pytest.raises(TaskError, match=message):
            check_episode(fault, VOCABULARY)


def test_live_keys_in_the_filler_are_caught() -> None:
    task = KvRecall(VOCABULARY, n_pairs=4, distance="fixed:12")
    episode = next(task.episodes(0, "train", 1))
    with pytest.raises(TaskError, match="live key at 11"):
        check_episode(changed(episode, 11, episode.queries[0].key[0]), VOCABULARY)
    absent = task.with_options(absent=1.0)
    episode = next(absent.episodes(0, "train", 1))
    with pytest.raises(TaskError, match="absent key is there"):
        check_episode(changed(episode, 11, episode.queries[0].key[0]), VOCABULARY)


def test_a_contradicting_fact_is_caught() -> None:
    task = Facts(VOCABULARY, n_facts=2, position="start")
    episode = next(task.episodes(0, "train", 1))
    query = episode.queries[0]
    rival = next(v for v in query.in_context_values if v != query.value)
    lie = (*query.key, *rival, *query.tail)
    where = query.revealed_at + 5 if query.revealed_at else 0
    tokens = np.insert(episode.tokens, where, lie)
    labels = np.insert(episode.labels, where, [IGNORE] * len(lie))
    moved = dataclasses.replace(query, query_position=query.query_position + len(lie))
    with pytest.raises(TaskError, match="another statement"):
        check_episode(Episode(tokens, labels, (moved,)), VOCABULARY)


def test_find() -> None:
    tokens = np.array([1, 1, 1, 2, 1, 1])
    assert find(tokens, (1, 1)) == [0, 1, 4]
    assert find(tokens, ()) == find(tokens, range(9)) == []


def test_digests_tell_content_apart() -> None:
    digests = {task.digest for task in EXAMPLES}
    assert len(digests) == len(EXAMPLES)
    same = Needle(VOCABULARY, text=text(), length=90, n_needles=4, n_queries=2, value_length=3)
    assert same.digest == EXAMPLES[2].digest
    assert dataclasses.replace(same, text=text(seed=1)).digest != same.digest
    assert dataclasses.replace(EXAMPLES[0], vocabulary=Vocabulary(n_filler=65)).digest != EXAMPLES[0].digest


def test_vocabulary_ranges_are_disjoint_and_whole() -> None:
    v = Vocabulary(text=10, n_specials=5, n_keys=3, n_values=4, n_filler=2)
    specials = [v.bos, v.query, v.absent, v.marker, v.pad]
    assert [*range(v.text), *specials, *v.keys, *v.values, *v.filler] == list(range(v.size))
    with pytest.raises(ConfigError, match=r"n_specials is 4.*n_keys is 0"):
        Vocabulary(n_specials=4, n_keys=0)


def test_registry() -> None:
    assert set(TASKS) == {task.name for task in EXAMPLES}
    assert all(name == kind.name for name, kind in TASKS.items())
    task = make_task("kv_recall", {"n_pairs": 8}, VOCABULARY, text=TEXT)
    assert isinstance(task, KvRecall)
    assert task.with_options(n_pairs=4).options == {**task.options, "n_pairs": 4}
    assert make_task("needle", {"length": 90}, VOCABULARY, text=TEXT).max_length == 90
    assert make_task("facts", None, VOCABULARY).name == "facts"
    assert tasks.make_task is make_task
    assert all(hasattr(tasks, name) for name in tasks.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tasks.nothing


@pytest.mark.parametrize("name", sorted({*TASKS, "ar_hits"} - {"needle", "facts", "text_strings"}))
def test_every_task_file_shows_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"groundthink.tasks.{name}", raising=False)
    runpy.run_module(f"groundthink.tasks.{name}", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("recall", {}, ["no task 'recall'", "kv_recall"]),
        ("kv_recall", {"pairs": 8, "gap": 3, "loss": "some"}, ["gap, pairs", "loss 'some'", "n_pairs"]),
        ("kv_recall", {"n_pairs": 65, "distance": "near"}, ["more than 64 keys", "64 values", "'near'"]),
        ("kv_recall", {"n_pairs": "16", "absent": True}, ["n_pairs is '16', not int", "absent is True"]),
        ("kv_recall", {"distance": "beyond:9", "n_queries": 17}, ["beyond:R"]),
        ("kv_recall", {"distance": "fixed:1"}, ["below 2"]),
        ("kv_recall", {"distance": "uniform:9:4"}, ["ends before"]),
        ("kv_recall", {"n_queries": 0, "absent": 1.5}, ["at least 1", "no share"]),
        ("needle", {"length": 16}, ["no room"]),
        ("needle", {"n_queries": 5}, ["n_queries 5"]),
        ("needle", {"depth": "at:2"}, ["depth 'at:2'"]),
        ("needle", {"depth": "beyond:x", "length": 9000}, ["beyond:x", "text of train has 3000"]),
        ("needle", {"depth": "at:0.5", "n_queries": 2}, ["one asked needle"]),
        ("needle", {"value_length": 5, "alphabet": "x", "loss": "y"}, ["1 to 4", "own or text", "language"]),
        ("needle", {"n_needles": 65, "length": 1000}, ["64 ids give too few keys"]),
        ("facts", {"n_facts": 9, "position": "top", "filler_tokens": -1}, ["1 to 8", "'top'", "negative"]),
        ("facts", {"n_queries": 4}, ["n_queries 4"]),
        ("kv_overwrite", {"n_rebound": 17, "times": 0, "n_queries": 0}, ["n_rebound 17", "times 0", "n_queries 0"]),
        ("kv_overwrite", {"n_pairs": 65, "distance": "fixed:1"}, ["more than 64 keys", "old and new", "below 2"]),
        ("kv_capacity", {"n_min": 9, "n_max": 8, "distance": "x"}, ["no sweep", "'x' is no distance"]),
        ("kv_capacity", {"n_min": 2, "n_max": 70, "n_queries": 3}, ["64 keys", "64 values", "n_queries 3"]),
        ("kv_compositional", {"n_triplets": 8, "distance": "fixed:2"}, ["no square", "below the 3 tokens"]),
        ("kv_compositional", {"n_triplets": 1, "n_queries": 2}, ["no square", "n_queries 2"]),
        ("kv_compositional", {"n_triplets": 1225}, ["35 parts of each kind", "more than 64 values"]),
        ("kv_fuzzy", {"n_pairs": 9, "longest_motif": 4}, ["not 1 to 3", "2 n_pairs, 18"]),
        ("kv_fuzzy", {"n_pairs": 0, "distance": "fixed:3"}, ["n_pairs 0", "below the 4 tokens", "n_queries 1"]),
        ("kv_fuzzy", {"n_pairs": 65, "alphabet": 130}, ["and 64 keys", "more than 64 values"]),
        ("kv_noise", {"noise": 0.99, "distance": "fixed:1"}, ["leaves none", "below 2"]),
        ("kv_noise", {"n_pairs": 80, "n_queries": 41}, ["40 marked", "than 64 keys", "64 values", "n_queries 41"]),
        ("copy", {"n_copy": 0}, ["n_copy 0"]),
        ("selective_copy", {"n_copy": 0, "n_filler": -1}, ["n_copy 0", "n_filler -1"]),
        ("ngram_lookup", {"n": 5, "alphabet": 65, "distance": "fixed:5"}, ["not 1 to 4", "64 values", "6 tokens"]),
        ("ngram_lookup", {"n": 1, "alphabet": 4, "n_queries": 9}, ["at most the 4", "n_queries 9 is not between"]),
        ("marker_needle", {"n_needles": 2, "keyed": False, "n_queries": 3}, ["n_queries 3", "no one answer"]),
        ("marker_needle", {"ids": "x", "noise": "filler", "held_out": 0.1}, ["ids 'x'", "training never shows"]),
        ("marker_needle", {"length": 8}, ["raise it to 10"]),
        ("marker_needle", {"length": 20, "distance": "fixed:40"}, ["raise length to 45"]),
        ("marker_needle", {"distance": "near", "held_out": 1.0}, ["held_out 1.0"]),
        ("marker_needle", {"n_needles": 8}, ["64 ids leave test too few for n_needles 8"]),
        ("echo", {"n_items": 3, "n_queries": 4, "length": 3}, ["more than n_items 3", "raise it to 4"]),
        ("echo", {"absent": 2.0, "n_items": 64, "length": 80}, ["no share", "more than 64 keys"]),
        ("successor", {"n_symbols": 1, "follow": 1.0, "length": 2}, ["n_symbols 1", "follow 1.0", "raise it to 8"]),
        ("track", {"group": "Z3", "length": 0}, ["'Z3' is not one of", "length 0"]),
        ("track", {"group": "S5"}, ["120 elements, vocabulary.n_keys is 64", "vocabulary.n_values is 64"]),
    ],
)
def test_bad_options_are_refused_all_at_once(name: str, options: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(name, options, VOCABULARY, text=TEXT)
    for message in messages:
        assert message in str(caught.value)


def test_bad_requests() -> None:
    task = EXAMPLES[0]
    with pytest.raises(TaskError, match="does not fit into rows of 20"):
        task.batch(0, "train", 0, 2, 20)
    with pytest.raises(TaskError, match="no split 'dev'"):
        task.batch(0, "dev", 0, 2, 200)
    with pytest.raises(TaskError, match="start at 0"):
        task.batch(-1, "train", 0, 2, 200)
    with pytest.raises(ConfigError, match="unknown option gap"):
        task.with_options(gap=3)
    with pytest.raises(ConfigError, match="text of train"):
        make_task("needle", {}, VOCABULARY)
    with pytest.raises(ConfigError, match="tokenizer has 256 ids"):
        make_task("facts", {}, Vocabulary(text=100))


def test_a_task_file_shows_an_example() -> None:
    command = [sys.executable, "-W", "error", "-m", "groundthink.tasks.kv_recall"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("tokens BOS")
    assert shown.stderr == ""
