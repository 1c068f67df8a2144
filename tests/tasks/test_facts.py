from __future__ import annotations

import itertools

import numpy as np
import pytest

from groundthink.data.tokenizer import BPETokenizer, ByteTokenizer
from groundthink.tasks.check import check_episode
from groundthink.tasks.facts import COLOURS, FILLER, NAMES, OBJECTS, Facts, draw_facts, split_of
from groundthink.tasks.task import SPLITS, Vocabulary
from tasks.worlds import VOCABULARY


def read(task: Facts, tokens: np.ndarray) -> str:
    return task.tokenizer.decode(tokens[1:].tolist())


def test_it_reads_as_english() -> None:
    task = Facts(VOCABULARY, n_facts=1, filler_tokens=60, position="start")
    episode = next(task.episodes(0, "train", 1))
    sentences = read(task, episode.tokens).split(".")
    assert any(sentences[0].startswith(f" {name} has a ") for name in NAMES)
    assert f"{sentences[1]}." in FILLER
    assert sentences[-2].startswith(" What colour is ")
    (query,) = episode.queries
    assert task.tokenizer.decode(query.value).strip() in COLOURS
    assert task.tokenizer.decode(episode.tokens[: query.query_position + 1][1:].tolist()).endswith("?")


@pytest.mark.parametrize("position", ["start", "middle", "end", "anywhere"])
def test_facts_lie_where_they_should(position: str) -> None:
    task = Facts(VOCABULARY, n_facts=2, filler_tokens=300, position=position)
    depths = []
    for episode in task.episodes(0, "train", 60):
        question = read(task, episode.tokens).index(" What")
        depths += [read(task, episode.tokens).index(" has a") / question]
    bounds = {"start": (0, 0.05), "middle": (0.3, 0.6), "end": (0.75, 1), "anywhere": (0, 1)}[position]
    assert bounds[0] <= min(depths) <= max(depths) <= bounds[1]
    if position == "anywhere":
        assert max(depths) - min(depths) > 0.5


def test_combinations_of_the_test_are_held_out() -> None:
    counts = {"train": 0, "valid": 0, "test": 0}
    for triple in itertools.product(range(8), repeat=3):
        counts[split_of(triple)] += 1
    assert counts == {"train": 384, "valid": 64, "test": 64}
    seen = {}
    for split in counts:
        generator = np.random.default_rng(0)
        drawn = [draw_facts(generator, 8, split) for _ in range(60)]
        seen[split] = {fact for facts in drawn for fact in facts}
        for facts in drawn:
            assert len({colour for _, _, colour in facts}) == 8
            assert len({fact[:2] for fact in facts}) == 8
    assert not seen["train"] & seen["test"] | seen["train"] & seen["valid"] | seen["valid"] & seen["test"]
    # No part is held out: every name, object and colour of the test is known from training.
    for part in range(3):
        assert {fact[part] for fact in seen["train"]} == {fact[part] for fact in seen["test"]} == set(range(8))


@pytest.mark.parametrize("split", SPLITS)
def test_facts_that_only_names_tell_apart(split: str) -> None:
    """All about one kind of thing where that is asked for; nobody has two; the same draws as ever where it is not."""
    generator = np.random.default_rng(0)
    drawn = [draw_facts(generator, 4, split, 1.0) for _ in range(60)]
    alike = [len({thing for _, thing, _ in facts}) == 1 for facts in drawn]
    assert np.mean(alike) > 0.9  # in test and valid one name is left for a thing and a colour, which may be taken
    assert all(len({(name, thing) for name, thing, _ in facts}) == 4 for facts in drawn)
    assert {split_of(triple) for facts in drawn for triple in facts} == {split}
    plain, again = (draw_facts(np.random.default_rng(1), 5, split, *share) for share in ((), (0.0,)))
    assert plain == again


def test_with_a_trained_tokenizer_pieces_are_the_pieces_of_the_whole() -> None:
    words = [f" {n} has a {c} {o}. What colour is {n}'s {o}?" for n in NAMES for c in COLOURS for o in OBJECTS]
    tokenizer = BPETokenizer.train([*words, *FILLER], 420)
    task = Facts(Vocabulary(text=420), tokenizer=tokenizer, n_facts=3, n_queries=2)
    for episode in task.episodes(0, "test", 10):
        check_episode(episode, task.vocabulary)
        assert tokenizer.encode(read(task, episode.tokens)) == episode.tokens[1:].tolist()
    assert task.digest != Facts(Vocabulary(text=420), tokenizer=ByteTokenizer(), n_facts=3, n_queries=2).digest
