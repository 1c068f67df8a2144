"""Exact attention inside a short causal window, in blocks: never a T x T mask in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Past(NamedTuple):
    """The last W - 1 tokens before a segment.

    Attributes:
        keys, values: [B,W-1,H,K].
        valid: [B,W-1] bool; False where there was no token, or one of an earlier document.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor


def empty_past(keys: Tensor, values: Tensor, window: int) -> Past:
    """The past of a first segment: nothing is valid."""
    batch, _, heads, _ = keys.shape
    return Past(
        keys.new_zeros(batch, window - 1, heads, keys.shape[-1]),
        values.new_zeros(batch, window - 1, heads, values.shape[-1]),
        torch.zeros(batch, window - 1, dtype=torch.bool, device=keys.device),
    )


def window_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int,
    past: Past | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Past]:
    """Softmax attention of each token to itself and the window - 1 tokens before it.

    Args:
        queries, keys, values: [B,T,H,K] (values may have another last size).
        window: tokens seen, the present one included; at least 1.
        past: what came before this segment; None means nothing.
        documents: [B,T] ids, non-decreasing; no token sees another document. The first continues `past`.

    Returns:
        [B,T,H,V] and the past of the next segment.

    Raises:
        ValueError: a window below 1.
    """
    if window < 1:
        raise ValueError(f"window should be at least 1, is {window}")
    past = empty_past(keys, values, window) if past is None else past
    batch, length = keys.shape[:2]
    all_keys = torch.cat([past.keys.to(keys.dtype), keys], 1)
    all_values = torch.cat([past.values.to(values.dtype), values], 1)
    valid = torch.cat([past.valid, past.valid.new_ones(batch, length)], 1)
    if documents is None:
        ids = None
        next_valid = valid[:, length:]
    else:
        ids = torch.cat([documents[:, :1].expand(batch, window - 1), documents], 1)
        next_valid = valid[:, length:] & (ids[:, length:] == documents[:, -1:])
    out = _in_blocks(queries, all_keys, all_values, valid, ids, window)
    return out, Past(all_keys[:, length:], all_values[:, length:], next_valid)


def _in_blocks(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor, ids: Tensor | None, window: int) -> Tensor:
    """Each block of queries against the keys of its own block and the window before it."""
    batch, length, heads, _ = queries.shape
    block = min(max(window, 16), length)
    n_blocks = -(-length // block)
    missing = n_blocks * block - length
    reach = block + window - 1  # keys that one block of queries can see

    def strips(x: Tensor) -> Tensor:
        """[B, window-1+T, ...] -> [B, N, reach, ...], overlapping."""
        x = F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])
        return x.unfold(1, reach, block).movedim(-1, 2)

    q = F.pad(queries, (0, 0, 0, 0, 0, missing)).view(batch, n_blocks, block, heads, -1)
    row = torch.arange(block, device=queries.device)[:, None]
    column = torch.arange(reach, device=queries.device)[None, :]
    seen = (column >= row) & (column < row + window)
    mask = seen & strips(valid)[:, :, None, :]
    if ids is not None:
        mask = mask & (strips(ids)[:, :, None, :] == strips(ids)[:, :, window - 1 :, None])
    # A padded query at the end of the text may see nothing; its own key keeps the softmax finite.
    mask = mask | (column == row + window - 1)
    out = F.scaled_dot_product_attention(
        q.transpose(2, 3),
        strips(keys).transpose(2, 3),
        strips(values).transpose(2, 3),
        attn_mask=mask[:, :, None],
    )
    return out.transpose(2, 3).reshape(batch, n_blocks * block, heads, -1)[:, :length]
