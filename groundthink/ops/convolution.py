"""Short causal convolution over time, one filter per channel, with a carried state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import _fused


def causal_conv(
    x: Tensor,
    weight: Tensor,
    *,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution: y_t = sum_i weight[:, i] x_{t - (W - 1) + i}.

    Args:
        x: [B,T,D].
        weight: [D,W], the last column multiplies the present token.
        state: [B,W-1,D] the tokens before x; None means zeros.
        documents: [B,T] ids, non-decreasing; no token sees another document. The first document continues `state`.

    Returns:
        y [B,T,D] and the next state [B,W-1,D]. The state of a later call holds raw inputs of the last document only:
        inputs of earlier documents are zeroed.

    Raises:
        ValueError: shapes that do not belong together.
    """
    batch, length, width = x.shape[0], x.shape[1], weight.shape[1]
    if weight.shape[0] != x.shape[2]:
        raise ValueError(f"weight should be [{x.shape[2]}, W], is {tuple(weight.shape)}")
    before = x.new_zeros(batch, width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    padded = torch.cat([before, x], 1)
    same = None if documents is None else _same_document(documents, width)
    y: Tensor = _CausalConv.apply(padded, weight.to(x.dtype), same)  # type: ignore[no-untyped-call]
    return y, _of_last_document(padded[:, length:], documents)


def conv_heads(
    x: Tensor,
    weight: Tensor,
    *,
    key_parts: int,
    key_heads: int,
    key_dim: int,
    value_dim: int,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    keep_state: bool = True,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """SiLU of `causal_conv`, split into heads; queries and keys over their L2 norm (at least 1e-12).

    On CUDA one kernel each way for filters of up to 4 taps; float64 and the CPU compose it from torch.

    Args:
        x: [B,T,C], channels ordered as the parts returned.
        weight: [C,W].
        key_parts: 2 for queries and keys, 1 for keys alone.
        key_heads: H of each of them; key_dim: K; value_dim: V, whose heads are what the channels leave.
        state, documents: see `causal_conv`.
        keep_state: whether the next state is wanted.

    Returns:
        (queries [B,T,H,K] if there are two key parts, keys [B,T,H,K], values [B,T,HV,V]) in x's dtype, and the next
        state, None if it was not asked for.

    Raises:
        ValueError: shapes that do not belong together.
    """
    key_width = key_heads * key_dim
    value_width = x.shape[2] - key_parts * key_width
    if key_parts not in (1, 2) or value_width <= 0 or value_width % value_dim:
        raise ValueError(
            f"{x.shape[2]} channels are not {key_parts} x {key_heads} x {key_dim} and heads of {value_dim}"
        )
    if _fused.runs_kernels(x) and weight.shape[1] <= 4:  # as many taps as the kernels hold in registers
        if weight.shape[0] != x.shape[2]:
            raise ValueError(f"weight should be [{x.shape[2]}, W], is {tuple(weight.shape)}")
        parts = _fused.kernels("conv").conv_heads(
            x, weight, state=state, documents=documents, parts=key_parts, key_width=key_width, key_dim=key_dim
        )
        after = _next_state(x, weight.shape[1], state, documents) if keep_state else None
        return _heads(parts, key_dim, value_dim), after
    mixed, after = causal_conv(x, weight, state=state, documents=documents)
    split = F.silu(mixed).split([key_width] * key_parts + [value_width], -1)
    heads = _heads(split, key_dim, value_dim)
    return (*(l2_normalise(part) for part in heads[:-1]), heads[-1]), after if keep_state else None


def l2_normalise(x: Tensor) -> Tensor:
    """x over the L2 norm of its last dimension (at least 1e-12), in at least float32 and returned in x's dtype."""
    return F.normalize(x.float() if x.dtype != torch.float64 else x, dim=-1).to(x.dtype)


def _heads(parts: Sequence[Tensor], key_dim: int, value_dim: int) -> tuple[Tensor, ...]:
    """[B,T,H*K] to [B,T,H,K] for each part; the last holds values."""
    return (*(part.unflatten(-1, (-1, key_dim)) for part in parts[:-1]), parts[-1].unflatten(-1, (-1, value_dim)))


def _next_state(x: Tensor, width: int, state: Tensor | None, documents: Tensor | None) -> Tensor:
    """The last W - 1 inputs, those of earlier documents zeroed."""
    length, kept = x.shape[1], width - 1
    if length < kept:
        before = x.new_zeros(x.shape[0], kept, x.shape[2]) if state is None else state.to(x.dtype)
        return _of_last_document(torch.cat([before[:, length:], x], 1), documents)
    return _of_last_document(x[:, length - kept :], documents)


def _of_last_document(after: Tensor, documents: Tensor | None) -> Tensor:
    """`after` [B,W-1,D], the last inputs of a segment, without those of documents before its last."""
    if documents is None:
        return after
    ids = torch.cat([documents[:, :1].expand(after.shape[:2]), documents], 1)
    return after * (ids[:, documents.shape[1] :] == documents[:, -1:])[..., None]


def _same_document(documents: Tensor, width: int) -> Tensor:
    """[W-1,B,T,1] bool: whether tap i of the token at t reads the token's own document."""
    batch, length = documents.shape
    ids = torch.cat([documents[:, :1].expand(batch, width - 1), documents], 1)
    taps = [ids[:, i : i + length] == documents for i in range(width - 1)]
    return torch.stack(taps)[..., None] if taps else documents.new_zeros(0, batch, length, 1, dtype=torch.bool)


class _CausalConv(torch.autograd.Function):
    """Tap by tap. Autograd would zero-pad and add one full tensor per tap and slice; this accumulates in place."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, same: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, weight, same)
        width = weight.shape[1]
        length = padded.shape[1] - width + 1
        y = padded[:, width - 1 :] * weight[:, -1]
        for i in range(width - 1):
            tap = padded[:, i : i + length]
            y = torch.addcmul(y, tap if same is None else tap * same[i], weight[:, i])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        padded, weight, same = ctx.saved_tensors
        width = weight.shape[1]
        length = padded.shape[1] - width + 1
        d_padded, d_weight = torch.zeros_like(padded), torch.empty_like(weight)
        for i in range(width):
            kept = dy if same is None or i == width - 1 else dy * same[i]
            d_padded[:, i : i + length].addcmul_(kept, weight[:, i])
            d_weight[:, i] = (kept * padded[:, i : i + length]).sum((0, 1))
        return d_padded, d_weight, None
