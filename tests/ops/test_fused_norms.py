"""The norms' kernels through Triton's interpreter, judged by plain torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import assert_close, errors, interpreted, outcome
from torch import Tensor

from groundthink import ops
from groundthink.ops import _fused

__all__ = ["interpreted"]  # a fixture of every test here
BAR = 1e-6  # float32: some tens of roundings of 6e-8


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 3, 48), (3, 7, 100), (1, 2, 768), (1, 1, 4096)])
@pytest.mark.parametrize("joined", [False, True])
def test_add_rms_norm(shape: tuple[int, ...], joined: bool) -> None:
    """Both results have consumers, so both gradients meet in the kernel."""
    x = {"x": numbers(*shape), "weight": numbers(shape[-1], seed=1) + 2}
    if joined:
        x["branch"] = numbers(*shape, seed=2)

    def function(x: Tensor, weight: Tensor, branch: Tensor | None = None) -> tuple[Tensor, ...]:
        return ops.add_rms_norm(x, branch, weight, eps=1e-6)

    assert_close(function, x, BAR)


@pytest.mark.parametrize("which", [0, 1])
def test_one_result_alone(which: int) -> None:
    x = {"x": numbers(2, 3, 48), "branch": numbers(2, 3, 48, seed=1), "weight": numbers(48, seed=2)}

    def function(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (ops.add_rms_norm(x, branch, weight, eps=1e-6)[which] + 0 * weight.sum(),)

    assert_close(function, x, BAR)


def test_more_rows_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of a backward kernel takes several steps, and the last one fewer rows."""
    monkeypatch.setattr(_fused.kernels("norms"), "PROGRAMS", 3)
    rows = numbers(1, 515, 16)
    assert_close(lambda x, w: (ops.rms_norm(x, w, eps=1e-6),), {"x": rows, "w": numbers(16)}, BAR)
    gated = {"x": numbers(1, 515, 2, 8), "gate": rows, "w": numbers(8)}
    assert_close(lambda x, gate, w: (ops.gated_rms_norm(x, gate, w, eps=1e-6),), gated, BAR)


@pytest.mark.parametrize("heads", [(1, 1, 1, 16), (2, 5, 3, 24), (1, 17, 2, 128), (1, 2, 1, 7)])
def test_gated_rms_norm(heads: tuple[int, ...]) -> None:
    batch, length, number, size = heads
    x = {"x": numbers(*heads), "gate": numbers(batch, length, number * size, seed=1), "weight": numbers(size) + 1}
    assert_close(lambda x, gate, weight: (ops.gated_rms_norm(x, gate, weight, eps=1e-6),), x, BAR)


def test_views() -> None:
    x, gate, weight = numbers(2, 3, 48), numbers(2, 3, 96, seed=1), numbers(8)
    turned = x.mT.contiguous().mT
    assert torch.equal(ops.rms_norm(turned, numbers(48), eps=1e-6), ops.rms_norm(x, numbers(48), eps=1e-6))
    heads = x.unflatten(-1, (6, 8))
    half = ops.gated_rms_norm(heads, gate[..., 48:], weight, eps=1e-6)
    assert torch.equal(half, ops.gated_rms_norm(heads, gate[..., 48:].contiguous(), weight, eps=1e-6))


def test_dtypes_of_a_mixed_stream() -> None:
    """A float32 stream and a bfloat16 branch: the sum stays float32, each gradient has its input's dtype."""
    x, branch = numbers(2, 3, 48).requires_grad_(), numbers(2, 3, 48, seed=1).bfloat16().requires_grad_()
    weight = numbers(48, seed=2).requires_grad_()
    total, out = ops.add_rms_norm(x, branch, weight, eps=1e-6)
    assert (total.dtype, out.dtype) == (torch.float32, torch.float32)
    assert torch.equal(total, x + branch)
    dx, d_branch, _ = torch.autograd.grad((total * out).sum(), [x, branch, weight])
    assert (dx.dtype, d_branch.dtype) == (torch.float32, torch.bfloat16)
    assert float((dx - d_branch).abs().max() / dx.abs().max()) < 2**-7  # the interpreter cuts where a GPU rounds


def test_autocast_sets_the_norms_dtype() -> None:
    x = numbers(2, 3, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, out = ops.add_rms_norm(x, None, numbers(48), eps=1e-6)
    assert total.dtype == torch.float32
    assert out.dtype == torch.bfloat16


def test_zero_rows_are_finite() -> None:
    x = {"x": torch.zeros(1, 2, 1, 16), "gate": numbers(1, 2, 16), "weight": numbers(16)}
    found = outcome(lambda x, gate, weight: (ops.gated_rms_norm(x, gate, weight, eps=1e-6),), x, torch.float32)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward that forgets the stream's own gradient, and a share of rows too small, are caught."""
    module: Any = _fused.kernels("norms")
    x = {"x": numbers(2, 3, 48), "weight": numbers(48, seed=2)}

    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        total, out = ops.add_rms_norm(x, None, weight, eps=1e-6)
        return total, out

    truth = outcome(function, x, torch.float64)

    def forgets(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return x.detach(), ops.rms_norm(x, weight, eps=1e-6)

    assert max(errors(outcome(forgets, x, torch.float32), truth).values()) > 0.1
    monkeypatch.setattr(module, "_share", lambda rows, tile: (1, 5))
    assert not max(errors(outcome(function, x, torch.float32), truth).values()) < 0.01
