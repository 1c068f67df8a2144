"""Short causal convolution over time, one filter per channel, with a carried state."""

from __future__ import annotations

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
    weight = weight.to(x.dtype)
    before = x.new_zeros(batch, width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    padded = torch.cat([before, x], 1)
    if documents is None:
        y = sum(weight[:, i] * padded[:, i : i + length] for i in range(width))
        assert isinstance(y, Tensor)
        return y, padded[:, length:]
    ids = torch.cat([documents[:, :1].expand(batch, width - 1), documents], 1)
    y = weight[:, -1] * x
    for i in range(width - 1):
        same = (ids[:, i : i + length] == documents)[..., None]
        y = y + weight[:, i] * (padded[:, i : i + length] * same)
    last = (ids[:, length:] == documents[:, -1:])[..., None]
    return y, padded[:, length:] * last
