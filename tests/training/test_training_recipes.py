"""Every shipped recipe trains: its smoke form, ten steps on a CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from groundthink.training import load_recipe, read_events, recipe_names, smoke_form, train

RUNGS = [f"gym-{n}" for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_its_first_steps(name: str, tmp_path: Path) -> None:
    config = smoke_form(load_recipe(name))
    assert config.model == load_recipe(name).model  # a smaller model would not be the recipe's
    result = train(config, tmp_path / "r")
    assert result.finished
    events = read_events(tmp_path / "r")
    steps = [event for event in events if event["event"] == "step"]
    assert len({event["phase"] for event in steps}) == len(config.phases)
    assert not [event for event in events if event["event"] == "fault"]
    for event in steps:
        phase = next(phase for phase in config.phases if phase.name == event["phase"])
        assert math.isfinite(event["loss"])
        assert set(event.get("auxiliary_losses", {})) == set(phase.losses)
    assert len([event for event in events if event["event"] == "evaluation"]) >= len(config.phases)


def test_the_smoke_form_is_ten_steps_of_the_same_run() -> None:
    whole = load_recipe("progressive")
    small = smoke_form(whole)
    assert [phase.name for phase in small.phases] == [phase.name for phase in whole.phases]
    assert sum(phase.steps for phase in small.phases) <= 10
    for a, b in zip(whole.phases, small.phases, strict=True):
        assert (a.length, a.losses, a.model_options) == (b.length, b.losses, b.model_options)
        assert [t.at_least for t in a.advance] == [t.at_least for t in b.advance]


def test_the_curricula_are_those_of_the_sources() -> None:
    progressive = load_recipe("progressive")
    assert [phase.name for phase in progressive.phases] == ["retrieval", *RUNGS, "language"]
    assert [phase.advance[0].at_least for phase in progressive.phases[:-1]] == [0.95, *[0.70] * 4]
    assert [phase.mix[0].options["n_pairs"] for phase in progressive.phases[:-1]] == [1, 2, 3, 4, 5]
    fillers = [phase.mix[0].options["filler_tokens"] for phase in load_recipe("distractors").phases]
    assert [filler // 40 for filler in fillers] == [0, 10, 30, 50, 100]  # sentences of about 40 bytes
    mixed = load_recipe("mixed").phases[0]
    facts = next(item for item in mixed.mix if item.source == "facts")
    assert (facts.pure, facts.loss_weight, mixed.model_options["local_drop_prob"]) == (0.1, 0.1, 0.7)
    bootcamp, integration = load_recipe("bootcamp").phases
    assert {item.source for item in bootcamp.mix} == {"kv_recall"}
    assert integration.learning_rate_scale < bootcamp.learning_rate_scale
