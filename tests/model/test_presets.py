"""The sources' models by name: they are the sizes that were printed, they can be changed, and they run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import groundthink as gt
from groundthink.errors import ConfigError
from groundthink.model import PRESETS, ModelConfig, parameter_count

SMALL: dict[str, Any] = {"vocab_size": 23, "d_model": 16, "n_heads": 2, "head_dim": 8, "value_dim": 6, "window_size": 5}

# What the sources print, and what ours has more or less.
PRINTED = {
    "v6-gatekeeper": (15_298_064, 8),  # one bias per head on the decay, which 000 leaves out
    "v6-triton": (14_741_016, 0),
    "v7": (33_217_560, 0),
    # the bank of keys is fixed here, and neither a query that is shared nor a beta that is constant has parameters
    "v7-scaling": (17_583_212, -5 * 4 * 64 * 64 - 256 * 256 - 5 * (256 * 4 + 4)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_size_its_source_prints(name: str) -> None:
    printed, difference = PRINTED[name]
    assert parameter_count(ModelConfig.preset(name)) == printed + difference


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sees_what_its_source_sees(name: str) -> None:
    """Windows of 64 tokens before the present one, and one more through each shift."""
    config = ModelConfig.preset(name)
    assert config.horizon == 64 + config.layers.count("G") * config.shifted_value


def test_presets_name_fields_that_exist_and_cannot_be_changed() -> None:
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for fields in PRESETS.values():
        assert set(fields) <= known
        with pytest.raises(TypeError):
            fields["window_size"] = 3  # type: ignore[index]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_learns_and_continues(name: str) -> None:
    torch.manual_seed(0)
    model = gt.HybridForCausalLM(ModelConfig.preset(name, **SMALL))
    ids = torch.randint(1, 23, (4, 12))  # `generate` takes 0 for padding
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        total, valid, _ = model.loss(ids, ids)
        (total / valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()) / float(valid))
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    told = torch.stack(list(gt.stream(model, ids, max_new_tokens=5)), 1)
    generated = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert isinstance(generated, torch.Tensor)
    assert torch.equal(told, generated[:, 12:])


def test_fields_change_a_preset_by_name_and_in_plain_values(tmp_path: Path) -> None:
    config = ModelConfig.preset("v7", pattern="GGS", slot_tokens=(3, 4), beta_bias=-4.0)
    assert (config.d_model, config.layers, config.beta_bias) == (512, "GGS", -4.0)
    plain = {"preset": "v7", "pattern": "GGS", "slot_tokens": [3, 4], "beta_bias": -4.0}
    assert ModelConfig.from_dict(plain) == config
    assert ModelConfig.from_dict({"vocab_size": 99, "preset": "v7"}).vocab_size == 99, "a tokenizer's size counts"
    resolved = json.loads(json.dumps(config.to_dict()))
    assert "preset" not in resolved, "what is saved does not depend on what a preset will be"
    assert ModelConfig.from_dict(resolved) == config


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"preset": "v8"}, "there is no preset 'v8'.*presets: v6-gatekeeper, v6-triton, v7, v7-scaling"),
        ({"preset": ["v7"]}, "there is no preset"),
        ({"preset": "v7", "windw_size": 3}, "unknown field 'windw_size'"),
        ({"preset": "v7", "allow_negative_eigenvalues": True}, "error 'raw' and allow_negative_eigenvalues exclude"),
        ({"preset": "v7-scaling", "beta_bias": -2.0}, "beta_floor 1.0 and beta_bias -2.0 exclude"),
    ],
)
def test_a_bad_preset_is_one_line(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ModelConfig.from_dict(raw)
    assert "\n" not in str(caught.value)
