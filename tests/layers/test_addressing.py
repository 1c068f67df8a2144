"""Keys from context, slots and the token before, each against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink import ops
from groundthink.layers import Context, LayerConfig
from groundthink.layers.addressing import KeyContext, Written, address, shift, slots_of
from groundthink.layers.gated_delta_net import GatedDeltaNet

SIZES = {"d_model": 12, "n_heads": 2, "head_dim": 4, "value_dim": 6}


def _layer(**fields: Any) -> GatedDeltaNet:
    return GatedDeltaNet(LayerConfig(**{**SIZES, **fields})).double().eval()


def _context(length: int, **fields: Any) -> Context:
    return Context(torch.arange(length).expand(2, -1), **fields)


def _caught(layer: GatedDeltaNet, x: Tensor, context: Context) -> dict[str, Tensor]:
    """What the layer writes and asks with."""
    found: dict[str, Tensor] = {}
    names = ("hook_q", "hook_k", "hook_v", "hook_beta", "hook_log_decay")
    handles = [
        layer.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
        for name in names
    ]
    layer(x, None, context)
    for handle in handles:
        handle.remove()
    return found


def test_key_context_is_a_dense_convolution() -> None:
    """Under torch's own conv1d, keys alone see it, and a document starts with zeros before it."""
    config = LayerConfig(**{**SIZES, "key_conv_width": 3})
    context, x = KeyContext(config).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    y, state = context(x, None, None)
    weight = context.weight.unflatten(1, (3, 12)).permute(0, 2, 1)
    torch.testing.assert_close(y, F.conv1d(F.pad(x.mT, (2, 0)), weight).mT)
    assert torch.equal(state, x[:, -2:])
    documents = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]).expand(2, -1)
    packed, end = context(x, None, documents)
    apart = [context(part, None, None)[0] for part in x.split([4, 4, 1], 1)]
    torch.testing.assert_close(packed, torch.cat(apart, 1))
    assert torch.equal(end, torch.cat([torch.zeros_like(x[:, :1]), x[:, -1:]], 1))


def test_key_context_moves_keys_alone() -> None:
    layer, x = _layer(key_conv_width=2, conv_width=0), torch.randn(2, 5, 12, dtype=torch.float64)
    before = _caught(layer, x, _context(5))
    x[:, 1] += 1
    after = _caught(layer, x, _context(5))
    changed = {name: (before[name] != after[name]).flatten(2).any(2)[0].tolist() for name in before}
    assert changed.pop("hook_k") == [False, True, True, False, False]
    assert all(moved == [False, True, False, False, False] for moved in changed.values())


@pytest.mark.parametrize("start", ["plain", "mimetic"])
def test_key_context_starts_at_the_size_of_its_input(start: str) -> None:
    config = LayerConfig(d_model=64, key_conv_width=4, start=start)  # type: ignore[arg-type]
    y, _ = KeyContext(config)(torch.randn(8, 50, 64), None, None)
    # plain: a sum of 256 terms of variance 1/256; mimetic: half of two tokens each, and a fifth of that
    assert abs(float(y.detach().std()) - (1.0 if start == "plain" else (0.5 + 0.04) ** 0.5)) < 0.1


def test_slots_are_named_by_their_tokens() -> None:
    tokens = torch.tensor([[5, 9, 2, 9], [7, 7, 5, 0]])
    slots = slots_of(tokens, (9, 7))
    assert slots is not None
    assert slots.tolist() == [[-1, 0, -1, 0], [1, 1, -1, -1]]
    assert slots_of(tokens, ()) is None
    x = torch.randn(2, 4, 3, 5)
    found = address(x, slots)
    assert torch.equal(found[0, 1], torch.eye(5)[0].expand(3, -1))
    assert torch.equal(found[1, 0], torch.eye(5)[1].expand(3, -1))
    assert torch.equal(found[slots < 0], x[slots < 0])
    assert address(x, None) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_slots_as_keys_have_dimensions_never_disturb_each_other(dtype: torch.dtype) -> None:
    """64 orthogonal writes at K 64 come back as they were, whatever the order and however often they are rewritten."""
    slots = torch.cat([torch.randperm(64) for _ in range(3)])[None]
    keys = address(torch.zeros(1, 192, 2, 64, dtype=dtype), slots)
    values = torch.randn(1, 192, 2, 16).to(dtype)
    gates = {"log_decay": torch.zeros(1, 192, 2), "beta": torch.ones(1, 192, 2)}
    state = ops.write(keys, values, **gates).final_state
    want = torch.zeros_like(state)
    want[:, :, slots[0, 128:]] = values[:, 128:].float().transpose(1, 2)
    assert float((state - want).abs().max()) < 1e-5  # issue 5 asks for it


def test_shift_pairs_a_token_with_the_address_of_the_one_before() -> None:
    """To the letter of the definition, with the gates, past a document's start and out of a carried token."""
    now = Written(torch.randn(1, 6, 2, 4), torch.rand(1, 6, 2), -torch.rand(1, 6, 2))
    documents = torch.tensor([[3, 3, 3, 4, 4, 5]])
    for before in (None, Written(*(torch.randn_like(part[:, :1]) for part in now))):
        shifted = shift(now, before, documents)
        for i, (mine, moved) in enumerate(zip(now, shifted, strict=True)):
            carried = torch.zeros_like(mine[:, 0]) if before is None else before[i][:, 0]
            nothing = torch.zeros_like(mine[:, 0])
            want = [carried, mine[:, 0], mine[:, 1], nothing, mine[:, 3], nothing]
            assert torch.equal(moved, torch.stack(want, 1))


def test_a_shifted_layer_writes_the_value_of_the_next_token_and_asks_as_ever() -> None:
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.manual_seed(1)
    plain = _caught(_layer(), x, _context(7))
    torch.manual_seed(1)
    shifted = _caught(_layer(shifted_value=True), x, _context(7))
    for name in ("hook_q", "hook_v"):
        assert torch.equal(shifted[name], plain[name])
    for name in ("hook_k", "hook_beta", "hook_log_decay"):
        assert torch.equal(shifted[name][:, 1:], plain[name][:, :-1])
        assert not shifted[name][:, 0].any()


def test_a_marker_recites_what_followed_it() -> None:
    """Slots and shift together: seen again, a marker answers with the value of the token after it, exactly."""
    layer = _layer(shifted_value=True, conv_width=0, query="key", beta_floor=1.0, decay_bias=60.0, own_read_scale=1.0)
    slots = torch.tensor([[0, 2, 1, 3, 0], [1, 3, 0, 2, 1]])  # marker, token, other marker, other token, marker
    read: list[Tensor] = []
    layer.out_norm.register_forward_pre_hook(lambda _m, given: read.append(given[0]))
    values = _caught(layer, torch.randn(2, 5, 12, dtype=torch.float64), _context(5, slots=slots))["hook_v"]
    torch.testing.assert_close(read[0][:, 4], values[:, 1])
    assert not torch.isclose(read[0][:, 4], values[:, 4]).any(), "and not its own"
