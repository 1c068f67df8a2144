"""Short causal convolution, SiLU and the L2 norm of heads as one Triton kernel each way.

A program walks along time with the last three inputs of its channels in registers, so every number is read once; the
backward walk recomputes the forward one and carries the last three gradients as well. Filters shorter than four taps
are padded with zeros in registers.
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

WIDEST = 4  # taps that the kernels hold in registers
REGISTERS = 168  # of a backward program: as few as spill nothing, so that twelve share a multiprocessor
LENGTHS = ("T", "chunks")  # no length compiles a kernel anew, not even 1 or a multiple of 16
STEPS = 64  # tokens a program walks; backward finishes three fewer, whose later neighbours it has seen


@triton.jit
def _place(pid, chunks, CK, CV, K: tl.constexpr, KP: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr):
    """Row, chunk, part, channels inside the part [HEADS,KP], which of them exist, and the part's width and offset."""
    tiles_key = tl.cdiv(CK, HEADS * K)
    tiles = PARTS * tiles_key + tl.cdiv(CV, HEADS * KP)
    tile = pid % tiles
    part = tl.minimum(tile // tiles_key, PARTS)
    is_key = part < PARTS
    inside = tile - part * tiles_key
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, KP)[None, :]
    if KP == K:
        c = inside * (HEADS * KP) + head * KP + channel
        ok = c < tl.where(is_key, CK, CV)
    else:
        c = inside * HEADS * tl.where(is_key, K, KP) + head * tl.where(is_key, K, KP) + channel
        ok = (c < tl.where(is_key, CK, CV)) & ((channel < K) | (part == PARTS))
    row = pid // tiles
    return row // chunks, row % chunks, part, is_key, c, ok, tl.where(is_key, CK, CV), part * CK


@triton.jit
def _tap(weight, c, ok, BACK: tl.constexpr, W: tl.constexpr):
    """The filter's weight of the input `BACK` tokens ago."""
    w = tl.zeros(c.shape, tl.float32)
    if BACK < W:
        w = tl.load(weight + c * W + (W - 1 - BACK), mask=ok, other=0.0).to(tl.float32)
    return w


@triton.jit
def _row(x, t, c, ok, stop, sxt):
    """Inputs of token t, zero from `stop` on; in their own dtype, which takes fewer registers until they are used."""
    return tl.load(x + t * sxt + c, mask=ok & (t < stop), other=0.0)


@triton.jit
def _past(x, state, t, c, ok, sxt, sst, W: tl.constexpr, HAS_STATE: tl.constexpr):
    """Inputs of a token that may lie before the segment."""
    row = tl.load(x + t * sxt + c, mask=ok & (t >= 0), other=0.0).to(tl.float32)
    if HAS_STATE:
        held = ok & (t < 0) & (t >= 1 - W)
        row += tl.load(state + (t + W - 1) * sst + c, mask=held, other=0.0).to(tl.float32)
    return row


@triton.jit
def _same(documents, t, u, T):
    """Whether tokens t and u belong to one document; what lies before the segment belongs to its first."""
    first = tl.load(documents + tl.minimum(tl.maximum(t, 0), T - 1))
    return first == tl.load(documents + tl.minimum(tl.maximum(u, 0), T - 1))


@triton.jit
def _seen(documents, t, T, x1, x2, x3, HAS_DOCS: tl.constexpr):
    """The three inputs before token t, without those of other documents."""
    if HAS_DOCS:
        x1 = tl.where(_same(documents, t, t - 1, T), x1, 0.0)
        x2 = tl.where(_same(documents, t, t - 2, T), x2, 0.0)
        x3 = tl.where(_same(documents, t, t - 3, T), x3, 0.0)
    return x1, x2, x3


@triton.jit
def _head(documents, t, T, x0, x1, x2, x3, w0, w1, w2, w3, is_key, HAS_DOCS: tl.constexpr):
    """SiLU of the convolution at token t, over its norm for keys and queries."""
    x1, x2, x3 = _seen(documents, t, T, x1, x2, x3, HAS_DOCS)
    z = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    s = z * tl.sigmoid(z)
    norm = tl.maximum(tl.sqrt(tl.sum(s * s, 1)), 1e-12)[:, None]
    return s / tl.where(is_key, norm, 1.0)


@triton.jit(do_not_specialize=LENGTHS)
def conv_forward_kernel(
    x, weight, state, documents, q, k, v, T, chunks, CK, CV, sxb, sxt,
    W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr,
    STEPS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DOCS: tl.constexpr,
):  # fmt: skip
    """x [B,T,C] with rows of stride sxt to queries, keys [B,T,CK] and values [B,T,CV]."""
    pid = tl.program_id(0).to(tl.int64)
    b, chunk, part, is_key, c, ok, width, offset = _place(pid, chunks, CK, CV, K, KP, HEADS, PARTS)
    if part == PARTS:
        out = v
    elif part == PARTS - 1:
        out = k
    else:
        out = q
    total = PARTS * CK + CV
    x += b * sxb + offset
    weight += offset * W
    if HAS_STATE:
        state += b * (W - 1) * total + offset
    if HAS_DOCS:
        documents += b * T
    out += b * T * width
    w0, w1 = _tap(weight, c, ok, 0, W), _tap(weight, c, ok, 1, W)
    w2, w3 = _tap(weight, c, ok, 2, W), _tap(weight, c, ok, 3, W)
    start = chunk * STEPS
    stop = tl.minimum(start + STEPS, T)
    h1 = _past(x, state, start - 1, c, ok, sxt, total, W, HAS_STATE)
    h2 = _past(x, state, start - 2, c, ok, sxt, total, W, HAS_STATE)
    h3 = _past(x, state, start - 3, c, ok, sxt, total, W, HAS_STATE)
    r0, r1 = _row(x, start, c, ok, stop, sxt), _row(x, start + 1, c, ok, stop, sxt)
    r2, r3 = _row(x, start + 2, c, ok, stop, sxt), _row(x, start + 3, c, ok, stop, sxt)
    for t in range(start, stop, 4):
        x0, x1, x2, x3 = r0.to(tl.float32), r1.to(tl.float32), r2.to(tl.float32), r3.to(tl.float32)
        # the next four rows are on their way while these four are worked on
        r0, r1 = _row(x, t + 4, c, ok, stop, sxt), _row(x, t + 5, c, ok, stop, sxt)
        r2, r3 = _row(x, t + 6, c, ok, stop, sxt), _row(x, t + 7, c, ok, stop, sxt)
        y0 = _head(documents, t, T, x0, h1, h2, h3, w0, w1, w2, w3, is_key, HAS_DOCS)
        y1 = _head(documents, t + 1, T, x1, x0, h1, h2, w0, w1, w2, w3, is_key, HAS_DOCS)
        y2 = _head(documents, t + 2, T, x2, x1, x0, h1, w0, w1, w2, w3, is_key, HAS_DOCS)
        y3 = _head(documents, t + 3, T, x3, x2, x1, x0, w0, w1, w2, w3, is_key, HAS_DOCS)
        kind = out.dtype.element_ty
        tl.store(out + t * width + c, y0.to(kind), mask=ok)
        tl.store(out + (t + 1) * width + c, y1.to(kind), mask=ok & (t + 1 < stop))
        tl.store(out + (t + 2) * width + c, y2.to(kind), mask=ok & (t + 2 < stop))
        tl.store(out + (t + 3) * width + c, y3.to(kind), mask=ok & (t + 3 < stop))
        h1, h2, h3 = x3, x2, x1


@triton.jit
def _walk(
    documents, dx, d_state, t, start, T, x0, x1, x2, x3, dy, z1, z2, z3, w0, w1, w2, w3, a0, a1, a2, a3,
    c, ok, total, is_key, W: tl.constexpr, STEPS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DOCS: tl.constexpr,
):  # fmt: skip
    """Gradient dz of the convolution at token t; finishes the input's gradient three tokens earlier.

    z1, z2, z3 are dz of the three tokens before t; returns dz and the weight gradients so far.
    """
    x1, x2, x3 = _seen(documents, t, T, x1, x2, x3, HAS_DOCS)
    z = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    gate = tl.sigmoid(z)
    s = z * gate
    norm = tl.sqrt(tl.sum(s * s, 1))[:, None]
    inverse = 1 / tl.maximum(norm, 1e-12)
    along = tl.where(norm > 1e-12, tl.sum(s * dy, 1)[:, None] * inverse * inverse, 0.0)
    ds = tl.where(is_key, (dy - s * along) * inverse, dy)
    dz = ds * gate * (1 + z * (1 - gate))
    own = t < start + STEPS - 3
    a0 += tl.where(own, dz * x0, 0.0)
    a1 += tl.where(own, dz * x1, 0.0)
    a2 += tl.where(own, dz * x2, 0.0)
    a3 += tl.where(own, dz * x3, 0.0)
    u = t - 3
    m0, m1, m2 = dz, z1, z2
    if HAS_DOCS:
        m2 = tl.where(_same(documents, u, u + 1, T), m2, 0.0)
        m1 = tl.where(_same(documents, u, u + 2, T), m1, 0.0)
        m0 = tl.where(_same(documents, u, u + 3, T), m0, 0.0)
    d = w0 * z3 + w1 * m2 + w2 * m1 + w3 * m0
    tl.store(dx + u * total + c, d.to(dx.dtype.element_ty), mask=ok & (u >= start) & (u < T))
    if HAS_STATE:
        before = ok & (u < 0) & (u >= 1 - W)
        tl.store(d_state + (u + W - 1) * total + c, d.to(d_state.dtype.element_ty), mask=before)
    return dz, a0, a1, a2, a3


@triton.jit(do_not_specialize=LENGTHS)
def conv_backward_kernel(
    x, weight, state, documents, dq, dk, dv, dx, d_weight, d_state, T, chunks, CK, CV, sxb, sxt,
    W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr,
    STEPS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DOCS: tl.constexpr,
):  # fmt: skip
    """Gradients dx [B,T,C], d_state [B,W-1,C], and per program d_weight [B*chunks,W,C] float32, latest input first."""
    pid = tl.program_id(0).to(tl.int64)
    b, chunk, part, is_key, c, ok, width, offset = _place(pid, chunks, CK, CV, K, KP, HEADS, PARTS)
    if part == PARTS:
        dy = dv
    elif part == PARTS - 1:
        dy = dk
    else:
        dy = dq
    total = PARTS * CK + CV
    x += b * sxb + offset
    weight += offset * W
    if HAS_STATE:
        state += b * (W - 1) * total + offset
        d_state += b * (W - 1) * total + offset
    if HAS_DOCS:
        documents += b * T
    dy += b * T * width
    dx += b * T * total + offset
    w0, w1 = _tap(weight, c, ok, 0, W), _tap(weight, c, ok, 1, W)
    w2, w3 = _tap(weight, c, ok, 2, W), _tap(weight, c, ok, 3, W)
    start = chunk * (STEPS - 3)
    stop = tl.minimum(start + STEPS, T)
    h1 = _past(x, state, start - 1, c, ok, sxt, total, W, HAS_STATE)
    h2 = _past(x, state, start - 2, c, ok, sxt, total, W, HAS_STATE)
    h3 = _past(x, state, start - 3, c, ok, sxt, total, W, HAS_STATE)
    r0, r1 = _row(x, start, c, ok, stop, sxt), _row(x, start + 1, c, ok, stop, sxt)
    r2, r3 = _row(x, start + 2, c, ok, stop, sxt), _row(x, start + 3, c, ok, stop, sxt)
    q0, q1 = _row(dy, start, c, ok, stop, width), _row(dy, start + 1, c, ok, stop, width)
    q2, q3 = _row(dy, start + 2, c, ok, stop, width), _row(dy, start + 3, c, ok, stop, width)
    z1 = tl.zeros(c.shape, tl.float32)
    z2, z3 = z1, z1
    a0, a1, a2, a3 = z1, z1, z1, z1
    for t in range(start, tl.minimum(start + STEPS, T + 3), 4):
        x0, x1, x2, x3 = r0.to(tl.float32), r1.to(tl.float32), r2.to(tl.float32), r3.to(tl.float32)
        g0, g1, g2, g3 = q0.to(tl.float32), q1.to(tl.float32), q2.to(tl.float32), q3.to(tl.float32)
        r0, r1 = _row(x, t + 4, c, ok, stop, sxt), _row(x, t + 5, c, ok, stop, sxt)
        r2, r3 = _row(x, t + 6, c, ok, stop, sxt), _row(x, t + 7, c, ok, stop, sxt)
        q0, q1 = _row(dy, t + 4, c, ok, stop, width), _row(dy, t + 5, c, ok, stop, width)
        q2, q3 = _row(dy, t + 6, c, ok, stop, width), _row(dy, t + 7, c, ok, stop, width)
        y0, a0, a1, a2, a3 = _walk(
            documents, dx, d_state, t, start, T, x0, h1, h2, h3, g0, z1, z2, z3, w0, w1, w2, w3, a0, a1, a2, a3,
            c, ok, total, is_key, W, STEPS, HAS_STATE, HAS_DOCS)  # fmt: skip
        y1, a0, a1, a2, a3 = _walk(
            documents, dx, d_state, t + 1, start, T, x1, x0, h1, h2, g1, y0, z1, z2, w0, w1, w2, w3, a0, a1, a2, a3,
            c, ok, total, is_key, W, STEPS, HAS_STATE, HAS_DOCS)  # fmt: skip
        y2, a0, a1, a2, a3 = _walk(
            documents, dx, d_state, t + 2, start, T, x2, x1, x0, h1, g2, y1, y0, z1, w0, w1, w2, w3, a0, a1, a2, a3,
            c, ok, total, is_key, W, STEPS, HAS_STATE, HAS_DOCS)  # fmt: skip
        y3, a0, a1, a2, a3 = _walk(
            documents, dx, d_state, t + 3, start, T, x3, x2, x1, x0, g3, y2, y1, y0, w0, w1, w2, w3, a0, a1, a2, a3,
            c, ok, total, is_key, W, STEPS, HAS_STATE, HAS_DOCS)  # fmt: skip
        h1, h2, h3 = x3, x2, x1
        z1, z2, z3 = y3, y2, y1
    d_weight += (b * chunks + chunk) * W * total + offset
    tl.store(d_weight + c, a0, mask=ok)
    if W > 1:
        tl.store(d_weight + total + c, a1, mask=ok)
    if W > 2:
        tl.store(d_weight + 2 * total + c, a2, mask=ok)
    if W > 3:
        tl.store(d_weight + 3 * total + c, a3, mask=ok)


def _shape(x: Tensor, weight: Tensor, parts: int, key_width: int, key_dim: int, step: int) -> tuple[int, int, dict]:
    """Programs, chunks of time, and the arguments both kernels share."""
    value_width = x.shape[2] - parts * key_width
    padded = triton.next_power_of_2(key_dim)
    heads = max(1, 128 // padded)
    chunks = triton.cdiv(x.shape[1], step)
    tiles = parts * triton.cdiv(key_width, heads * key_dim) + triton.cdiv(value_width, heads * padded)
    shared = {
        "W": weight.shape[1], "K": key_dim, "KP": padded, "HEADS": heads, "PARTS": parts, "STEPS": STEPS,
        "num_warps": max(1, heads * padded // 128),
    }  # fmt: skip
    return x.shape[0] * chunks * tiles, chunks, shared


def _forward(
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    documents: Tensor | None,
    parts: int,
    key_width: int,
    key_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, keys, values); queries are empty where there is one part of keys."""
    batch, length, channels = x.shape
    value_width = channels - parts * key_width
    q = x.new_empty((batch, length, key_width) if parts == 2 else (0,))
    k, v = x.new_empty(batch, length, key_width), x.new_empty(batch, length, value_width)
    programs, chunks, shared = _shape(x, weight, parts, key_width, key_dim, STEPS)
    conv_forward_kernel[(programs,)](
        x, weight, state, documents, q, k, v, length, chunks, key_width, value_width, x.stride(0), x.stride(1),
        HAS_STATE=state is not None, HAS_DOCS=documents is not None, **shared,
    )  # fmt: skip
    return q, k, v


def _backward(
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    documents: Tensor | None,
    parts: int,
    key_width: int,
    key_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and state (empty without one)."""
    batch, length, channels = x.shape
    value_width = channels - parts * key_width
    dq = x.new_zeros(batch, length, key_width) if dq is None and parts == 2 else dq
    dk = x.new_zeros(batch, length, key_width) if dk is None else dk
    dv = x.new_zeros(batch, length, value_width) if dv is None else dv
    programs, chunks, shared = _shape(x, weight, parts, key_width, key_dim, STEPS - 3)
    dx = x.new_empty(x.shape)
    d_state = x.new_empty(0) if state is None else state.new_empty(state.shape)
    d_weight = x.new_empty(batch * chunks, weight.shape[1], channels, dtype=torch.float32)
    conv_backward_kernel[(programs,)](
        x, weight, state, documents, dk if dq is None else dq, dk, dv, dx, d_weight, d_state, length, chunks,
        key_width, value_width, x.stride(0), x.stride(1),
        HAS_STATE=state is not None, HAS_DOCS=documents is not None, maxnreg=REGISTERS, **shared,
    )  # fmt: skip
    return dx, d_weight.sum(0).flip(0).t().to(weight.dtype, memory_format=torch.contiguous_format), d_state


def _fake(x, weight, state, documents, parts, key_width, key_dim):
    rows = x.shape[:2]
    return (
        x.new_empty((*rows, key_width) if parts == 2 else (0,)),
        x.new_empty(*rows, key_width),
        x.new_empty(*rows, x.shape[2] - parts * key_width),
    )


def _fake_backward(dq, dk, dv, x, weight, state, documents, parts, key_width, key_dim):
    d_state = x.new_empty(0) if state is None else state.new_empty(state.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_state


def _save(inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    return inputs[:4], (*inputs[4:],)


def _gradients(constants: tuple[Any, ...], found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    dx, d_weight, d_state = found
    return dx, d_weight, d_state if d_state.numel() else None, None, None, None, None


_operator = _fused.operator(
    "conv_heads", _forward, _backward, fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
    public=3,
)  # fmt: skip


def conv_heads(
    x: Tensor,
    weight: Tensor,
    *,
    state: Tensor | None,
    documents: Tensor | None,
    parts: int,
    key_width: int,
    key_dim: int,
) -> tuple[Tensor, ...]:
    """SiLU of the causal convolution, split into parts; each head of all but the last over its L2 norm.

    Args:
        x: [B,T,C], C = parts * key_width + the width of the values.
        weight: [C,W], W at most `WIDEST`; any floating dtype.
        state: [B,W-1,C] or None; documents: [B,T] integers or None.
        parts: 2 for queries and keys, 1 for keys alone.

    Returns:
        `parts` tensors [B,T,key_width] and the values, each contiguous, in x's dtype.
    """
    x = x if x.stride(2) == 1 else x.contiguous()
    state = None if state is None or weight.shape[1] == 1 else state.contiguous()
    ids = None if documents is None else documents.contiguous()
    return _operator(x, weight.contiguous(), state, ids, parts, key_width, key_dim)[2 - parts :]
