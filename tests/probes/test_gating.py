"""A frozen memory does not move, a blocked write is not there, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model import HybridForCausalLM, Snapshot
from groundthink.probes.gating import block_writes, freeze_memory, span

Hybrid = Callable[..., HybridForCausalLM]
IDS = torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(1))


def after(model: HybridForCausalLM, snapshot: Snapshot | None = None) -> Snapshot:
    with torch.no_grad():
        return (model.prefill(IDS) if snapshot is None else model.resume(snapshot, IDS))[1]


def memories(snapshot: Snapshot) -> list[Tensor]:
    return [layer["memory"] for layer in snapshot.layers if "memory" in layer]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_frozen_memory_does_not_move(hybrid: Hybrid, backend: str) -> None:
    model = hybrid("GSG", backend=backend)
    start = after(model)
    with freeze_memory(model, torch.ones_like(IDS, dtype=torch.bool)):
        end = after(model, start)
    for a, b in zip(memories(start), memories(end), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(memories(after(model, start))[0], memories(start)[0])
    assert not torch.equal(end.layers[2]["conv"], start.layers[2]["conv"]), "the convolution goes on"


def test_without_writes_the_memory_only_decays(hybrid: Hybrid) -> None:
    model, everything = hybrid("GS"), torch.ones_like(IDS, dtype=torch.bool)
    with block_writes(model, everything):
        assert not memories(after(model))[0].any()
        start = after(hybrid("GS"))
        decays: list[Tensor] = []
        handle = model.blocks[0].mixer.hook_log_decay.register_forward_hook(lambda _m, _i, out: decays.append(out))
        end = after(model, start)
        handle.remove()
    kept = decays[0].sum(1).exp()[..., None, None]
    # A product of 20 decays in float32, taken in another order.
    torch.testing.assert_close(memories(end)[0], memories(start)[0] * kept, rtol=1e-4, atol=1e-6)


def test_only_what_is_named_is_blocked(hybrid: Hybrid) -> None:
    model = hybrid("GG")
    whole = after(model)
    with block_writes(model, span(IDS, 5, 9), layers=[1], heads=[0]):
        part = after(model)
    assert torch.equal(memories(whole)[0], memories(part)[0])
    assert torch.equal(memories(whole)[1][:, 1], memories(part)[1][:, 1])
    assert not torch.equal(memories(whole)[1][:, 0], memories(part)[1][:, 0])
    one_row = torch.zeros_like(IDS, dtype=torch.bool)
    one_row[1, 7] = True
    with block_writes(model, one_row):
        row = after(model)
    changed = [(a != b).flatten(1).any(1).tolist() for a, b in zip(memories(whole), memories(row), strict=True)]
    assert changed == [[False, True, False]] * 2


def test_a_blocked_token_is_one_that_was_never_written(hybrid: Hybrid) -> None:
    """Blocking and freezing the last tokens leaves the memory of the text that ends before them."""
    model = hybrid("G", backend="reference")
    with torch.no_grad():
        short = model.prefill(IDS[:, :12])[1]
    with freeze_memory(model, span(IDS, 12, 20)):
        long = after(model)
    # The same steps, but projections of more tokens: sums in another order.
    torch.testing.assert_close(memories(short)[0], memories(long)[0], rtol=1e-5, atol=1e-6)


def test_nothing_stays_behind_and_nothing_is_silent(hybrid: Hybrid) -> None:
    model, whole = hybrid("GS"), span(IDS, 0, 20)
    with pytest.raises(StateError, match="the text is"), block_writes(model, whole[:2]):
        after(model)
    with pytest.raises(StateError, match="there are 2 heads"), freeze_memory(model, whole, heads=[2]):
        after(model)
    with pytest.raises(StateError, match="names no tokens"), block_writes(model, ~whole):
        pass
    with pytest.raises(ConfigError, match="layer 1 has no"), block_writes(model, whole, layers=[1]):
        pass
    with pytest.raises(StateError, match="no layer writes"), block_writes(hybrid("A"), whole):
        pass
    with pytest.raises(StateError, match="no span"):
        span(IDS, 5, 5)
    assert not any(module._forward_hooks for module in model.modules())
