"""Exact attention inside a short causal window: never a T x T mask in memory."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.errors import BackendError


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
    backend: str = "auto",
) -> tuple[Tensor, Past]:
    """Softmax attention of each token to itself and the window - 1 tokens before it.

    Args:
        queries, keys, values: [B,T,H,K] (values may have another last size).
        window: tokens seen, the present one included; at least 1.
        past: what came before this segment; None means nothing.
        documents: [B,T] ids, non-decreasing; no token sees another document. The first continues `past`.
        backend: "auto" (by the device of `queries`) or a name of `WINDOW_BACKENDS`. What "flex" or "flash" cannot do
            (see `limits`) is done in blocks.

    Returns:
        [B,T,H,V] and the past of the next segment.

    Raises:
        ValueError: a window below 1.
        BackendError: a backend that does not exist or cannot run here.
    """
    if window < 1:
        raise ValueError(f"window should be at least 1, is {window}")
    chosen = _choose(backend, queries.device)
    if chosen != "blocks" and limits(chosen, queries, values, past=past, documents=documents):
        chosen = "blocks"
    if chosen != "blocks" and past is None:
        return _kernels_alone(chosen, queries, keys, values, window, documents)
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
    if chosen == "flex":
        out = _kernels().flex_window(queries, all_keys, all_values, valid, ids, window)
    else:
        out = _in_blocks(queries, all_keys, all_values, valid, ids, window)
    return out, Past(all_keys[:, length:], all_values[:, length:], next_valid)


WINDOW_BACKENDS = ("blocks", "flex", "flash")


def automatic_window(device_type: str) -> tuple[str, str]:
    """What "auto" means for window attention on a device type, and why."""
    if device_type == "cuda":
        return "blocks", "PyTorch's memory-efficient kernel on strips of keys; flex (compiles) and flash go by name"
    return "blocks", "strips of keys as long as the window"


def limits(name: str, queries: Tensor, values: Tensor, *, past: Past | None, documents: Tensor | None) -> str:
    """Why "flex" or "flash" leaves a call to the blocks; empty if it does not."""
    size, length, dtype = queries.shape[-1], queries.shape[1], queries.dtype
    if length == 1:
        return "a decode step is one strip of keys"
    if dtype == torch.float64:
        return "float64"
    if min(size, values.shape[-1]) < 16:
        return "heads smaller than 16"
    if name == "flash":
        if dtype not in (torch.bfloat16, torch.float16):
            return "flash attention computes in half precision only"
        if past is not None or documents is not None:
            return "flash attention has no mask for what came before and for documents"
        if size != values.shape[-1] or size % 8 or size > 256:
            return "flash attention wants keys and values of one size, a multiple of 8 up to 256"
    return ""


def _choose(name: str, device: torch.device) -> str:
    if name == "auto":
        return automatic_window(device.type)[0]
    if name not in WINDOW_BACKENDS:
        raise BackendError(
            f"there is no window backend {name!r}", where="backend", fix=f"choose auto, {', '.join(WINDOW_BACKENDS)}"
        )
    if name != "blocks" and device.type != "cuda":
        raise BackendError(
            f"window backend {name!r} needs a CUDA device, this is {device.type}", where="backend", fix="choose auto"
        )
    return name


def _kernels() -> ModuleType:
    return importlib.import_module("groundthink.ops._window_kernels")


def _kernels_alone(
    name: str, queries: Tensor, keys: Tensor, values: Tensor, window: int, documents: Tensor | None
) -> tuple[Tensor, Past]:
    """A kernel on a text that nothing came before: no copy of keys and values."""
    if name == "flash":
        out = _kernels().flash_window(queries, keys, values, window)
    else:
        out = _kernels().flex_window(queries, keys, values, None, documents, window)
    kept = min(window - 1, keys.shape[1])
    missing = window - 1 - kept
    tail = slice(keys.shape[1] - kept, None)
    valid = torch.ones(keys.shape[0], kept, dtype=torch.bool, device=keys.device)
    if documents is not None:
        valid = valid & (documents[:, tail] == documents[:, -1:])

    def last(x: Tensor) -> Tensor:
        return F.pad(x[:, tail], (0, 0, 0, 0, missing, 0)) if missing else x[:, tail]

    return out, Past(last(keys), last(values), F.pad(valid, (missing, 0)))


def _in_blocks(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor, ids: Tensor | None, window: int) -> Tensor:
    """Each block of queries against the keys of its own block and the window before it."""
    batch, length, heads, _ = queries.shape
    block = min(max(window, 64 if queries.is_cuda else 16), length)  # a GPU's kernel takes 64 queries at a time anyway
    n_blocks = -(-length // block)
    # Keys that one block of queries can see, and then some that it cannot: kernels want masks of whole 16 columns.
    reach = -(-(block + window - 1) // 16) * 16
    missing = n_blocks * block - length

    def strips(x: Tensor) -> Tensor:
        """[B, window-1+T, ...] -> [B, N, reach, ...], overlapping."""
        x = F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing + reach - (block + window - 1)])
        return x.unfold(1, reach, block).movedim(-1, 2)

    def flat(x: Tensor) -> Tensor:
        """[B,N,n,H,K] -> [B*N,H,n,K]: PyTorch's fused kernels know four dimensions."""
        return x.transpose(2, 3).flatten(0, 1)

    q = F.pad(queries, (0, 0, 0, 0, 0, missing)).view(batch, n_blocks, block, heads, -1)
    row = torch.arange(block, device=queries.device)[:, None]
    column = torch.arange(reach, device=queries.device)[None, :]
    seen = (column >= row) & (column < row + window)
    mask = seen & strips(valid)[:, :, None, :]
    if ids is not None:
        near = strips(ids)
        mask = mask & (near[:, :, None, :] == near[:, :, window - 1 : window - 1 + block, None])
    # A padded query at the end of the text may see nothing; its own key keeps the softmax finite.
    mask = mask | (column == row + window - 1)
    out = F.scaled_dot_product_attention(
        flat(q), flat(strips(keys)), flat(strips(values)), attn_mask=mask.flatten(0, 1)[:, None]
    )
    return out.transpose(1, 2).reshape(batch, n_blocks * block, heads, -1)[:, :length]
