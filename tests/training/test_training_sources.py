"""The real model, data and tasks under the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_stand_ins import evidence

from groundthink.errors import ConfigError, GroundThinkError
from groundthink.model import HybridForCausalLM, load_model
from groundthink.training import (
    TrainConfig,
    config_from_dict,
    load_checkpoint,
    load_recipe,
    recipe_names,
    resume,
    train,
)
from groundthink.training.sources import Recipe, build_model

TINY = {"pattern": "GS", "d_model": 16, "n_heads": 2, "head_dim": 8, "value_dim": 8, "window_size": 4}
RECALL = {"source": "kv_recall", "options": {"n_pairs": 2, "n_queries": 2, "distance": "fixed:4"}}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Some 24 KB of lines."""
    lines = [f"line {i}: the square of {i} is {i * i}, and that is that.\n" for i in range(500)]
    (tmp_path / "book.txt").write_text("".join(lines))
    return str(tmp_path / "book.txt")


def tiny(corpus: str, *phases: dict[str, Any], **fields: Any) -> TrainConfig:
    small = [{"name": f"p{i}", "rows": 4, "length": 24, "steps": 4, **p} for i, p in enumerate(phases)]
    every = {"log_every": 1, "evaluate_every": 3, "evaluation_n": 8, "device": "cpu"}
    return config_from_dict({"model": TINY, "data": {"corpus": corpus}, "phases": small, **every, **fields})


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_name_models_and_tasks_that_exist(name: str) -> None:
    Recipe(load_recipe(name)).check()


def test_the_real_model_resumes_to_the_bit(tmp_path: Path, corpus: str) -> None:
    phases = (
        {"mix": [RECALL], "model_options": {"own_read_drop_prob": 0.5, "local_drop_prob": 0.5}},
        {"mix": [{}, RECALL], "state_passing": True, "accumulate": 2},
    )
    config = tiny(corpus, *phases)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=2)
    resume(tmp_path / "parts", stop_at=6)
    assert load_checkpoint(tmp_path / "parts/checkpoints/step_00000006").carried
    result = resume(tmp_path / "parts")
    assert result.finished
    assert set(result.metrics) == {"text.bits_per_byte", "kv_recall.exact"}
    assert evidence(tmp_path / "whole") == evidence(tmp_path / "parts")
    a, b = (load_checkpoint(tmp_path / name / "checkpoints/step_00000008") for name in ("whole", "parts"))
    for mine, theirs in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(x, theirs[name]) for name, x in mine.items())


def test_a_checkpoint_is_a_saved_model(tmp_path: Path, corpus: str) -> None:
    result = train(tiny(corpus, {}), tmp_path / "r")
    loaded = load_model(tmp_path / "r/checkpoints/step_00000004")
    assert isinstance(loaded, HybridForCausalLM)
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(loaded(ids).logits, result.model(ids).logits)


def test_parameters_depend_on_the_seed_alone(corpus: str) -> None:
    torch.manual_seed(5)
    first = build_model(tiny(corpus, {})).state_dict()
    torch.manual_seed(6)
    again, other = (build_model(tiny(corpus, {}, seed=seed)).state_dict() for seed in (0, 1))
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_text_of_many_documents_and_of_few_is_measured(corpus: str) -> None:
    text = Recipe(tiny(corpus, {})).text
    uniform = text.measure(lambda tokens: torch.zeros(*tokens.shape, 256), n=8, seed=0, length=24)
    assert uniform["bits_per_byte"].value == pytest.approx(8.0)  # log2 of 256 bytes


def test_everything_that_does_not_fit_is_told_at_once(tmp_path: Path, corpus: str) -> None:
    config = tiny(
        corpus,
        {"length": 8, "mix": [RECALL, {"source": "kv_rekall"}]},
        {"mix": [{**RECALL, "options": {"pairs": 3}}], "length": 99},
        model={**TINY, "window_size": 0, "vocab_size": 400, "windows": 3},
    )
    with pytest.raises(ConfigError) as caught:
        train(config, tmp_path / "r")
    text = str(caught.value)
    for told in ("windows", "phases[0].mix[0]: episodes of up to", "phases[0].mix[1]", "phases[1].mix[0]", "pairs"):
        assert told in text, told
    assert "\n" not in text
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": {**TINY, "vocab_size": 300}}, "model.vocab_size is 300"),
        ({"model": {**TINY, "max_length": 23}}, r"phases\[0\].length is 24, model.max_length 23"),
        ({"model": {**TINY, "pattern": "GQ"}}, "Q"),
        ({"model": {**TINY, "window_size": 0}}, "window_size is 0"),
        ({"vocabulary": {"text": 99}}, "vocabulary.text is 99"),
        ({"vocabulary": {"n_keys": "many", "n_locks": 1}}, "n_locks.*n_keys|n_keys.*n_locks"),
        ({"data": {"corpus": "nowhere.txt"}}, "nowhere"),
        ({"data": {"tokenizer": "nowhere"}}, "nowhere"),
    ],
)
def test_what_is_refused(tmp_path: Path, corpus: str, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(GroundThinkError, match=told):
        train(tiny(corpus, {}, **fields), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_states_cannot_be_passed_on_for_ever(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(ConfigError, match=r"unset model\.max_length"):
        train(tiny(corpus, {"state_passing": True}, model={**TINY, "max_length": 64}), tmp_path / "r")
