"""Window attention through PyTorch's own kernels on a GPU: flexible attention, compiled, and flash attention.

Nothing here is imported before it is asked for: flexible attention brings PyTorch's compiler with it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from groundthink.errors import BackendError

BLOCK = 128  # flexible attention's own; smaller blocks are slower even where a window is short
Attend = Callable[..., Any]


def flex_window(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor | None,
    ids: Tensor | None,
    window: int,
    attend: Attend | None = None,
) -> Tensor:
    """[B,T,H,V] for queries [B,T,H,K] at the end of keys and values [B,L,H,*].

    Args:
        valid: [B,L] bool, False for keys that nobody sees; None means all count.
        ids: [B,L] documents; None means one.
        attend: `flex_attention` or what has its signature; None means compiled, once for a window, dtype and head size.
    """
    length, total = queries.shape[1], keys.shape[1]
    mask = band(window, length, total, str(queries.device))
    if valid is not None or ids is not None:
        mask = copy.copy(mask)
        mask.mask_mod = seen_by(window, total - length, valid, ids)
    if attend is None:
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values))
        sizes = queries.dtype, queries.shape[-1], values.shape[-1]
        attend = compiled((window, total - length, valid is None, ids is None, learns, *sizes))
    out: Tensor = attend(*(x.transpose(1, 2) for x in (queries, keys, values)), block_mask=mask)
    return out.transpose(1, 2)


def seen_by(window: int, before: int, valid: Tensor | None, ids: Tensor | None) -> Callable[..., Tensor]:
    """Whether a query sees a key, in flexible attention's terms; `before` keys stand before the first query."""

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        distance = query + before - key
        seen = (distance >= 0) & (distance < window)
        if valid is not None:
            seen = seen & valid[row, key]
        if ids is not None:
            seen = seen & (ids[row, query + before] == ids[row, key])
        return seen

    return mask_mod


@functools.lru_cache(maxsize=64)
def band(window: int, length: int, total: int, device: str) -> BlockMask:
    """The blocks a window touches, from its numbers alone: the dense mask is never formed."""
    before, n_keys = total - length, -(-total // BLOCK)
    first = torch.arange(0, length, BLOCK, device=device, dtype=torch.int32)
    low = (first + before - (window - 1)).clamp_min(0) // BLOCK
    high = ((first + BLOCK - 1).clamp_max(length - 1) + before) // BLOCK
    columns = low[:, None] + torch.arange(n_keys, device=device, dtype=torch.int32)
    return BlockMask.from_kv_blocks(
        (high - low + 1)[None, None],
        columns.clamp_max(n_keys - 1)[None, None].contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen_by(window, before, None, None),
        seq_lengths=(length, total),
    )


def compiled(key: tuple[Any, ...]) -> Attend:
    """`flex_attention` compiled for calls of one kind; inside a compiled model, itself."""
    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled(key)


@functools.cache
def _compiled(key: tuple[Any, ...]) -> Attend:
    """The compiler counts the versions of a function; beyond eight it would run flexible attention as it is written,
    with all T x T scores in memory. So each kind of call is a function of its own, and a ninth version is an error."""
    code = _attend.__code__.replace(co_name=f"window_{'_'.join(map(str, key))}")
    return torch.compile(types.FunctionType(code, globals(), code.co_name, _attend.__defaults__), fullgraph=True)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, block_mask: BlockMask | None = None) -> Any:
    return flex_attention(queries, keys, values, block_mask=block_mask)


def flash_window(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """[B,T,H,V] of whole texts, half precision, no documents: flash attention's own window.

    Raises:
        BackendError: this version of PyTorch has none.
    """
    attend = _flash()
    batch, length = queries.shape[:2]
    ends = torch.arange(batch + 1, device=queries.device, dtype=torch.int32) * length
    flat = (x.flatten(0, 1) for x in (queries, keys, values))
    out: Tensor = attend(*flat, ends, ends, length, length, window_size=(window - 1, 0))
    return out.unflatten(0, (batch, length))


@functools.cache
def _flash() -> Attend:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        found: Attend | None = None
    else:
        found = varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None
    if found is None:
        raise BackendError(
            f"torch {torch.__version__} has no windows in its flash attention",
            where="window backend flash",
            fix="choose blocks or flex, or install torch 2.12 or later",
        )
    return found
