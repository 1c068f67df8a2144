from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.packing import IGNORE
from groundthink.errors import TaskError
from groundthink.tasks.check import check_episode
from groundthink.tasks.kv_recall import DistanceLaw, KvRecall
from tasks.worlds import VOCABULARY

few = settings(deadline=None, max_examples=40, derandomize=True, database=None)
sizes = {"pairs": st.integers(1, 12), "queries": st.integers(1, 12), "seed": st.integers(0, 10**9)}


def distances(task: KvRecall, seed: int, n: int = 5) -> list[list[int]]:
    return [
        [query.distance for query in episode.queries if query.distance is not None]
        for episode in task.episodes(seed, "test", n)
    ]


@few
@given(d=st.integers(2, 60), **sizes)
def test_fixed_is_the_least_distance_and_is_reached(d: int, pairs: int, queries: int, seed: int) -> None:
    task = KvRecall(VOCABULARY, n_pairs=pairs, n_queries=min(pairs, queries), distance=f"fixed:{d}")
    for episode in task.episodes(seed, "test", 5):
        assert len(episode) == task.max_length
        assert all(query.distance >= d for query in episode.queries)
        assert episode.queries[0].query_position - 2 * pairs == d  # the last pair's value stands at 2 N


@few
@given(r=st.integers(1, 60), slack=st.integers(0, 9), **sizes)
def test_beyond_keeps_every_query_out_of_the_horizon(r: int, slack: int, pairs: int, queries: int, seed: int) -> None:
    task = KvRecall(VOCABULARY, n_pairs=pairs, n_queries=min(pairs, queries), distance=f"beyond:{r}:{slack}")
    assert all(d > r for found in distances(task, seed) for d in found)
    single = KvRecall(VOCABULARY, n_pairs=pairs, distance=f"beyond:{r}")
    found = [d for one in distances(single, seed, 200) for d in one]
    assert min(found) == r + 1 or pairs > 8  # with few pairs, 200 episodes ask for the last one
    assert max(found) <= r + 1 + 2 * (pairs - 1)


def test_uniform_reaches_both_ends() -> None:
    task = KvRecall(VOCABULARY, n_pairs=1, distance="uniform:4:9")
    assert {found[0] for found in distances(task, 0, 200)} == set(range(4, 10))
    assert DistanceLaw.parse("uniform:4:9") == DistanceLaw(4, 9)


def test_repeated_keys_count_from_the_answer_before() -> None:
    task = KvRecall(VOCABULARY, n_pairs=1, n_queries=3, distance="fixed:30")
    assert distances(task, 0, 1) == [[30, 2, 2]]
    task = KvRecall(VOCABULARY, n_pairs=2, n_queries=4, distance="fixed:30")
    for episode in task.episodes(0, "train", 20):
        check_episode(episode, VOCABULARY)
        assert {q.key for q in episode.queries[:2]} == {q.key for q in episode.queries[2:]}
        assert max(q.distance for q in episode.queries[2:]) <= 11


def test_ranges_shares_and_order() -> None:
    task = KvRecall(VOCABULARY, n_pairs=8, n_queries=8, absent=0.25, distance="fixed:20")
    slots, absent, keys, values = [], 0, set(), set()
    for episode in task.episodes(0, "train", 300):
        body = episode.tokens[1:17]
        filler = episode.tokens[17:35]
        assert len(set(body[::2])) == len(set(body[1::2])) == 8
        assert ((filler >= VOCABULARY.filler.start) & (filler < VOCABULARY.filler.stop)).all()
        keys |= set(body[::2].tolist())
        values |= set(body[1::2].tolist())
        absent += sum(query.revealed_at is None for query in episode.queries)
        slots.append(episode.queries[0].revealed_at)
    assert keys == set(VOCABULARY.keys)
    assert values == set(VOCABULARY.values)
    assert {slot for slot in slots if slot is not None} == {2 * i + 2 for i in range(8)}  # shuffled
    # 2,400 draws with p = 0.25: standard deviation 21, five of them on each side.
    assert abs(absent - 600) < 106


def test_loss_all_labels_every_token_but_the_first() -> None:
    episode = next(KvRecall(VOCABULARY, loss="all").episodes(0, "train", 1))
    assert episode.labels[0] == IGNORE
    assert (episode.labels[1:] == episode.tokens[1:]).all()
    plain = next(KvRecall(VOCABULARY).episodes(0, "train", 1))
    assert (plain.labels != IGNORE).sum() == 1


def test_chance_in_context_is_exact() -> None:
    assert KvRecall(VOCABULARY, n_pairs=4).chance().in_context == 1 / 4
    assert KvRecall(VOCABULARY, n_pairs=4, absent=0.5).chance().in_context == 1 / 2
    # A slot at random, values with replacement: count instead of trusting the formula.
    task = KvRecall(VOCABULARY, n_pairs=4, unique_values=False)
    generator = np.random.default_rng(0)
    hits = [
        e.queries[0].in_context_values[generator.integers(4)] == e.queries[0].value
        for e in task.episodes(0, "test", 3000)
    ]
    # Standard deviation 0.008, four of them.
    assert abs(np.mean(hits) - task.chance().in_context) < 0.032


@pytest.mark.parametrize("kind", ["values", "deranged", "one_key"])
def test_donors_change_answers_and_nothing_else(kind: str) -> None:
    task = KvRecall(VOCABULARY, n_pairs=6, n_queries=2, distance="fixed:9")
    generator = np.random.default_rng(0)
    for episode in task.episodes(0, "test", 30):
        donor = task.donor(episode, generator, kind=kind)
        check_episode(donor, VOCABULARY)
        old, new = episode.tokens[2:13:2], donor.tokens[2:13:2]
        rest = np.ones(len(episode), dtype=bool)
        rest[2:13:2] = False
        for query in episode.queries:
            rest[query.query_position + 1] = False
        assert (episode.tokens[rest] == donor.tokens[rest]).all()
        assert donor.queries[0].value != episode.queries[0].value
        if kind == "values":
            assert not set(old) & set(new)
        if kind == "deranged":
            assert sorted(old) == sorted(new)
            assert (old != new).all()
        if kind == "one_key":
            assert (old != new).sum() == 1


def test_impossible_donors() -> None:
    task = KvRecall(VOCABULARY, n_pairs=40, distance="fixed:9")
    episode = next(task.episodes(0, "test", 1))
    with pytest.raises(TaskError, match="no donor of kind 'values'"):
        task.donor(episode, np.random.default_rng(0), kind="values")
    with pytest.raises(TaskError, match="no donor of kind 'other'"):
        task.donor(episode, np.random.default_rng(0), kind="other")
