"""The effective attention is the recurrence, to the rounding of float64, and the well-known wrong one is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from groundthink import ops
from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM
from groundthink.probes.effective_attention import attention_of, effective_attention

Hybrid = Callable[..., HybridForCausalLM]
EXACT = 1e-10  # float64 sums of some hundred products of size 1


def inputs(seed: int, length: int, *, negative: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, length, 3, *shape, generator=generator, dtype=torch.float64)

    return {
        "keys": normalize(draw(8), dim=-1), "values": draw(5), "queries": normalize(draw(8), dim=-1),
        "log_decay": -draw().exp(), "beta": torch.sigmoid(draw()) * (2 if negative else 1),
    }  # fmt: skip


def by_recurrence(x: dict[str, Tensor], error: Literal["decayed", "raw"]) -> Tensor:
    given = {name: x[name] for name in ("log_decay", "beta")}
    return ops.write_and_read(x["keys"], x["values"], x["queries"], **given, error=error, backend="reference")[1]


def attention(x: dict[str, Tensor], error: Literal["decayed", "raw"]) -> Tensor:
    return effective_attention(x["keys"], x["queries"], log_decay=x["log_decay"], beta=x["beta"], error=error)


def weighted(m: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("bhts,bshv->bthv", m, values)


def without_delta(x: dict[str, Tensor]) -> Tensor:
    """The wrong form: gated linear attention, which forgets that a write erases."""
    total = x["log_decay"].cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).exp().tril()
    return 8**-0.5 * torch.einsum("bthk,bshk->bhts", x["queries"], x["keys"] * x["beta"][..., None]) * decay


@given(seed=st.integers(0, 2**31), length=st.integers(1, 70), error=st.sampled_from(["decayed", "raw"]))
@settings(deadline=None, max_examples=15, derandomize=True, database=None)
def test_it_is_the_read(seed: int, length: int, error: Literal["decayed", "raw"]) -> None:
    x = inputs(seed, length, negative=error == "decayed")
    m, read = attention(x, error), by_recurrence(x, error)
    assert float((weighted(m, x["values"]) - read).abs().max()) <= EXACT
    assert not m.triu(1).any(), "a weight of the future"


def test_a_total_decay_is_no_trouble() -> None:
    x = inputs(1, 40)
    x["log_decay"][:, 20] = -torch.inf
    m = attention(x, "decayed")
    assert float((weighted(m, x["values"]) - by_recurrence(x, "decayed")).abs().max()) <= EXACT
    assert not m[:, :, 20:, :20].any()


def test_the_wrong_forms_are_seen() -> None:
    x = inputs(2, 40)
    read = by_recurrence(x, "decayed")
    assert float((weighted(without_delta(x), x["values"]) - read).abs().max()) > 1e-2
    assert float((weighted(attention(x, "raw"), x["values"]) - read).abs().max()) > 1e-2


def test_an_overwritten_value_has_no_weight() -> None:
    """Writes in between are orthogonal: along any other key they would keep an echo of it, which M shows as well."""
    x = inputs(3, 30)
    x["log_decay"] *= 0.1
    key, between = x["keys"][:, 4:5], x["keys"][:, 5:12]
    x["keys"][:, 5:12] = normalize(between - key * (between * key).sum(-1, keepdim=True), dim=-1)
    x["keys"][:, 12] = x["keys"][:, 4]
    x["beta"][:, 12] = 1
    m = attention(x, "decayed")
    # What is left is rounding: a projection of a unit vector away from itself.
    assert float(m[:, :, 12:, 4].abs().max()) < 1e-15
    assert float(m[:, :, 11, 4].abs().max()) > 1e-6
    assert float(without_delta(x)[:, :, 12:, 4].abs().max()) > 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"error": "raw"}, {"n_value_heads": 4}, {"own_read_scale": 1.0, "read_scale": 0.5}]
)
def test_it_is_what_a_model_reads(hybrid: Hybrid, options: dict[str, Any]) -> None:
    """Against what the layers' own operator returns, for the writer and for both memories of a later layer."""
    model, ids = hybrid("GGS", read_sources="all", **options), torch.randint(64, (2, 30))
    values: dict[int, Tensor] = {}
    reads: list[Tensor] = []
    for i in (0, 1):
        mixer = model.blocks[i].mixer
        mixer.hook_v.register_forward_hook(lambda _m, _i, out, i=i: values.update({i: out.double()}))
        mixer.out_norm.register_forward_pre_hook(lambda _m, given: reads.append(given[0].double()))
    reader = model.blocks[2].mixer.reader
    reader.norm.register_forward_pre_hook(lambda _m, given: reads.append(given[0].double()))
    with torch.no_grad():
        model.prefill(ids)
    expected = dict(zip([(0, None), (1, None), (0, 2), (1, 2)], reads, strict=True))
    for (layer, later), read in expected.items():
        for head in range(read.shape[2]):
            m = attention_of(model, ids, layer=layer, head=head, reader=later)
            found = torch.einsum("bts,bsv->btv", m, values[layer][:, :, head])
            # The model computes in float32.
            torch.testing.assert_close(found, read[:, :, head], rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_line(hybrid: Hybrid) -> None:
    model, ids = hybrid("GGSA"), torch.randint(64, (2, 8))
    with pytest.raises(ConfigError, match="layer 2 does not read layer 0"):
        attention_of(model, ids, layer=0, head=0, reader=2)
    with pytest.raises(ConfigError, match="layer 3 has no mixer"):
        attention_of(model, ids, layer=3, head=0)
    with pytest.raises(ConfigError, match="no head 2"):
        attention_of(model, ids, layer=0, head=2)
    assert not any(module._forward_hooks for module in model.modules())
    x = inputs(1, 4)
    with pytest.raises(ValueError, match="do not belong together"):
        effective_attention(x["keys"], x["queries"][:, :3], log_decay=x["log_decay"], beta=x["beta"])
