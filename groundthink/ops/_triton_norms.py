"""RMS norms as Triton kernels: of the residual stream (with the addition before it) and of a read under its gate.

Backward reads whole rows anyway, so it recomputes 1/rms and nothing but the inputs is kept. Gradients of the weight
are summed over the rows of each program in float32 and then over programs: in a fixed order, without atomics.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers, numbers and compile-time constants: Triton's compiler types them)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundthink.ops import _fused

LENGTHS = ("rows", "share")  # no length compiles a kernel anew, not even 1 or a multiple of 16
PROGRAMS = 792  # of a backward kernel: six on each of 132 multiprocessors, all resident at once, with equal shares


@triton.jit(do_not_specialize=LENGTHS)
def norm_forward_kernel(
    x, branch, weight, total, out, rows, D, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """out = rms_norm(x) * weight, of x + branch where there is one, which then goes to `total`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    ok = (row < rows) & (c < D)
    at = row * D + c
    a = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        a += tl.load(branch + at, mask=ok, other=0.0).to(tl.float32)
        rounded = a.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=ok)
        a = rounded.to(tl.float32)  # what backward will see
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(a * a, 1) / D + eps)
    tl.store(out + at, (a * rstd[:, None] * w).to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=LENGTHS)
def norm_backward_kernel(
    d_out, d_total, total, weight, dx, d_branch, d_weight, rows, share, D, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_D_TOTAL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """dx, once more in the branch's dtype where that differs, and d_weight [programs,D] float32."""
    pid = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(pid * share, tl.minimum((pid + 1) * share, rows), ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        ok = (row < tl.minimum((pid + 1) * share, rows)) & (c < D)
        at = row * D + c
        a = tl.load(total + at, mask=ok, other=0.0).to(tl.float32)
        g = tl.load(d_out + at, mask=ok, other=0.0).to(tl.float32)
        rstd = (1 / tl.sqrt(tl.sum(a * a, 1) / D + eps))[:, None]
        n = a * rstd
        gw = g * w
        d = (gw - n * (tl.sum(gw * n, 1) / D)[:, None]) * rstd
        if HAS_D_TOTAL:
            d += tl.load(d_total + at, mask=ok, other=0.0).to(tl.float32)
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=ok)
        if SPLIT:
            tl.store(d_branch + at, d.to(d_branch.dtype.element_ty), mask=ok)
        acc += g * n
    tl.store(d_weight + pid * D + tl.arange(0, BLOCK), tl.sum(acc, 0), mask=tl.arange(0, BLOCK) < D)


@triton.jit(do_not_specialize=LENGTHS)
def gated_forward_kernel(x, gate, weight, out, rows, D, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = rms_norm(x) * weight * silu(gate), row by row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    ok = (row < rows) & (c < D)
    at = row * D + c
    a = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    z = tl.load(gate + at, mask=ok, other=0.0).to(tl.float32)
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(a * a, 1) / D + eps)
    y = a * rstd[:, None] * w * (z * tl.sigmoid(z))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=LENGTHS)
def gated_backward_kernel(
    d_out, x, gate, weight, dx, d_gate, d_weight, rows, share, D, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dx, d_gate, and d_weight [programs,D] float32."""
    pid = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(pid * share, tl.minimum((pid + 1) * share, rows), ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        ok = (row < tl.minimum((pid + 1) * share, rows)) & (c < D)
        at = row * D + c
        a = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
        z = tl.load(gate + at, mask=ok, other=0.0).to(tl.float32)
        g = tl.load(d_out + at, mask=ok, other=0.0).to(tl.float32)
        rstd = (1 / tl.sqrt(tl.sum(a * a, 1) / D + eps))[:, None]
        n = a * rstd
        sig = tl.sigmoid(z)
        dz = g * n * w * sig * (1 + z * (1 - sig))
        tl.store(d_gate + at, dz.to(d_gate.dtype.element_ty), mask=ok)
        g *= z * sig
        gw = g * w
        d = (gw - n * (tl.sum(gw * n, 1) / D)[:, None]) * rstd
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=ok)
        acc += g * n
    tl.store(d_weight + pid * D + tl.arange(0, BLOCK), tl.sum(acc, 0), mask=tl.arange(0, BLOCK) < D)


def _tile(size: int) -> dict[str, int]:
    """Rows of `size` numbers: at least 1,024 numbers a program and step, 8 a thread."""
    block = triton.next_power_of_2(size)
    return {"ROWS": max(1, 1024 // block), "BLOCK": block, "num_warps": min(16, max(4, block // 256))}


def _share(rows: int, tile: dict[str, int]) -> tuple[int, int]:
    """Programs of a backward kernel, and rows of each: whole steps."""
    steps = max(1, triton.cdiv(rows, tile["ROWS"]))
    share = triton.cdiv(steps, PROGRAMS) * tile["ROWS"]
    return triton.cdiv(rows, share), share


def _forward(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(norm in `dtype`, x + branch in their common dtype or empty without a branch)."""
    size = weight.shape[0]
    rows, tile = x.numel() // size, _tile(size)
    out = x.new_empty(x.shape, dtype=dtype)
    common = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    total = x.new_empty(0 if branch is None else x.shape, dtype=common)
    norm_forward_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        x, branch, weight, total, out, rows, size, eps, ADD=branch is not None, **tile
    )
    return out, total


def _backward(
    d_out: Tensor | None,
    d_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the branch (empty where x's serves both) and of the weight."""
    size = weight.shape[0]
    rows, tile = total.numel() // size, _tile(size)
    d_out = torch.zeros_like(total, dtype=dtype) if d_out is None else d_out
    dx = total.new_empty(total.shape, dtype=x_dtype)
    split = branch_dtype != x_dtype
    d_branch = total.new_empty(total.shape if split else (0,), dtype=branch_dtype)
    programs, share = _share(rows, tile)
    d_weight = total.new_empty(programs, size, dtype=torch.float32)
    norm_backward_kernel[(programs,)](
        d_out, d_total, total, weight, dx, d_branch, d_weight, rows, share, size, eps,
        HAS_D_TOTAL=d_total is not None, SPLIT=split, **tile,
    )  # fmt: skip
    return dx, d_branch, d_weight.sum(0).to(weight.dtype)


def _fake(x, branch, weight, eps, dtype):
    common = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(0 if branch is None else x.shape, dtype=common)


def _fake_backward(d_out, d_total, total, weight, eps, dtype, x_dtype, branch_dtype):
    split = branch_dtype != x_dtype
    return (
        total.new_empty(total.shape, dtype=x_dtype),
        total.new_empty(total.shape if split else (0,), dtype=branch_dtype),
        weight.new_empty(weight.shape),
    )


def _save(inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    x, branch, weight, eps, dtype = inputs
    dtypes = (x.dtype, x.dtype if branch is None else branch.dtype)
    return (x if branch is None else output[1], weight), (eps, dtype, *dtypes, branch is not None)


def _gradients(constants: tuple[Any, ...], found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    dx, d_branch, d_weight = found
    shared = dx if constants[-1] else None
    return dx, d_branch if d_branch.numel() else shared, d_weight, None, None


_norm = _fused.operator(
    "rms_norm", _forward, _backward, fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
    public=2, passes=0, told=4,
)  # fmt: skip


def add_rms_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(x + branch, its norm in `dtype`); without a branch x itself, whose other gradients then join in the kernel."""
    branch = None if branch is None else branch.contiguous()
    out, total = _norm(x.contiguous(), branch, weight, eps, dtype)
    return (x if branch is None and torch.compiler.is_compiling() else total), out


def _gated_forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> tuple[Tensor]:
    size = weight.shape[0]
    rows, tile = x.numel() // size, _tile(size)
    out = gate.new_empty(gate.shape, dtype=torch.promote_types(x.dtype, gate.dtype))
    gated_forward_kernel[(triton.cdiv(rows, tile["ROWS"]),)](x, gate, weight, out, rows, size, eps, **tile)
    return (out,)


def _gated_backward(
    d_out: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    size = weight.shape[0]
    rows, tile = x.numel() // size, _tile(size)
    dx, d_gate = x.new_empty(x.shape), gate.new_empty(gate.shape)
    programs, share = _share(rows, tile)
    d_weight = x.new_empty(programs, size, dtype=torch.float32)
    gated_backward_kernel[(programs,)](d_out, x, gate, weight, dx, d_gate, d_weight, rows, share, size, eps, **tile)
    return dx, d_gate, d_weight.sum(0).to(weight.dtype)


_gated = _fused.operator(
    "gated_rms_norm", _gated_forward, _gated_backward,
    fake=lambda x, gate, weight, eps: (gate.new_empty(gate.shape, dtype=torch.promote_types(x.dtype, gate.dtype)),),
    fake_backward=lambda d_out, x, gate, weight, eps: (
        x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)
    ),
    save=lambda inputs, output: (inputs[:3], inputs[3:]),
    gradients=lambda constants, found: (*found, None),
)  # fmt: skip


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rms_norm(x) * weight * silu(gate) in the gate's shape; rows are weight.shape[0] long."""
    return _gated(x.contiguous(), gate.contiguous(), weight, eps)[0]
