"""Short causal convolution over time, one filter per channel, with a carried state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    after = padded[:, length:]
    if documents is not None:
        ids = torch.cat([documents[:, :1].expand(batch, width - 1), documents], 1)
        after = after * (ids[:, length:] == documents[:, -1:])[..., None]
    return y, after


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
