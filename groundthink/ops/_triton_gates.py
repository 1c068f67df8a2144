"""The delta rule's gates as Triton kernels: projection, bias and activation in one, and all gradients but the matrix's.

The forward products take float32 operands as three tf32 products, about 21 bits: gates act over thousands of tokens.
Backward knows the slopes of the activations from their results, so only those are kept, which the memory keeps anyway.
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

ROWS = 64  # tokens of a program


@triton.jit
def _softplus(z):
    """log(1 + exp(z)) without overflow, exact to float32 for very negative z as well."""
    e = tl.exp(-tl.abs(z))
    # log(1 + e) as torch's log1p has it: what 1 + e rounds away is put back by the ratio
    u = 1 + e
    tail = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))
    return tl.maximum(z, 0.0) + tail


@triton.jit(do_not_specialize=["rows"])
def gates_forward_kernel(
    x, weight, beta_bias, decay_bias, a_log, log_decay, beta, rows, D, H, beta_range,
    ROWS: tl.constexpr, HP: tl.constexpr, BLOCK: tl.constexpr, MAMBA: tl.constexpr,
):  # fmt: skip
    """log_decay and beta [rows,H] of ROWS tokens."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, HP)
    raw_decay = tl.zeros([ROWS, HP], tl.float32)
    raw_beta = tl.zeros([ROWS, HP], tl.float32)
    for first in range(0, D, BLOCK):
        c = first + tl.arange(0, BLOCK)
        a = tl.load(x + row[:, None] * D + c[None, :], mask=(row < rows)[:, None] & (c < D)[None, :], other=0.0)
        at = h[None, :] * D + c[:, None]
        ok = (h < H)[None, :] & (c < D)[:, None]
        a = a.to(tl.float32)
        raw_decay += tl.dot(a, tl.load(weight + at, mask=ok, other=0.0), input_precision="tf32x3")
        raw_beta += tl.dot(a, tl.load(weight + H * D + at, mask=ok, other=0.0), input_precision="tf32x3")
    raw_decay += tl.load(decay_bias + h, mask=h < H, other=0.0)[None, :]
    raw_beta += tl.load(beta_bias + h, mask=h < H, other=0.0)[None, :]
    if MAMBA:
        rate = tl.exp(tl.load(a_log + h, mask=h < H, other=0.0))[None, :]
        decay = -rate * _softplus(raw_decay)
    else:
        decay = -_softplus(-raw_decay)
    ok = (row < rows)[:, None] & (h < H)[None, :]
    tl.store(log_decay + row[:, None] * H + h[None, :], decay, mask=ok)
    tl.store(beta + row[:, None] * H + h[None, :], beta_range * tl.sigmoid(raw_beta), mask=ok)


@triton.jit
def _expm1(z):
    """exp(z) - 1 for z <= 0, without cancellation near 0."""
    series = z * (1 + z * (0.5 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120)))))
    return tl.where(z > -0.1, series, tl.exp(z) - 1)


@triton.jit
def _raw_gradients(d_log_decay, d_beta, log_decay, beta, at, ok, rate, beta_range, MAMBA: tl.constexpr):
    """Gradients of what goes into the activations, and of a_log; `rate` is exp(a_log)."""
    d_decay = tl.load(d_log_decay + at, mask=ok, other=0.0)
    decay = tl.load(log_decay + at, mask=ok, other=0.0)
    b = tl.load(beta + at, mask=ok, other=0.0)
    # softplus' = sigmoid = 1 - exp(-softplus), and log sigmoid' = 1 - sigmoid = 1 - exp(log sigmoid)
    if MAMBA:  # noqa: SIM108 (a compile-time choice)
        d_raw_decay = d_decay * rate * _expm1(decay / rate)
    else:
        d_raw_decay = -d_decay * _expm1(decay)
    d_raw_beta = tl.load(d_beta + at, mask=ok, other=0.0) * b * (1 - b / beta_range)
    return d_raw_decay, d_raw_beta, d_decay * decay


@triton.jit(do_not_specialize=["rows"])
def gates_backward_kernel(
    d_log_decay, d_beta, log_decay, beta, weight, a_log, dx, slopes, d_bias, rows, D, H, beta_range,
    ROWS: tl.constexpr, HP: tl.constexpr, BLOCK: tl.constexpr, MAMBA: tl.constexpr,
):  # fmt: skip
    """dx [rows,D]; slopes [rows,2*HP], the gradients before the activations; d_bias [programs,3,H] float32."""
    pid = tl.program_id(0).to(tl.int64)
    row = pid * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, HP)
    rate = tl.zeros([HP], tl.float32) + 1
    if MAMBA:
        rate = tl.exp(tl.load(a_log + h, mask=h < H, other=0.0))
    at = row[:, None] * H + h[None, :]
    ok = (row < rows)[:, None] & (h < H)[None, :]
    g_decay, g_beta, g_rate = _raw_gradients(
        d_log_decay, d_beta, log_decay, beta, at, ok, rate[None, :], beta_range, MAMBA
    )
    d_bias += pid * 3 * H
    tl.store(d_bias + h, tl.sum(g_decay, 0), mask=h < H)
    tl.store(d_bias + H + h, tl.sum(g_beta, 0), mask=h < H)
    tl.store(d_bias + 2 * H + h, tl.sum(g_rate, 0), mask=h < H)
    kind = dx.dtype.element_ty
    g_decay, g_beta = g_decay.to(kind), g_beta.to(kind)
    packed = slopes + row[:, None] * (2 * HP) + h[None, :]
    tl.store(packed, g_decay, mask=(row < rows)[:, None])
    tl.store(packed + HP, g_beta, mask=(row < rows)[:, None])
    for first in range(0, D, BLOCK):
        c = first + tl.arange(0, BLOCK)
        w = weight + h[:, None] * D + c[None, :]
        held = (h < H)[:, None] & (c < D)[None, :]
        d = tl.dot(g_decay, tl.load(w, mask=held, other=0.0).to(kind), input_precision="tf32x3")
        d += tl.dot(g_beta, tl.load(w + H * D, mask=held, other=0.0).to(kind), input_precision="tf32x3")
        tl.store(dx + row[:, None] * D + c[None, :], d.to(kind), mask=(row < rows)[:, None] & (c < D)[None, :])


def _padded(heads: int) -> int:
    """Heads of a tile: tensor cores take no fewer than 16."""
    return max(16, triton.next_power_of_2(heads))


def _forward(
    x: Tensor, weight: Tensor, beta_bias: Tensor, decay_bias: Tensor, a_log: Tensor | None, beta_range: float
) -> tuple[Tensor, Tensor]:
    heads, width = weight.shape[0] // 2, weight.shape[1]
    rows = x.numel() // width
    log_decay = weight.new_empty(*x.shape[:-1], heads)
    beta = weight.new_empty(*x.shape[:-1], heads)
    gates_forward_kernel[(triton.cdiv(rows, ROWS),)](
        x, weight, beta_bias, decay_bias, a_log, log_decay, beta, rows, width, heads, beta_range,
        ROWS=ROWS, HP=_padded(heads), BLOCK=64, MAMBA=a_log is not None, num_warps=4,
    )  # fmt: skip
    return log_decay, beta


def _backward(
    d_log_decay: Tensor | None,
    d_beta: Tensor | None,
    x: Tensor,
    weight: Tensor,
    a_log: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    beta_range: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, biases [2,H] (decay, beta) and a_log (empty without one)."""
    heads, width = weight.shape[0] // 2, weight.shape[1]
    rows = x.numel() // width
    d_log_decay = torch.zeros_like(beta) if d_log_decay is None else d_log_decay
    d_beta = torch.zeros_like(beta) if d_beta is None else d_beta
    programs, padded = triton.cdiv(rows, ROWS), _padded(heads)
    dx = x.new_empty(x.shape)
    slopes = x.new_empty(rows, 2 * padded)
    d_bias = weight.new_empty(programs, 3, heads)
    gates_backward_kernel[(programs,)](
        d_log_decay, d_beta, log_decay, beta, weight, a_log, dx, slopes, d_bias, rows, width, heads, beta_range,
        ROWS=ROWS, HP=padded, BLOCK=64, MAMBA=a_log is not None, num_warps=4,
    )  # fmt: skip
    d_weight = _fused.float32_product(slopes.t(), x.view(rows, width))
    if padded != heads:
        d_weight = torch.cat([d_weight[:heads], d_weight[padded : padded + heads]])
    sums = d_bias.sum(0)
    return dx, d_weight, sums[:2], weight.new_empty(0) if a_log is None else sums[2].clone()


def _fake(x, weight, beta_bias, decay_bias, a_log, beta_range):
    heads = weight.shape[0] // 2
    return weight.new_empty(*x.shape[:-1], heads), weight.new_empty(*x.shape[:-1], heads)


def _fake_backward(d_log_decay, d_beta, x, weight, a_log, log_decay, beta, beta_range):
    heads = weight.shape[0] // 2
    d_rate = weight.new_empty(0 if a_log is None else heads)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(2, heads), d_rate


def _save(inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    x, weight, _, _, a_log, beta_range = inputs
    return (x, weight, a_log, *output), (beta_range,)


def _gradients(constants: tuple[Any, ...], found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    dx, d_weight, biases, d_rate = found
    return dx, d_weight, biases[1], biases[0], d_rate if d_rate.numel() else None, None


_operator = _fused.operator(
    "delta_gates", _forward, _backward, fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
    public=2,
)  # fmt: skip


def delta_gates(
    x: Tensor,
    weight: Tensor,
    *,
    beta_bias: Tensor,
    decay_bias: Tensor,
    a_log: Tensor | None,
    beta_range: float,
) -> tuple[Tensor, ...]:
    """log_decay and beta, each x's shape with H for D, float32. All parameters float32; see the face."""
    return _operator(x.contiguous(), weight.contiguous(), beta_bias, decay_bias, a_log, beta_range)
