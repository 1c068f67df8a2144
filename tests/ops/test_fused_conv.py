"""The convolution kernels (SiLU and L2 norm of heads inside) through Triton's interpreter, judged by float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import assert_close, errors, interpreted, outcome
from torch import Tensor

from groundthink import ops
from groundthink.ops import _fused

__all__ = ["interpreted"]  # a fixture of every test here
BAR = 2e-6  # float32: some tens of roundings of 6e-8, in sums of at most 300 terms


@pytest.fixture(autouse=True)
def short_walks(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs walk 8 tokens, so that a few tokens have many borders; one test walks as far as on a GPU."""
    monkeypatch.setattr(_fused.kernels("conv"), "STEPS", 8)


def inputs(
    length: int = 9, *, width: int = 4, batch: int = 1, parts: int = 2, key_dim: int = 8, value_dim: int = 4
) -> dict[str, Tensor]:
    """Two key heads and three value heads."""
    g = torch.Generator().manual_seed(length + width)
    channels = parts * 2 * key_dim + 3 * value_dim
    return {
        "x": torch.randn(batch, length, channels, generator=g),
        "weight": torch.randn(channels, width, generator=g),
        "state": torch.randn(batch, width - 1, channels, generator=g),
    }


def run(parts: int = 2, key_dim: int = 8, value_dim: int = 4, documents: Tensor | None = None) -> Any:
    def function(x: Tensor, weight: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
        heads, after = ops.conv_heads(
            x, weight, key_parts=parts, key_heads=2, key_dim=key_dim, value_dim=value_dim, state=state,
            documents=documents,
        )  # fmt: skip
        assert after is not None
        return (*heads, after)

    return function


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 11])
def test_lengths(length: int) -> None:
    assert_close(run(1), inputs(length, parts=1), BAR)


def test_walks_as_long_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused.kernels("conv"), "STEPS", 64)
    assert_close(run(1), inputs(66, parts=1), BAR)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_widths(width: int) -> None:
    assert_close(run(), inputs(7, width=width, batch=2), BAR)


def test_one_tap() -> None:
    x = inputs(5, width=1)
    del x["state"]  # it would be empty
    assert_close(run(), x, BAR)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(6, 10), (64, 128), (128, 64), (256, 5)])
def test_sizes_of_heads(key_dim: int, value_dim: int) -> None:
    """Some are no powers of two, some tiles hold several heads, some part of one."""
    x = inputs(6, key_dim=key_dim, value_dim=value_dim)
    assert_close(run(key_dim=key_dim, value_dim=value_dim), x, BAR)


@pytest.mark.parametrize("with_state", [False, True])
def test_documents(with_state: bool) -> None:
    """Borders at the start, inside and at the end of what a program walks; one token long, two, and longer."""
    starts = torch.zeros(2, 12, dtype=torch.int32)
    starts[0, [1, 2, 4, 7, 8, 11]] = 1
    starts[1, 6] = 5
    x = inputs(12, batch=2, parts=1)
    if not with_state:
        del x["state"]
    assert_close(run(1, documents=starts.cumsum(1)), x, BAR)


def test_a_view_of_wider_rows() -> None:
    x = inputs(6, batch=2)
    wide = torch.cat([x["x"], torch.full_like(x["x"], float("nan"))], -1)
    view = wide[..., : x["x"].shape[2]]
    plain = run()(**x)
    for got, want in zip(run()(view, x["weight"], x["state"]), plain, strict=True):
        assert torch.equal(got, want)
    turned = x["x"].mT.contiguous().mT
    assert turned.stride(2) != 1
    for got, want in zip(run()(turned, x["weight"], x["state"]), plain, strict=True):
        assert torch.equal(got, want)


def test_a_zero_head_is_finite() -> None:
    x = inputs(6)
    x["x"][:, :, :8] = 0
    x["state"][:, :, :8] = 0
    found = outcome(run(), x, torch.float32)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    assert float(found["out0"][:, :, 0].abs().max()) == 0


def test_outputs_nobody_uses() -> None:
    """Gradients that never come are zeros, not what lay in memory."""

    def only_values(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return (run()(x, weight, state)[2],)

    assert_close(only_values, inputs(6), BAR)


def test_whole_is_the_parts_in_a_row() -> None:
    x = inputs(11)
    whole = run()(**x)
    first = run()(x["x"][:, :4], x["weight"], x["state"])
    second = run()(x["x"][:, 4:], x["weight"], first[-1])
    for a, b, c in zip(first[:-1], second[:-1], whole[:-1], strict=True):
        torch.testing.assert_close(torch.cat([a, b], 1), c, rtol=0, atol=1e-6)  # norms of order 1, some roundings
    assert torch.equal(second[-1], whole[-1])


def test_no_state_kept_when_nobody_asks() -> None:
    x = inputs(5)
    _, after = ops.conv_heads(
        x["x"], x["weight"], key_parts=2, key_heads=2, key_dim=8, value_dim=4, keep_state=False
    )  # fmt: skip
    assert after is None


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that ignore documents, and kernels told one step too many, are caught by the same comparison."""
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    x, module = inputs(9), _fused.kernels("conv")
    truth = outcome(run(documents=documents), x, torch.float64)
    blind = outcome(run(), x, torch.float32)
    assert max(errors(blind, truth).values()) > 0.1
    x = inputs(15)
    truth = outcome(run(), x, torch.float64)
    real = module._shape
    monkeypatch.setattr(module, "_shape", lambda *a: real(*a[:-1], 8))  # backward then leaves three tokens undone
    found = outcome(run(), x, torch.float32)
    assert not max(errors(found, truth).values()) < 0.1


@pytest.mark.parametrize(("key_dim", "value_dim"), [(8, 5), (100, 4)])
def test_channels_that_do_not_fit_are_refused(key_dim: int, value_dim: int) -> None:
    x = inputs()
    with pytest.raises(ValueError, match="channels are not"):
        ops.conv_heads(x["x"], x["weight"], key_parts=2, key_heads=2, key_dim=key_dim, value_dim=value_dim)
