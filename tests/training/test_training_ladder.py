"""Curricula: ladders of phases, steps of one item alone, and what is refused about them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stand_ins import TinyModel, TinySource, config, phase, sources

from groundthink.errors import ConfigError
from groundthink.training import config_from_dict, load_recipe, read_events, to_yaml, train
from groundthink.training.mixture import Mixture, pure_item
from groundthink.training.sources import Recipe

GYM = {
    "name": "gym",
    "steps": 6,
    "mix": [{"source": "kv_recall", "options": {"n_pairs": 1, "n_queries": 1}}],
    "advance": [{"metric": "kv_recall.exact", "at_least": 0.7}],
    "ladder": {"mix[0].options.n_pairs": [2, 3, 4], "length": [40, 50, 60]},
}


def test_a_ladder_is_its_rungs_written_out() -> None:
    climbed = config_from_dict({"phases": [{"name": "first"}, GYM, {"name": "last"}]})
    assert [p.name for p in climbed.phases] == ["first", "gym-2", "gym-3", "gym-4", "last"]
    rungs = climbed.phases[1:4]
    assert [(p.length, p.mix[0].options["n_pairs"]) for p in rungs] == [(40, 2), (50, 3), (60, 4)]
    assert {(p.steps, p.advance[0].at_least, p.mix[0].options["n_queries"]) for p in rungs} == {(6, 0.7, 1)}


def test_the_resolved_run_is_the_same_run(tmp_path: Path) -> None:
    climbed = config_from_dict({"phases": [GYM]})
    (tmp_path / "config.yaml").write_text(to_yaml(climbed))
    again = load_recipe(tmp_path / "config.yaml", ["phases[1].steps=9"])
    assert [p.steps for p in again.phases] == [6, 9, 6]
    assert load_recipe(tmp_path / "config.yaml").digest == climbed.digest


@pytest.mark.parametrize(
    ("ladder", "told"),
    [
        ([2, 3], r"phases\[0\]\.ladder is \[2, 3\], it must be paths with a list of values each"),
        ({"length": 5}, "must be paths with a list"),
        ({"length": []}, "must be paths with a list"),
        ({}, "must be paths with a list"),
        (
            {"length": [40, 50], "mix[0].options.n_pairs": [2, 3, 4]},
            r"different lengths: length 2 and mix\[0\]\.options\.n_pairs 3",
        ),
        ({"mix[4].options.n_pairs": [2]}, r"phases\[0\]\.ladder: there is no 'mix\[4\]\.options\.n_pairs' to set"),
        ({"lenght": [40]}, "lenght is not a field"),
        ({"length": [40, 40]}, "'gym-40' is given twice"),
        ({"length": ["long"]}, r"phases\[0\]\.length is 'long'"),
    ],
)
def test_bad_ladders(ladder: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        config_from_dict({"phases": [{**GYM, "ladder": ladder}]})
    assert "\n" not in str(caught.value)


def test_shapes_that_are_no_run_are_refused_as_before() -> None:
    for raw in (3, [], {"phases": 3}, {"phases": [3]}):
        with pytest.raises(ConfigError):
            config_from_dict(raw)


def test_each_rung_says_whether_its_threshold_or_its_cap_ended_it(tmp_path: Path) -> None:
    """The first rung is passed at its second evaluation, the second never, the third at once."""
    replay = TinySource(values=(0.2, 0.8, 0.1, 0.1, 0.1, 0.9))
    small = config_from_dict({"phases": [{**GYM, "rows": 2}], "device": "cpu", "evaluate_every": 2})
    train(small, tmp_path / "r", model=TinyModel(), sources=lambda item: replay)
    ends = [event for event in read_events(tmp_path / "r") if event["event"] == "phase" and event["action"] == "end"]
    assert [(e["phase"], e["reason"], e["steps"]) for e in ends] == [
        ("gym-2", "threshold", 4),
        ("gym-3", "cap", 6),
        ("gym-4", "threshold", 2),
    ]
    assert [e["unmet"] for e in ends] == [[], ["kv_recall.exact"], []]


# --- steps of one item alone -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15, derandomize=True, database=None)
@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=3))
def test_pure_steps_get_their_share(shares: list[float]) -> None:
    chosen = [pure_item(shares, step) for step in range(1000)]
    for index, share in enumerate(shares):
        # multiples of an irrational number of bounded type: off by a multiple of log(1000)
        assert chosen.count(index) == pytest.approx(1000 * share, abs=3 * math.log(1000))
    assert chosen[:100] == [pure_item(shares, step) for step in range(100)]


def mixture(**fields: Any) -> Mixture:
    mix = [{"weight": 3}, {"source": "kv_recall", "pure": 0.1, "loss_weight": 0.1, **fields}]
    p = phase(rows=8, mix=mix)
    return Mixture(seed=0, index=0, phase=p, sources={i.label: sources(i) for i in p.mix})


def test_a_pure_step_has_rows_of_one_item() -> None:
    made = mixture()
    shares = [{part.name: part.batch.tokens.shape[0] for part in made.parts(step)} for step in range(200)]
    pure = [s for s in shares if "text" not in s]
    assert len(pure) == pytest.approx(20, abs=1)  # the sequence is even, not periodic
    assert all(s == {"kv_recall": 8} for s in pure)
    assert all(s == {"text": 6, "kv_recall": 2} for s in shares if "text" in s)


def test_rows_are_divided_as_ever_between_pure_steps() -> None:
    """Steps are chosen and rows divided by different sequences: the mixed steps keep the mix's exact shares."""
    p = phase(rows=4, mix=[{"weight": 0.9}, {"source": "kv_recall", "weight": 0.1, "pure": 0.5}])
    made = Mixture(seed=0, index=0, phase=p, sources={i.label: sources(i) for i in p.mix})
    mixed = [parts for parts in map(made.parts, range(600)) if parts[0].name == "text"]
    assert len(mixed) == pytest.approx(300, abs=10)
    assert sum(8 - sum(len(part.batch.tokens) for part in parts) - 4 for parts in mixed) == 0
    given = sum(len(part.batch.tokens) for parts in mixed for part in parts[1:])
    assert given / (4 * len(mixed)) == pytest.approx(0.1, abs=0.02)  # both sequences are even to about 1 in 100


def test_an_item_may_have_pure_steps_alone() -> None:
    made = mixture(weight=0)
    assert {tuple(part.name for part in made.parts(step)) for step in range(50)} == {("text",), ("kv_recall",)}


@pytest.mark.parametrize(
    ("mix", "more", "told"),
    [
        ([{"pure": 1.5}], {}, r"mix\[0\]\.pure is 1\.5, it must be in \[0, 1\]"),
        ([{"weight": 0}], {}, r"mix\[0\]\.weight is 0\.0, it must be above 0, or 0 where pure is above 0"),
        ([{"weight": 0, "pure": 0.5}], {}, "every weight is 0"),
        (
            [{"pure": 0.6}, {"source": "kv_recall", "pure": 0.6}],
            {},
            r"mix\[0\]\.pure and phases\[0\]\.mix\[1\]\.pure add up to more than 1",
        ),
        (
            [{}, {"source": "kv_recall", "pure": 0.1}],
            {"state_passing": True},
            r"phases\[0\]\.state_passing and phases\[0\]\.mix\[1\]\.pure exclude each other",
        ),
    ],
)
def test_bad_shares(mix: list[dict[str, Any]], more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config({"mix": mix, **more})


def test_an_episode_that_does_not_fit_says_which_number_to_change() -> None:
    options = {"n_pairs": 4, "n_queries": 2, "distance": "fixed:30"}
    rung = {"length": 24, "mix": [{"source": "kv_recall", "options": options}]}
    with pytest.raises(ConfigError, match=r"raise phases\[0\]\.length to 43, or.*n_pairs 4, n_queries 2") as caught:
        Recipe(config_from_dict({"phases": [rung], "model": {"pattern": "G"}})).check()
    assert "\n" not in str(caught.value)
    Recipe(config_from_dict({"phases": [{**rung, "length": 43}], "model": {"pattern": "G"}})).check()
