"""Softmax cross-entropy of a chunk of logits as one Triton kernel: losses out, logits turned into their gradient.

A row is read twice, for its log-sum-exp and for its gradient; the second time it comes from the cache. No other tensor
of the logits' size exists.
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

LOGITS = 2**29  # at a time: 1 GiB in bfloat16; fewer chunks mean fewer additions to the weight's gradient
BLOCK = 4096


@triton.jit
def cross_entropy_kernel(
    logits, labels, losses, size, stride, IGNORE: tl.constexpr, BLOCK: tl.constexpr, SLOPE: tl.constexpr
):  # fmt: skip
    """One row: losses[row]; with SLOPE the logits become softmax - onehot, zeros where the label is IGNORE.

    Masks follow the stride, a multiple of 64, and not the size: odd ones would turn every access into single numbers.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    logits += row * stride
    kind = logits.dtype.element_ty
    if label == IGNORE:
        tl.store(losses + row, 0.0)
        if SLOPE:
            for first in range(0, size, BLOCK):
                c = first + tl.arange(0, BLOCK)
                tl.store(logits + c, tl.zeros([BLOCK], tl.float32).to(kind), mask=c < stride)
    else:
        # a label outside the vocabulary must not read other memory; its loss is NaN
        own = tl.load(logits + label, mask=(label >= 0) & (label < size), other=float("nan")).to(tl.float32)
        top = tl.max(tl.full([2], -float("inf"), tl.float32), 0)
        mass = tl.sum(tl.zeros([2], tl.float32), 0)
        for first in range(0, size, BLOCK):
            c = first + tl.arange(0, BLOCK)
            x = tl.load(logits + c, mask=c < stride, other=0.0).to(tl.float32)
            x = tl.where(c < size, x, -float("inf"))
            new = tl.maximum(top, tl.max(x, 0))
            mass = mass * tl.exp(top - new) + tl.sum(tl.exp(x - new), 0)
            top = new
        total = top + tl.log(mass)
        tl.store(losses + row, total - own)
        if SLOPE:
            # Every warp reads `own` for itself, and one of them now overwrites it: on a busy GPU the others come late.
            tl.debug_barrier()
            for first in range(0, size, BLOCK):
                c = first + tl.arange(0, BLOCK)
                x = tl.load(logits + c, mask=c < stride, other=0.0).to(tl.float32)
                slope = tl.exp(x - total) - tl.where(c == label, 1.0, 0.0)
                tl.store(logits + c, slope.to(kind), mask=c < stride)


def _rows(tokens: int, vocabulary: int, chunk: int) -> int:
    """Tokens whose logits exist at the same time: as asked for (0: `LOGITS`), in chunks of equal size."""
    most = chunk or max(1, LOGITS // vocabulary)
    chunks = max(1, triton.cdiv(tokens, most))
    return triton.cdiv(tokens, chunks)


def _forward(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, chunk: int, hidden_grad: bool, weight_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of losses float32, gradient of hidden in `dtype` or empty, gradient of weight in float32 or empty)."""
    tokens, width = hidden.shape
    vocabulary, slope = weight.shape[0], hidden_grad or weight_grad
    rows = _rows(tokens, vocabulary, chunk)
    h, w = hidden.to(dtype), weight.to(dtype)
    d_hidden = h.new_empty((tokens, width) if hidden_grad else (0,))
    d_weight = None if tokens else h.new_zeros((vocabulary, width), dtype=torch.float32)
    losses = h.new_empty(tokens, dtype=torch.float32)
    # rows start on multiples of 128 bytes, whatever the vocabulary: products and kernels then move whole vectors
    padded = triton.cdiv(vocabulary, 64) * 64
    buffer = h.new_empty(rows, padded)
    for start in range(0, tokens, max(1, rows)):
        part = h[start : start + rows]
        logits = buffer[: part.shape[0], :vocabulary]
        torch.mm(part, w.t(), out=logits)
        cross_entropy_kernel[(part.shape[0],)](
            logits, labels[start : start + rows], losses[start : start + rows], vocabulary, padded,
            IGNORE=-100, BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)), SLOPE=slope, num_warps=8,
        )  # fmt: skip
        if hidden_grad:
            torch.mm(logits, w, out=d_hidden[start : start + rows])
        if weight_grad:
            added = _fused.float32_product(logits.t(), part)
            d_weight = added if d_weight is None else d_weight.add_(added)
    return losses.sum(), d_hidden, d_weight if weight_grad and d_weight is not None else losses.new_empty(0)


def _backward(
    d_total: Tensor, d_hidden: Tensor, d_weight: Tensor, hidden_dtype: torch.dtype, weight_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both gradients, known since the forward pass, times that of the sum."""
    return (d_hidden * d_total).to(hidden_dtype), (d_weight * d_total).to(weight_dtype)


def _fake(hidden, weight, labels, dtype, chunk, hidden_grad, weight_grad):
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if hidden_grad else (0,), dtype=dtype),
        weight.new_empty(weight.shape if weight_grad else (0,), dtype=torch.float32),
    )


def _fake_backward(d_total, d_hidden, d_weight, hidden_dtype, weight_dtype):
    return d_hidden.new_empty(d_hidden.shape, dtype=hidden_dtype), d_weight.new_empty(
        d_weight.shape, dtype=weight_dtype
    )


def _save(inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    return output[1:], (inputs[0].dtype, inputs[1].dtype)


def _gradients(constants: tuple[Any, ...], found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    return (*(d if d.numel() else None for d in found), None, None, None, None, None)


_operator = _fused.operator(
    "linear_cross_entropy", _forward, _backward, fake=_fake, fake_backward=_fake_backward, save=_save,
    gradients=_gradients,
)  # fmt: skip


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int, dtype: torch.dtype) -> Tensor:
    """Sum of losses, float32; products in `dtype`, gradients in each input's own."""
    differentiated = torch.is_grad_enabled()
    with torch.autocast(hidden.device.type, enabled=False):
        return _operator(
            hidden.contiguous(), weight.contiguous(), labels.contiguous(), dtype, chunk,
            differentiated and hidden.requires_grad, differentiated and weight.requires_grad,
        )[0]  # fmt: skip
