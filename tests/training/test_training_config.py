"""Recipes are read strictly, and every problem is told at once with its path."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import ConfigError
from groundthink.tasks import TASKS
from groundthink.training import (
    MixItem,
    OptimizerConfig,
    Phase,
    Threshold,
    TrainConfig,
    config_from_dict,
    load_recipe,
    recipe_names,
    to_yaml,
)
from groundthink.training.strict import load_yaml, to_plain

MANY = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def problems(raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_a_valid_run() -> None:
    assert config_from_dict({}) == config_from_dict(None) == TrainConfig()


def test_all_problems_at_once_with_their_paths() -> None:
    text = problems(
        {
            "sede": 3,
            "seed": "three",
            "precision": "float16",
            "optimizer": {"learning_rate": -1.0, "betas": [0.9]},
            "phases": [
                {"name": "a", "steps": 0, "mix": [{"source": "text", "weight": "much"}]},
                {"name": "a", "rows": 2.5, "mix": [{"weight": -1}], "advance": [{"metric": "recall.exact"}]},
                "bootcamp",
            ],
        }
    )
    for told in (
        "sede is not a field",
        "seed is 'three', it must be a whole number",
        "precision is 'float16', it must be auto or float32 or bfloat16",
        "optimizer.learning_rate is -1.0",
        "optimizer.betas is [0.9], it must be a list of 2",
        "phases[0].steps is 0, it must be at least 1",
        "phases[0].mix[0].weight is 'much', it must be a finite number",
        "phases[1].name 'a' is given twice",
        "phases[1].rows is 2.5, it must be a whole number",
        "phases[1].mix[0].weight is -1.0, it must be above 0",
        "phases[1].advance[0].metric 'recall.exact' does not name an item",
        "phases[1].advance[0] needs exactly one of at_least and at_most",
        "phases[2] is 'bootcamp', it must be a mapping",
    ):
        assert told in text, told


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"phases": []}, "phases is empty"),
        ({"phases": 3}, "phases is 3, it must be a list"),
        ([1], "must be a mapping"),
        ({"seed": True}, "seed is True"),
        ({"compile": 1}, "compile is 1, it must be true or false"),
        ({"optimizer": {"eps": float("nan")}}, "optimizer.eps is nan"),
        ({"optimizer": {"eps": 10**400}}, "must be a finite number"),
        ({"data": {"corpus": []}}, "data.corpus is empty"),
        ({"data": None}, "data is None"),
        ({"model": {3: 4}}, "model is {3: 4}, it must be a mapping with names"),
        ({"phases": [{"mix": []}]}, "phases[0].mix is empty"),
        ({"phases": [{"mix": [{}, {}]}]}, "phases[0].mix[1].name 'text' is given twice"),
        ({"phases": [{"mix": [{"name": "a.b"}]}]}, "letters, digits"),
        ({"phases": [{"mix": [{"options": {"n": 1}}]}]}, "text has no options"),
        ({"phases": [{"rows": 2, "accumulate": 3}]}, "phases[0].accumulate is 3, more than the 2 rows"),
        ({"phases": [{"floor": 1.5}]}, "phases[0].floor is 1.5"),
        ({"phases": [{"max_seconds": 0}]}, "phases[0].max_seconds is 0"),
        ({"phases": [{"model_options": {"a_prob": "x"}}]}, "phases[0].model_options.a_prob is 'x'"),
        ({"phases": [{"state_passing": True, "mix": [{"source": "needle"}]}]}, "the mix has no text"),
        (
            {"evaluate_every": 0, "phases": [{"advance": [{"metric": "text.bits_per_byte", "at_most": 2}]}]},
            "phases[0].advance needs evaluations",
        ),
    ],
)
def test_what_is_refused(raw: Any, told: str) -> None:
    assert told in problems(raw)


def test_python_callers_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"phases\[0\].steps is 'many'"):
        TrainConfig(phases=(Phase(steps="many"),))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"phases\[0\].length is 1"):
        TrainConfig(phases=(Phase(length=1),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nseed: 2", "twice"),
        ("seed: [1", "line 1"),
        ("a: !!python/object/apply:os.system ['true']", "constructor"),
        ("? [a]\n: 1", "not readable YAML"),
        ("\x00", "not readable YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_numbers_that_yaml_1_1_would_take_for_text() -> None:
    assert load_yaml("[1e-3, 2E+4, 3.5e-2, 7, 1.5]", "x") == [0.001, 20000.0, 0.035, 7, 1.5]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff")
    for name in ("missing.yaml", "latin.yaml", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_recipe(tmp_path / name)
    with pytest.raises(ConfigError, match=r"there is no recipe 'demmo'.*demo"):
        load_recipe("demmo")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_recipe(tmp_path / "config.yaml") == config
    for phase in config.phases:
        for item in phase.mix:
            assert item.source in ("text", *TASKS)


def test_the_shipped_recipes() -> None:
    assert {"demo", "text"} <= set(recipe_names())


def test_overrides() -> None:
    config = load_recipe("demo", ["seed=7", "phases[0].steps=5", "phases.0.mix.0.weight=2", "model.d_model=64"])
    assert (config.seed, config.phases[0].steps, config.phases[0].mix[0].weight) == (7, 5, 2.0)
    assert config.model == {**load_recipe("demo").model, "d_model": 64}
    assert load_recipe("demo", ["phases[0].max_seconds=null"]).phases[0].max_seconds is None
    for bad in ("seed", "=3", "phases[9].steps=1", "phases[x].steps=1", "seed.x=1", "phases[9]=1"):
        with pytest.raises(ConfigError):
            load_recipe("demo", [bad])
    with pytest.raises(ConfigError, match="sede is not a field"):
        load_recipe("demo", ["sede=1"])


positive = st.floats(1e-6, 1e6)
items = st.builds(
    MixItem,
    source=st.just("kv_recall"),
    weight=positive,
    loss_weight=positive,
    options=st.dictionaries(st.sampled_from(["n_pairs", "loss"]), st.integers() | st.text(max_size=5)),
)
thresholds = st.builds(Threshold, metric=st.just("kv_recall.exact"), at_least=positive, n=st.none() | st.just(9))
phases = st.builds(
    Phase,
    steps=st.integers(1, 10**9),
    max_seconds=st.none() | positive,
    rows=st.integers(4, 99),
    accumulate=st.integers(1, 4),
    mix=st.tuples(items),
    floor=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "constant"]),
    advance=st.lists(thresholds, max_size=2).map(tuple),
    model_options=st.dictionaries(st.sampled_from(["a_prob", "b"]), st.booleans() | st.floats(0, 1)),
)
configs = st.builds(
    TrainConfig,
    phases=st.tuples(phases),
    seed=st.integers(0, 2**40),
    optimizer=st.builds(OptimizerConfig, learning_rate=positive, eps=positive),
    model=st.dictionaries(st.sampled_from(["pattern", "d_model"]), st.integers() | st.just("GS")),
)


@MANY
@given(configs)
def test_the_resolved_yaml_gives_the_same_run(config: TrainConfig) -> None:
    again = config_from_dict(load_yaml(to_yaml(config), "x"))
    assert again == config
    assert again.digest == config.digest


@MANY
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda s: (
            st.lists(s, max_size=3)
            | st.dictionaries(
                st.sampled_from(["phases", "mix", "seed", "steps", "optimizer", "advance", "data", "q"]),
                s,
                max_size=4,
            )
        ),
    )
)
def test_garbage_is_refused_in_one_line_or_is_a_config(raw: Any) -> None:
    try:
        config_from_dict(raw)
    except ConfigError as refused:
        lines = str(refused).splitlines()
    else:
        lines = [""]
    assert len(lines) == 1


def test_a_whole_number_for_a_float_is_the_same_config_after_its_file() -> None:
    config = TrainConfig(phases=(Phase(mix=(MixItem(weight=8),), learning_rate_scale=1),))
    again = config_from_dict(yaml.safe_load(yaml.safe_dump(to_plain(config))))
    assert again.digest == config.digest
    assert config.phases[0].mix[0].weight == 8


def test_a_digest_sees_every_field() -> None:
    digests = {TrainConfig().digest, TrainConfig(seed=1).digest, TrainConfig(model={"d_model": 3}).digest}
    digests.add(TrainConfig(phases=(Phase(mix=(MixItem(loss_weight=2.0),)),)).digest)
    assert len(digests) == 4


def test_the_resolved_yaml_is_plain() -> None:
    assert yaml.safe_load(to_yaml(TrainConfig()))["optimizer"]["betas"] == [0.9, 0.95]
