"""A cut takes away exactly one read, and is gone afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM
from groundthink.probes import cut_own_reads, cut_reads
from groundthink.probes.cuts import OWN_READ, S_READ, layers_with

Hybrid = Callable[..., HybridForCausalLM]


def logits(model: HybridForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.prefill(ids)[0]


def hooks(model: HybridForCausalLM) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize(("cut", "path"), [(cut_reads, S_READ), (cut_own_reads, OWN_READ)])
def test_a_cut_is_zero_output_weights(hybrid: Hybrid, cut: Callable, path: str) -> None:
    """Zeroing the projection behind the hook by hand must give the same logits, to the bit."""
    model, ids = hybrid("GSGS"), torch.randint(64, (2, 40))
    whole = logits(model, ids)
    for layers in (None, layers_with(model, path)[1:]):
        with cut(model, layers):
            found = logits(model, ids)
        saved = {name: x.clone() for name, x in model.state_dict().items()}
        with torch.no_grad():
            for layer in layers_with(model, path) if layers is None else layers:
                owner = model.blocks[layer].mixer
                (owner.reader if path == S_READ else owner).out.weight.zero_()
        assert torch.equal(found, logits(model, ids))
        assert not torch.equal(found, whole)
        model.load_state_dict(saved)
    assert torch.equal(logits(model, ids), whole)


@pytest.mark.parametrize("cut", [cut_reads, cut_own_reads])
def test_a_cut_is_taken_off_again(hybrid: Hybrid, cut: Callable) -> None:
    model, ids = hybrid("GS"), torch.randint(64, (2, 20))
    before = logits(model, ids)
    with cut(model):
        assert hooks(model) == 1
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="planted"), cut(model):
        raise RuntimeError("planted")
    assert hooks(model) == 0
    assert torch.equal(logits(model, ids), before)


def test_a_layer_that_has_nothing_to_cut_is_an_error(hybrid: Hybrid) -> None:
    model = hybrid("GSG")
    with pytest.raises(ConfigError, match="layer 1 has no mixer"), cut_own_reads(model, [0, 1]):
        pass
    assert hooks(model) == 0
    with pytest.raises(ConfigError, match="layer 9 has no"), cut_reads(model, [9]):
        pass
