"""ModelConfig: everything wrong is said at once, sizes are counted right, twins match."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest
import torch

from groundthink.errors import ConfigError
from groundthink.layers.gated_delta_net import GatedDeltaNet
from groundthink.model import (
    TWINS,
    HybridForCausalLM,
    ModelConfig,
    count_parameters,
    parameter_count,
)
from groundthink.model.config import expand_pattern


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pattern": "GXS"}, r"pattern 'GXS' has unknown letters 'X'; known are GSAF"),
        ({"pattern": "G S"}, "unknown letters"),
        ({"pattern": ""}, "pattern is empty"),
        ({"pattern": "GS*0"}, "pattern is empty"),
        ({"pattern": "SG"}, "the S at layer 0 has no G below it"),
        ({"pattern": 3}, "pattern is 3, it must be str"),
        ({"window_size": 0}, "window_size is 0, it must be at least 1"),
        ({"window_size": 4.0}, r"window_size is 4.0, it must be int"),
        ({"n_heads": True}, "n_heads is True, it must be int"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"head_dim": 7}, "head_dim is 7, it must be even"),
        ({"n_value_heads": 3}, "n_value_heads 3 is not a multiple of n_heads 4"),
        ({"error": "raw", "allow_negative_eigenvalues": True}, "exclude each other"),
        ({"error": "late"}, "error is 'late', it must be 'decayed' or 'raw'"),
        ({"local_drop_prob": 1.5}, r"local_drop_prob is 1.5, it must be in \[0, 1\]"),
        ({"local_drop_prob": 1}, "the window would never be trained"),
        ({"own_read_drop_prob": math.nan}, "own_read_drop_prob is nan"),
        ({"conv_width": -1}, "conv_width is -1, it must be at least 0"),
        ({"key_conv_width": -1}, "key_conv_width is -1, it must be at least 0"),
        ({"local_scale": 0.0}, "local_scale is 0.0, it must be above 0"),
        ({"read_scale": math.inf}, "read_scale is inf, it must be above 0 and finite"),
        ({"own_read_scale": "1"}, "own_read_scale is '1', it must be float | None"),
        ({"ff_expansion": math.nan}, "ff_expansion is nan"),
        ({"lasting_heads": -1}, r"lasting_heads is -1, it must be in \[0, 4\]"),
        ({"lasting_heads": 5}, r"lasting_heads is 5, it must be in \[0, 4\]"),
        ({"least_forgetting": -0.1}, "least_forgetting is -0.1, it must be at least 0 and finite"),
        ({"least_forgetting_below": math.inf}, "least_forgetting_below is inf, it must be at least 0 and finite"),
        ({"beta_floor": -0.1}, r"beta_floor is -0.1, it must be in \[0, 1\]"),
        ({"beta_floor": 1.5}, r"beta_floor is 1.5, it must be in \[0, 1\]"),
        ({"beta_floor": 2.5, "allow_negative_eigenvalues": True}, r"beta_floor is 2.5, it must be in \[0, 2\]"),
        ({"beta_floor": 1.0, "beta_bias": -2.0}, "beta_floor 1.0 and beta_bias -2.0 exclude each other"),
        ({"query": "key", "query_norm": False}, "query 'key' and query_norm false exclude each other"),
        ({"read_query": "shared", "read_query_std": 0.01}, "'shared' and read_query_std 0.01 exclude each other"),
        ({"slot_tokens": (3, 1, 3)}, "slot_tokens has 3 twice"),
        ({"slot_tokens": (-1,)}, "slot_tokens has a negative id"),
        ({"slot_tokens": (8, 9)}, "slot_tokens has 9, vocab_size 9 has no such id"),
        ({"slot_tokens": (1, 2, 3), "head_dim": 2}, "slot_tokens has 3 tokens, head_dim 2 has room for as many"),
        ({"slot_tokens": [1, 2]}, r"slot_tokens is \[1, 2\], it must be tuple"),
        ({"slot_tokens": (True,)}, r"slot_tokens is \(True,\), it must be tuple"),
        ({"rope": 1}, "rope is 1, it must be bool"),
        ({"read_sources": "last"}, "'nearest' or 'all' or 'sum' or 'weighted'"),
    ],
)
def test_a_problem_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ModelConfig(**{"pattern": "GS", "vocab_size": 9, **fields})
    assert "\n" not in str(caught.value)
    assert "Fix:" in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(pattern="SQ", vocab_size=-1, window_size=0, head_dim=3, local_drop_prob=2.0)
    for field in ("pattern", "vocab_size", "window_size", "head_dim", "local_drop_prob"):
        assert field in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [
        ("GGSGAG", "top", [0, 2, 2, 2]),
        ("GGSGAG", "all", [2, 2, 2, 2]),
        ("GG", "top", [0, 2]),
    ],
)
def test_lasting_heads_are_where_they_are_said_to_be(pattern: str, layers: Any, expected: list[int]) -> None:
    config = ModelConfig(pattern=pattern, vocab_size=9, lasting_heads=2, lasting_layers=layers)
    assert [config.at(i).lasting_heads for i, letter in enumerate(pattern) if letter == "G"] == expected
    model = HybridForCausalLM(dataclasses.replace(config, d_model=16, d_ff=16))
    assert [part.gates.lasting for part in model.modules() if isinstance(part, GatedDeltaNet)] == expected


@pytest.mark.parametrize(
    ("most", "below", "expected"), [(0.01, 0.05, [0.05, 0.01, 0.01]), (0.1, 0.05, [0.1, 0.1, 0.1])]
)
def test_a_memory_under_another_forgets_faster(most: float, below: float, expected: list[float]) -> None:
    config = ModelConfig(pattern="GGSG", vocab_size=9, d_model=16, d_ff=16, least_forgetting=most)
    model = HybridForCausalLM(dataclasses.replace(config, least_forgetting_below=below))
    assert [part.gates.least_forgetting for part in model.modules() if isinstance(part, GatedDeltaNet)] == expected


def test_all_conflicts_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(
            pattern="GS",
            vocab_size=9,
            error="raw",
            allow_negative_eigenvalues=True,
            beta_floor=2.0,
            beta_bias=1.0,
            query="key",
            query_norm=False,
            read_query="shared",
            read_query_std=1.0,
        )
    assert caught.value.what.count("exclude each other") == 4


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'windw_size'; field 'vocab_size' is missing.*window_size"):
        ModelConfig.from_dict({"pattern": "G", "windw_size": 3})
    with pytest.raises(TypeError):
        ModelConfig(pattern="G", vocab_size=3, windw_size=3)  # type: ignore[call-arg]
    config = ModelConfig(pattern="GGS*2", vocab_size=5, read_sources="all")
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pattern = "G"  # type: ignore[misc]


def test_patterns_are_written_out() -> None:
    assert [expand_pattern(p) for p in ("GS", "GGS*2", "(GS)*3", "F*1")] == ["GS", "GGSGGS", "GSGSGS", "F"]
    config = ModelConfig(pattern="GGSAF", vocab_size=5, read_sources="all")
    kinds = ["linear_attention", "linear_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert config.layer_types == kinds
    assert config.read_sources_of(2) == 2
    assert dataclasses.replace(config, read_sources="nearest").read_sources_of(2) == 1


SIZES = [
    {"pattern": "G"},
    {"pattern": "GS", "query": "key"},
    {"pattern": "A", "tie_embeddings": False},
    {"pattern": "FAGS", "n_value_heads": 8, "decay": "sigmoid"},
    {"pattern": "GGS*2", "read_sources": "all", "conv_width": 1, "value_dim": 24},
    {"pattern": "GGGS", "d_ff": 100, "head_dim": 10, "error": "raw"},
    {"pattern": "GGS", "conv_width": 0, "key_conv_width": 3, "output_norm": False, "read_norm": False},
    {"pattern": "GGS", "output_gate": False, "beta_floor": 1.0, "read_query": "shared", "read_sources": "all"},
    {"pattern": "GGS", "embedding_norm": True, "read_sources": "sum", "slot_tokens": (1, 2), "decay": "mamba"},
]


@pytest.mark.parametrize("fields", SIZES, ids=lambda f: f["pattern"])
def test_parameter_count_is_that_of_the_model(fields: dict[str, Any]) -> None:
    config = ModelConfig(**{"vocab_size": 31, "d_model": 48, "head_dim": 16, "value_dim": 16, **fields})
    assert parameter_count(config) == count_parameters(HybridForCausalLM(config).parameters())


@pytest.mark.parametrize("pattern", ["GS", "GGS", "GGGS*2"])
@pytest.mark.parametrize("read_sources", ["nearest", "all"])
def test_twins_are_as_large_and_reach_as_far(pattern: str, read_sources: str) -> None:
    """spec.md section 1: parameters within 2 %."""
    config = ModelConfig(
        pattern=pattern,
        vocab_size=256,
        d_model=128,
        head_dim=32,
        value_dim=32,
        window_size=16,
        read_sources=read_sources,  # type: ignore[arg-type]
    )
    size = parameter_count(config)
    twins = {name: build(config) for name, build in TWINS.items()}
    assert {name: set(twin.layers) for name, twin in twins.items()} == {
        "no-read": {"G", "A"},
        "G-only": {"G"},
        "window-only": {"A"},
        "full": {"F"},
    }
    for twin in twins.values():
        assert abs(parameter_count(twin) - size) <= 0.02 * size
        assert len(twin.layers) == len(config.layers)
    assert twins["no-read"].horizon == config.horizon
    assert twins["no-read"].layers.count("G") == config.layers.count("G")
    assert config.horizon - len(config.layers) < twins["window-only"].horizon <= config.horizon


def _overlap(start: str) -> float:
    """Mean product of a query's and a key's tap three tokens back, by channel: what a first gradient could use."""
    torch.manual_seed(0)
    model = HybridForCausalLM(ModelConfig(pattern="G", vocab_size=8, d_model=64, n_heads=4, head_dim=64, start=start))  # type: ignore[arg-type]
    query, key, _ = cast(Any, model.blocks[0]).mixer.conv.weight.detach().split(256)
    return float((query[:, 0] * key[:, 0]).mean())


def test_the_context_start_lets_a_query_meet_a_key_several_tokens_back() -> None:
    # Uniform within 0.8/sqrt(4): the square's mean is 0.16/3, over 256 channels with a standard error of 0.003.
    assert abs(_overlap("context") - 0.16 / 3) < 0.012
    # A fifth of that spread and unlike: the mean is 0 with a standard error of 0.0002.
    assert abs(_overlap("mimetic")) < 0.001
