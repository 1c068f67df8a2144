"""The delta rule's gates as Triton kernels: projection, bias and activation in one, and all their gradients in one.

The products take float32 operands as three tf32 products, about 21 bits: gates act over thousands of tokens. Backward
knows the slopes of the activations from their results, so only those are kept, which the memory keeps anyway.
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

ROWS = 64  # tokens of a tile
STRIPES = 64  # of tokens, each of which sums weight gradients in registers


@triton.jit
def _softplus(z):
    """log(1 + exp(z)) without overflow, exact to float32 for very negative z as well."""
    e = tl.exp(-tl.abs(z))
    # log(1 + e) as torch's log1p has it: what 1 + e rounds away is put back by the ratio
    u = 1 + e
    tail = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))
    return tl.maximum(z, 0.0) + tail


@triton.jit
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
    """Gradients of what goes into the activations; `rate` is exp(a_log)."""
    d_decay = tl.load(d_log_decay + at, mask=ok, other=0.0)
    decay = tl.load(log_decay + at, mask=ok, other=0.0)
    b = tl.load(beta + at, mask=ok, other=0.0)
    # softplus' = sigmoid = 1 - exp(-softplus), and log sigmoid' = 1 - sigmoid = 1 - exp(log sigmoid)
    if MAMBA:
        d_raw_decay = d_decay * rate * _expm1(decay / rate)
    else:
        d_raw_decay = -d_decay * _expm1(decay)
    d_raw_beta = tl.load(d_beta + at, mask=ok, other=0.0) * b * (1 - b / beta_range)
    return d_raw_decay, d_raw_beta, d_decay * decay


@triton.jit
def gates_backward_kernel(
    d_log_decay, d_beta, log_decay, beta, x, weight, a_log, dx, d_weight, d_bias, rows, share, D, H, beta_range, tiles,
    ROWS: tl.constexpr, HP: tl.constexpr, BLOCK: tl.constexpr, MAMBA: tl.constexpr,
):  # fmt: skip
    """dx; per stripe of tokens d_weight [stripes,2,H,D] and d_bias [stripes,3,H] (decay, beta, a_log) float32."""
    pid = tl.program_id(0).to(tl.int64)
    stripe, tile = pid // tiles, pid % tiles
    c = tile * BLOCK + tl.arange(0, BLOCK)
    h = tl.arange(0, HP)
    at_weight = h[:, None] * D + c[None, :]
    ok_weight = (h < H)[:, None] & (c < D)[None, :]
    w_decay = tl.load(weight + at_weight, mask=ok_weight, other=0.0)
    w_beta = tl.load(weight + H * D + at_weight, mask=ok_weight, other=0.0)
    rate = tl.zeros([HP], tl.float32) + 1
    if MAMBA:
        rate = tl.exp(tl.load(a_log + h, mask=h < H, other=0.0))
    dw_decay = tl.zeros([HP, BLOCK], tl.float32)
    dw_beta = tl.zeros([HP, BLOCK], tl.float32)
    bias_decay = tl.zeros([HP], tl.float32)
    bias_beta = tl.zeros([HP], tl.float32)
    d_rate = tl.zeros([HP], tl.float32)
    stop = tl.minimum((stripe + 1) * share, rows)
    for first in range(stripe * share, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        at = row[:, None] * H + h[None, :]
        ok = (row < stop)[:, None] & (h < H)[None, :]
        g_decay, g_beta, g_rate = _raw_gradients(
            d_log_decay, d_beta, log_decay, beta, at, ok, rate[None, :], beta_range, MAMBA
        )
        bias_decay += tl.sum(g_decay, 0)
        bias_beta += tl.sum(g_beta, 0)
        d_rate += tl.sum(g_rate, 0)
        at_x = row[:, None] * D + c[None, :]
        ok_x = (row < stop)[:, None] & (c < D)[None, :]
        d = tl.dot(g_decay, w_decay, input_precision="tf32x3") + tl.dot(g_beta, w_beta, input_precision="tf32x3")
        tl.store(dx + at_x, d.to(dx.dtype.element_ty), mask=ok_x)
        # the same gradients loaded the other way round: no product meets a transposition
        at = row[None, :] * H + h[:, None]
        ok = (row < stop)[None, :] & (h < H)[:, None]
        g_decay, g_beta, g_rate = _raw_gradients(
            d_log_decay, d_beta, log_decay, beta, at, ok, rate[:, None], beta_range, MAMBA
        )
        a = tl.load(x + at_x, mask=ok_x, other=0.0).to(tl.float32)
        dw_decay += tl.dot(g_decay, a, input_precision="tf32x3")
        dw_beta += tl.dot(g_beta, a, input_precision="tf32x3")
    d_weight += stripe * 2 * H * D
    tl.store(d_weight + at_weight, dw_decay, mask=ok_weight)
    tl.store(d_weight + H * D + at_weight, dw_beta, mask=ok_weight)
    if tile == 0:
        d_bias += stripe * 3 * H
        tl.store(d_bias + h, bias_decay, mask=h < H)
        tl.store(d_bias + H + h, bias_beta, mask=h < H)
        tl.store(d_bias + 2 * H + h, d_rate, mask=h < H)


def _forward(
    x: Tensor, weight: Tensor, beta_bias: Tensor, decay_bias: Tensor, a_log: Tensor | None, beta_range: float
) -> tuple[Tensor, Tensor]:
    heads, width = weight.shape[0] // 2, weight.shape[1]
    rows = x.numel() // width
    log_decay = weight.new_empty(*x.shape[:-1], heads)
    beta = weight.new_empty(*x.shape[:-1], heads)
    gates_forward_kernel[(triton.cdiv(rows, ROWS),)](
        x, weight, beta_bias, decay_bias, a_log, log_decay, beta, rows, width, heads, beta_range,
        ROWS=ROWS, HP=max(16, triton.next_power_of_2(heads)), BLOCK=64, MAMBA=a_log is not None, num_warps=4,
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
    share = triton.cdiv(triton.cdiv(rows, ROWS), STRIPES) * ROWS
    stripes = triton.cdiv(rows, share)
    dx = x.new_empty(x.shape)
    d_weight = weight.new_empty(stripes, 2 * heads, width)
    d_bias = weight.new_empty(stripes, 3, heads)
    padded = max(16, triton.next_power_of_2(heads))
    block = 128 if padded <= 32 else 64
    tiles = triton.cdiv(width, block)
    gates_backward_kernel[(stripes * tiles,)](
        d_log_decay, d_beta, log_decay, beta, x, weight, a_log, dx, d_weight, d_bias, rows, share, width, heads,
        beta_range, tiles, ROWS=ROWS, HP=padded, BLOCK=block, MAMBA=a_log is not None, num_warps=4,
    )  # fmt: skip
    sums = d_bias.sum(0)
    return dx, d_weight.sum(0), sums[:2], weight.new_empty(0) if a_log is None else sums[2].clone()


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
