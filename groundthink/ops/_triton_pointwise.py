"""SwiGLU's pointwise part as one Triton kernel each way, on the packed projection."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers, numbers and compile-time constants: Triton's compiler types them)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from groundthink.ops import _fused


@triton.jit
def swiglu_forward_kernel(packed, out, F, tiles, BLOCK: tl.constexpr):
    """out [rows,F] = silu(first half) * second half of packed [rows,2F]."""
    pid = tl.program_id(0).to(tl.int64)
    row, c = pid // tiles, (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    ok = c < F
    gate = tl.load(packed + row * 2 * F + c, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(packed + row * 2 * F + F + c, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * F + c, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=ok)


@triton.jit
def swiglu_backward_kernel(d_out, packed, d_packed, F, tiles, BLOCK: tl.constexpr):
    """d_packed [rows,2F]; silu is computed again."""
    pid = tl.program_id(0).to(tl.int64)
    row, c = pid // tiles, (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    ok = c < F
    at = row * 2 * F + c
    gate = tl.load(packed + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(packed + at + F, mask=ok, other=0.0).to(tl.float32)
    g = tl.load(d_out + row * F + c, mask=ok, other=0.0).to(tl.float32)
    sig = tl.sigmoid(gate)
    kind = d_packed.dtype.element_ty
    tl.store(d_packed + at, (g * up * sig * (1 + gate * (1 - sig))).to(kind), mask=ok)
    tl.store(d_packed + at + F, (g * gate * sig).to(kind), mask=ok)


def _grid(packed: Tensor) -> tuple[int, int, int, int]:
    """Programs, width F, tiles of a row, and numbers of a tile."""
    width = packed.shape[-1] // 2
    block = min(1024, triton.next_power_of_2(width))
    tiles = triton.cdiv(width, block)
    return packed.numel() // (2 * width) * tiles, width, tiles, block


def _forward(packed: Tensor) -> tuple[Tensor]:
    programs, width, tiles, block = _grid(packed)
    out = packed.new_empty(*packed.shape[:-1], width)
    swiglu_forward_kernel[(programs,)](packed, out, width, tiles, BLOCK=block, num_warps=4)
    return (out,)


def _backward(d_out: Tensor, packed: Tensor) -> Tensor:
    programs, width, tiles, block = _grid(packed)
    d_packed = packed.new_empty(packed.shape)
    swiglu_backward_kernel[(programs,)](d_out, packed, d_packed, width, tiles, BLOCK=block, num_warps=4)
    return d_packed


_operator = _fused.operator(
    "swiglu", _forward, _backward,
    fake=lambda packed: (packed.new_empty(*packed.shape[:-1], packed.shape[-1] // 2),),
    fake_backward=lambda d_out, packed: packed.new_empty(packed.shape),
    save=lambda inputs, output: (inputs, ()),
    gradients=lambda constants, d_packed: (d_packed,),
)  # fmt: skip


def swiglu(packed: Tensor) -> Tensor:
    """[..., F] for packed [..., 2F]."""
    return _operator(packed.contiguous())[0]
