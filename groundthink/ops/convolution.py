"""Short causal convolution over time, one filter per channel, with a carried state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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


def causal_windows(
    x: Tensor, width: int, *, state: Tensor | None = None, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The last `width` tokens of every position side by side, so that a matrix over them is a dense convolution.

    Args:
        x: [B,T,D].
        width: W, the present token included.
        state: [B,W-1,D] the tokens before x; None means zeros.
        documents: [B,T] ids, as in `causal_conv`: tokens of another document are zeros.

    Returns:
        [B,T,W*D], the present token last, and the next state [B,W-1,D], as in `causal_conv`.
    """
    batch, length = x.shape[:2]
    before = x.new_zeros(batch, width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    padded = torch.cat([before, x], 1)
    taps = [padded[:, i : i + length] for i in range(width)]
    if documents is not None:
        same = _same_document(documents, width).to(x.dtype)
        taps[:-1] = [tap * mine for tap, mine in zip(taps, same, strict=False)]
    return torch.cat(taps, -1), _of_last_document(padded[:, length:], documents)


def conv_heads(
    x: Tensor,
    weight: Tensor | None,
    *,
    key_parts: int,
    key_heads: int,
    key_dim: int,
    value_dim: int,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    keep_state: bool = True,
    activation: Literal["silu", "none"] = "silu",
    query_norm: bool = True,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """SiLU of `causal_conv`, split into heads; queries and keys over their L2 norm (at least 1e-12).

    On CUDA one kernel each way for filters of up to 4 taps under SiLU with both norms; every other form, float64 and
    the CPU compose it from torch.

    Args:
        x: [B,T,C], channels ordered as the parts returned.
        weight: [C,W]; None means no convolution.
        key_parts: 2 for queries and keys, 1 for keys alone.
        key_heads: H of each of them; key_dim: K; value_dim: V, whose heads are what the channels leave.
        state, documents: see `causal_conv`.
        keep_state: whether the next state is wanted.
        activation: of the channels, before the norms.
        query_norm: whether queries are normalised; keys always are.

    Returns:
        (queries [B,T,H,K] if there are two key parts, keys [B,T,H,K], values [B,T,HV,V]) in x's dtype, and the next
        state, None if it was not asked for or there is no convolution.

    Raises:
        ValueError: shapes that do not belong together.
    """
    key_width = key_heads * key_dim
    value_width = x.shape[2] - key_parts * key_width
    if key_parts not in (1, 2) or value_width <= 0 or value_width % value_dim:
        raise ValueError(
            f"{x.shape[2]} channels are not {key_parts} x {key_heads} x {key_dim} and heads of {value_dim}"
        )
    plain = weight is None or activation != "silu" or not query_norm
    # as many taps as the kernels hold in registers
    if weight is not None and not plain and weight.shape[1] <= 4 and _fused.runs_kernels(x):
        if weight.shape[0] != x.shape[2]:
            raise ValueError(f"weight should be [{x.shape[2]}, W], is {tuple(weight.shape)}")
        parts = _fused.kernels("conv").conv_heads(
            x, weight, state=state, documents=documents, parts=key_parts, key_width=key_width, key_dim=key_dim
        )
        after = _next_state(x, weight.shape[1], state, documents) if keep_state else None
        return _heads(parts, key_dim, value_dim), after
    after = None
    if weight is not None:
        x, after = causal_conv(x, weight, state=state, documents=documents)
    mixed = F.silu(x) if activation == "silu" else x
    *keys, values = _heads(mixed.split([key_width] * key_parts + [value_width], -1), key_dim, value_dim)
    bare = keys[:-1] if not query_norm else []
    normed = [l2_normalise(part) for part in keys[len(bare) :]]
    return (*bare, *normed, values), after if keep_state else None


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
