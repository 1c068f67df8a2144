"""The receptive horizon R is measured on models whose memories are cut, and is the sum that the config says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from groundthink.layers import MIXERS
from groundthink.model import HybridForCausalLM, ModelConfig


def _model(pattern: str, **fields: Any) -> HybridForCausalLM:
    sizes = {"d_model": 16, "n_heads": 2, "head_dim": 4, "value_dim": 4, "d_ff": 16, "init_std": 0.4}
    config = ModelConfig(**{"pattern": pattern, "vocab_size": 11, "window_size": 4, **sizes, **fields})
    return HybridForCausalLM(config).double().eval()  # float64: a tiny gradient must not round to 0


def _empty_memories(model: HybridForCausalLM) -> None:
    """Each token finds an empty memory and its own write; in the decayed form nothing else is left of the past."""
    for module in model.modules():
        if isinstance(module, MIXERS["G"]):
            module.hook_log_decay.register_forward_hook(lambda _m, _i, out: torch.full_like(out, -1e4))


def _zero_reads(model: HybridForCausalLM) -> None:
    """Nobody hears a memory at all, as the probes' read cuts do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Identity) and name.endswith(("hook_own_read", "reader.hook_read")):
            module.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))


def _reach(model: HybridForCausalLM, length: int) -> int:
    """How far back the last token's output depends on the input, by its gradient."""
    inputs: list[torch.Tensor] = []
    model.embed.register_forward_hook(
        lambda _m, _i, out: inputs.append(out.detach().requires_grad_()) or inputs[-1]  # type: ignore[func-returns-value]
    )
    ids = torch.randint(0, 11, (1, length), generator=torch.Generator().manual_seed(1))
    hidden, _ = model.hidden(ids)
    (gradient,) = torch.autograd.grad(hidden[:, -1].square().sum(), inputs)
    touched = gradient.abs().amax((0, 2)).nonzero().flatten()
    return length - 1 - int(touched.min())


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        ("G", {}),
        ("G", {"conv_width": 1}),
        ("A", {}),
        ("AA", {"window_size": 1}),
        ("GS", {}),
        ("GS", {"query": "key", "decay": "sigmoid"}),
        ("GGS", {"read_sources": "all", "window_size": 7}),
        ("GSAG", {"conv_width": 2}),
        ("G", {"conv_width": 0}),
        ("GS", {"shifted_value": True, "conv_width": 0}),
        ("GG", {"shifted_value": True, "key_conv_width": 3, "conv_width": 2}),
        ("GS", {"key_conv_width": 5, "query": "key", "slot_tokens": (3,)}),
    ],
)
def test_horizon_is_what_can_be_measured(pattern: str, fields: dict[str, Any]) -> None:
    model = _model(pattern, **fields)
    length = int(model.horizon) + 20
    if "G" in model.sizes.layers:
        assert _reach(model, length) == length - 1, "with its memory a model sees everything"
    _empty_memories(model)
    assert _reach(model, length) == model.horizon


@pytest.mark.parametrize("pattern", ["GS", "GGSA"])
def test_without_reads_windows_alone_reach_back(pattern: str) -> None:
    model = _model(pattern)
    _zero_reads(model)
    windows = sum(letter in "SA" for letter in model.sizes.layers)
    assert _reach(model, 40) == windows * (model.sizes.window_size - 1) <= model.horizon


def test_horizon_arithmetic() -> None:
    config = ModelConfig(pattern="GGS*2", vocab_size=5, window_size=16, conv_width=4)
    assert config.horizon == 4 * 3 + 2 * 15
    bare = {"conv_width": 0, "key_conv_width": 6, "shifted_value": True}
    assert ModelConfig(pattern="GGS*2", vocab_size=5, window_size=16, **bare).horizon == 4 * (5 + 1) + 2 * 15  # type: ignore[arg-type]
    assert ModelConfig(pattern="GF", vocab_size=5).horizon == math.inf
