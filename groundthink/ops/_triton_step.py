"""The decode step as one Triton kernel: one token into each state, and one read out of it."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers, numbers and compile-time constants: Triton's compiler types them)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundthink.ops._fused import on_their_device


@triton.jit
def step_kernel(
    k, v, q, log_decay, beta, state, out, new_state,
    skb, skh, svb, svh, sqb, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """One program holds BV columns of one head's state; float32 throughout."""
    pid = tl.program_id(0).to(tl.int64)
    iv = pid % (V // BV)
    bh = pid // (V // BV)
    b, h = bh // HV, bh % HV
    ck = tl.arange(0, K)
    cv = iv * BV + tl.arange(0, BV)
    corner = bh * K * V + ck[:, None] * V + cv[None, :]
    s = tl.load(state + corner)
    key = tl.load(k + b * skb + (h // (HV // H)) * skh + ck).to(tl.float32)
    value = tl.load(v + b * svb + h * svh + cv).to(tl.float32)
    decay = tl.exp(tl.load(log_decay + bh))
    recalled = tl.sum(s * key[:, None], 0)
    if not RAW:
        recalled *= decay
    s = s * decay + key[:, None] * (tl.load(beta + bh) * (value - recalled))[None, :]
    tl.store(new_state + corner, s)
    if READ:
        query = tl.load(q + b * sqb + (h // (HV // HQ)) * sqh + ck).to(tl.float32)
        answer = tl.sum(s * query[:, None], 0) * scale
        tl.store(out + bh * V + cv, answer.to(out.dtype.element_ty))


@on_their_device
def launch_step(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    new_state: Tensor,
    *,
    raw: bool,
    scale: float,
) -> Tensor | None:
    """Write one token; `new_state` may be `state` itself (a static buffer under a CUDA graph).

    Args:
        keys: [B,1,H,K]; values: [B,1,HV,V]; queries: [B,1,H or HV,K] or None, each contiguous in its last dimension.
        log_decay: [B,1,HV] float32; beta likewise.
        state: [B,HV,K,V] float32, contiguous; new_state likewise, overwritten.

    Returns:
        [B,1,HV,V] in the values' dtype, or None without queries.
    """
    batch, _, heads, value_dim = values.shape
    key_dim = keys.shape[-1]
    asked = keys if queries is None else queries
    out = None if queries is None else values.new_empty(batch, 1, heads, value_dim)
    block = min(value_dim, max(16, 2048 // key_dim))
    # a smaller tile is held twice, and `new_state` may be `state`: one copy would be read after the other is written
    assert key_dim * block >= 64, f"a tile of {key_dim} x {block} is less than two warps"
    step_kernel[(batch * heads * (value_dim // block),)](
        keys, values, asked, log_decay.contiguous(), beta.contiguous(), state,
        values if out is None else out, new_state,
        keys.stride(0), keys.stride(2), values.stride(0), values.stride(2), asked.stride(0), asked.stride(2),
        keys.shape[2], asked.shape[2], heads, scale,
        K=key_dim, V=value_dim, BV=block, READ=out is not None, RAW=raw, num_warps=2,
    )  # fmt: skip
    return out


@torch.library.custom_op("groundthink::triton_step_", mutates_args=("state",))
def triton_step_(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    raw: bool,
    scale: float,
) -> Tensor:
    """One decode step on a static state buffer, without gradients: what `gt.stream` captures in a CUDA graph."""
    out = launch_step(keys, values, queries, log_decay, beta, state, state, raw=raw, scale=scale)
    assert out is not None
    return out


@triton_step_.register_fake
def _(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    raw: bool,
    scale: float,
) -> Tensor:
    return values.new_empty(values.shape)
